// Root-mean-square normalisation (arXiv 1910.07467, eq. 4) with a learned weight, no bias.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// What the normalised value is multiplied by, and where 16-bit activations are rounded; the first
// and the last differ in that only, so not for float32.
typedef enum graft_rmsnorm_kind GRAFT_ANY_INT {
  GRAFT_RMSNORM_WEIGHT = 0,           // weight, after x * inv_rms was rounded to the type of out:
                                      // Llama, Mistral, Qwen, Phi
  GRAFT_RMSNORM_ONE_PLUS_WEIGHT = 1,  // 1 + weight, one rounding of the product: Gemma
  GRAFT_RMSNORM_WEIGHT_ONCE = 2       // weight, one rounding of the product: OLMo 2
} graft_rmsnorm_kind;

// out = x * inv_rms * factor(weight), inv_rms[row] = 1 / sqrt(mean(x[row]^2) + eps).
//   x           [rows, dim]  of `type`
//   out         [rows, dim]  of `type`, out_stride from row to row (0: dim); may be x
//   weight      [dim]
//   inv_rms     [rows] out   what the backward pass needs
//   out_stride  >= dim; the gap of each row is left alone (room for a LoRA's x A^T, lora.h)
// The product is rounded twice in float32, (x * inv_rms) first, as Hugging Face does. Squares are
// added in 128 lanes, lane j takes x[j], x[j + 128], ...; then lanes pairwise, j with j + 64, ...,
// j + 1. Every device gives the same bits.
// Errors: GRAFT_BAD_SHAPE (dim < 1, out_stride < dim), GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE,
// GRAFT_DEVICE_ERROR.
graft_status graft_rmsnorm_forward(const void* x,
                                   const float* weight,
                                   float eps,
                                   int64_t rows,
                                   int64_t dim,
                                   void* out,
                                   float* inv_rms,
                                   graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                   graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                   int64_t out_stride GRAFT_DEFAULT(0),
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// The same from float32 to the bfloat16 operand of a product: the bits of graft_rmsnorm_forward in
// float32 and graft_convert, so rounded once whatever the kind. The backward pass is that of
// float32.
//   x    [rows, dim]
//   out  [rows, dim]  out_stride from row to row (0: dim); must not overlap x
graft_status graft_rmsnorm_forward_bf16(const float* x,
                                        const float* weight,
                                        float eps,
                                        int64_t rows,
                                        int64_t dim,
                                        uint16_t* out,
                                        float* inv_rms,
                                        graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                        int64_t out_stride GRAFT_DEFAULT(0),
                                        graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                        graft_stream stream GRAFT_DEFAULT(nullptr));

// x += y, then the forward pass of the sum: the residual and the norm behind it in one pass over
// memory, equal to the bit to graft_add and graft_rmsnorm_forward.
//   x [rows, dim] updated; y [rows, dim], must not overlap x or out; out must not overlap x
graft_status graft_add_rmsnorm_forward(void* x,
                                       const void* y,
                                       const float* weight,
                                       float eps,
                                       int64_t rows,
                                       int64_t dim,
                                       void* out,
                                       float* inv_rms,
                                       graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                       graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                       int64_t out_stride GRAFT_DEFAULT(0),
                                       graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                       graft_stream stream GRAFT_DEFAULT(nullptr));

// Adds the gradients of the forward pass, with its roundings taken as none.
//   dout     [rows, dim]  dout_stride from row to row (0: dim)
//   x        [rows, dim]  the forward's input
//   dx       [rows, dim]  += ; must not alias dout or x
//   dweight  [dim]        += in float32, or NULL for a frozen weight
// dx = inv_rms * (g - xhat * mean(g * xhat)), g = dout * factor(weight), xhat = x * inv_rms.
// Sums over a row are taken as in the forward pass. dweight sums rows in tiles of 64, tiles in
// order, so that neither threads nor the device matter.
// Errors: as the forward.
graft_status graft_rmsnorm_backward(const void* dout,
                                    const void* x,
                                    const float* weight,
                                    const float* inv_rms,
                                    int64_t rows,
                                    int64_t dim,
                                    void* dx,
                                    float* dweight,
                                    graft_rmsnorm_kind kind GRAFT_DEFAULT(GRAFT_RMSNORM_WEIGHT),
                                    graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                    int64_t dout_stride GRAFT_DEFAULT(0),
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
