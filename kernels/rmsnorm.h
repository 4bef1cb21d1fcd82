// Root-mean-square normalisation (arXiv 1910.07467, eq. 4) with a learned weight, no bias.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// What the normalised value is multiplied by. Llama, Qwen and OLMo 2 differ only in where 16-bit
// activations are rounded, which float32 arrays do not show.
typedef enum graft_rmsnorm_kind {
  GRAFT_RMSNORM_WEIGHT = 0,          // weight: Llama, Mistral, Qwen, Phi, OLMo 2
  GRAFT_RMSNORM_ONE_PLUS_WEIGHT = 1  // 1 + weight, rounded before the product: Gemma
} graft_rmsnorm_kind;

// out = x * inv_rms * factor(weight), inv_rms[row] = 1 / sqrt(mean(x[row]^2) + eps).
//   x, out   [rows, dim]  may be the same array
//   weight   [dim]
//   inv_rms  [rows] out   what the backward pass needs
// The product is rounded twice, (x * inv_rms) first, as Hugging Face does in float32. Squares are
// added in 128 lanes, lane j takes x[j], x[j + 128], ...; then lanes pairwise, j with j + 64, ...,
// j + 1. Every device gives the same bits.
// Errors: GRAFT_BAD_SHAPE (dim < 1), GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_rmsnorm_forward(const float* x,
                                   const float* weight,
                                   float eps,
                                   int64_t rows,
                                   int64_t dim,
                                   float* out,
                                   float* inv_rms,
                                   graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// x += y, then the forward pass of the sum: the residual and the norm behind it in one pass over
// memory, equal to the bit to graft_add and graft_rmsnorm_forward.
//   x [rows, dim] updated; y [rows, dim], must not overlap x or out; out must not overlap x
graft_status graft_add_rmsnorm_forward(float* x,
                                       const float* y,
                                       const float* weight,
                                       float eps,
                                       int64_t rows,
                                       int64_t dim,
                                       float* out,
                                       float* inv_rms,
                                       graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                       graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                       graft_stream stream GRAFT_DEFAULT(nullptr));

// Adds the gradients of the forward pass.
//   dout, x  [rows, dim]  x is the forward's input
//   dx       [rows, dim]  += ; must not alias dout or x
//   dweight  [dim]        += , or NULL for a frozen weight
// dx = inv_rms * (g - xhat * mean(g * xhat)), g = dout * factor(weight), xhat = x * inv_rms.
// Sums over a row are taken as in the forward pass. dweight sums rows in tiles of 64, tiles in
// order, so that neither threads nor the device matter.
// Errors: as the forward.
graft_status graft_rmsnorm_backward(const float* dout,
                                    const float* x,
                                    const float* weight,
                                    const float* inv_rms,
                                    int64_t rows,
                                    int64_t dim,
                                    float* dx,
                                    float* dweight,
                                    graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
