// Additions, scalings, soft caps and dropout. Every device gives the same bits.
// Errors of all: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// x += y. x may be y.
graft_status graft_add(float* x,
                       const float* y,
                       int64_t count,
                       graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                       graft_stream stream GRAFT_DEFAULT(nullptr));

// x *= s.
graft_status graft_scale(float* x,
                         float s,
                         int64_t count,
                         graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                         graft_stream stream GRAFT_DEFAULT(nullptr));

// x = cap * tanh(x / cap): the soft cap of Gemma 2's logits (arXiv 2408.00118, section 2).
//   cap  finite, above 0
// tanh is within 2 ulp (kernels/simd/vector.h); infinities give +-cap.
graft_status graft_softcap_forward(float* x,
                                   float cap,
                                   int64_t count,
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// dx *= 1 - tanh^2, from what the forward pass gave: tanh = y / cap.
//   y, dx  [count]
graft_status graft_softcap_backward(const float* y,
                                    float cap,
                                    int64_t count,
                                    float* dx,
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

// Inverted dropout in place: an element becomes 0 with probability p, else x / (1 - p).
//   x          [rows, dim]
//   row_index  [rows]  the token's index in the whole step: the mask follows the token, not the
//                      place where it is computed
//   stream             names the use (layer, projection), so that masks of one seed are independent
//   p                  0 <= p < 1; 0 leaves x as it is
// Philox4x32-10 (Salmon et al., SC 2011): key = seed; counter = (column / 4, stream low 32 bits xor
// row_index high, row_index low, stream high 32); word column % 4. Kept when word >= p * 2^32. The
// mask is computed again in the backward pass by the same call on the gradient, never stored.
// GRAFT_BAD_ARGUMENT for p outside [0, 1).
graft_status graft_dropout_mask_apply(float* x,
                                      int64_t rows,
                                      int64_t dim,
                                      const int64_t* row_index,
                                      uint64_t seed,
                                      uint64_t stream,
                                      float p,
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream device_stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
