// Additions, scalings, conversions, soft caps and dropout. Every device gives the same bits.
// Errors of all: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// x += y, both of `type`. x may be y.
graft_status graft_add(void* x,
                       const void* y,
                       int64_t count,
                       graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                       graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                       graft_stream stream GRAFT_DEFAULT(nullptr));

// x += y, each of its own type: a sum in float32 that takes bfloat16 results of products, or the
// other way round. The sum is rounded once, to x's type. x may be y where the types are one.
graft_status graft_accumulate(void* x,
                              graft_float_type x_type,
                              const void* y,
                              graft_float_type y_type,
                              int64_t count,
                              graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                              graft_stream stream GRAFT_DEFAULT(nullptr));

// x *= s.
graft_status graft_scale(void* x,
                         float s,
                         int64_t count,
                         graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                         graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                         graft_stream stream GRAFT_DEFAULT(nullptr));

// to = from * scale between two types and layouts: float32 masters to bfloat16 copies, a LoRA's
// scaled B to the tail columns of its base (lora.h).
//   from [rows, columns] of from_type, from_stride from row to row
//   to   [rows, columns] of to_type, to_stride from row to row; must not overlap from unless both
//        are the same array with the same stride and type
// Strides are at least `columns`.
graft_status graft_convert(const void* from,
                           graft_float_type from_type,
                           int64_t from_stride,
                           void* to,
                           graft_float_type to_type,
                           int64_t to_stride,
                           int64_t rows,
                           int64_t columns,
                           float scale,
                           graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                           graft_stream stream GRAFT_DEFAULT(nullptr));

// x = cap * tanh(x / cap): the soft cap of Gemma 2's logits (arXiv 2408.00118, section 2).
//   cap  finite, above 0
// tanh is within 2 ulp (kernels/simd/vector.h); infinities give +-cap.
graft_status graft_softcap_forward(void* x,
                                   float cap,
                                   int64_t count,
                                   graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// dx *= 1 - tanh^2, from what the forward pass gave: tanh = y / cap.
//   y, dx  [count]
graft_status graft_softcap_backward(const void* y,
                                    float cap,
                                    int64_t count,
                                    void* dx,
                                    graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

// Inverted dropout in place: an element becomes 0 with probability p, else x / (1 - p).
//   x          [rows, dim] of `type`
//   row_index  [rows]  the token's index in the whole step: the mask follows the token, not the
//                      place where it is computed
//   stream             names the use (layer, projection), so that masks of one seed are independent
//   p                  0 <= p < 1; 0 leaves x as it is
// Philox4x32-10 (Salmon et al., SC 2011): key = seed; counter = (column / 4, stream low 32 bits xor
// row_index high, row_index low, stream high 32); word column % 4. Kept when word >= p * 2^32. The
// mask is computed again in the backward pass by the same call on the gradient, never stored.
// GRAFT_BAD_ARGUMENT for p outside [0, 1).
graft_status graft_dropout_mask_apply(void* x,
                                      int64_t rows,
                                      int64_t dim,
                                      const int64_t* row_index,
                                      uint64_t seed,
                                      uint64_t stream,
                                      float p,
                                      graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream device_stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
