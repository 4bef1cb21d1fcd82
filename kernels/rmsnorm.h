// Root-mean-square normalisation (arXiv 1910.07467, eq. 4) with a learned weight, no bias.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// out = x * inv_rms * weight, inv_rms[row] = 1 / sqrt(mean(x[row]^2) + eps).
//   x, out   [rows, dim]  may be the same array
//   weight   [dim]
//   inv_rms  [rows] out   what the backward pass needs
// The product is rounded twice, (x * inv_rms) first, as Hugging Face's Llama does in float32.
// Errors: GRAFT_BAD_SHAPE (dim < 1), GRAFT_BAD_ARGUMENT.
graft_status graft_rmsnorm_forward(const float* x,
                                   const float* weight,
                                   float eps,
                                   int64_t rows,
                                   int64_t dim,
                                   float* out,
                                   float* inv_rms);

// Adds the gradients of the forward pass.
//   dout, x  [rows, dim]  x is the forward's input
//   dx       [rows, dim]  += ; must not alias dout or x
//   dweight  [dim]        += , or NULL for a frozen weight
// dx = inv_rms * (g - xhat * mean(g * xhat)), g = dout * weight, xhat = x * inv_rms.
// dweight sums rows in tiles of 64, tiles in order, so the thread count does not matter.
// Errors: as the forward.
graft_status graft_rmsnorm_backward(const float* dout,
                                    const float* x,
                                    const float* weight,
                                    const float* inv_rms,
                                    int64_t rows,
                                    int64_t dim,
                                    float* dx,
                                    float* dweight);

#ifdef __cplusplus
}
#endif
