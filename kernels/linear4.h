// Products with a frozen 4-bit weight, decoded piece by piece into the second-level cache: no
// decoded copy of the weight ever exists. On a device, few rows only: with many, decode into a
// scratch and multiply (decode_rows.h, product.h).
//
// The type of the activations chooses the arithmetic:
//   float32   weights decoded to float32, graft_gemm_f32's sums: equal to the bit to decoding all
//             of W and calling it
//   bfloat16  weights decoded to bfloat16, graft_gemm_bf16's sums: likewise
// Forward products of at most GRAFT_LINEAR4_ROWS rows read the packed bytes directly and keep W in
// float32 whatever the activations are: with rows of whole units of min(64, block) weights an
// element is a sum of units in 16 lanes, each unit's sum multiplied by its absmax; otherwise one
// chain of 16 lanes over the decoded row. All are the same to the bit for any number of threads and
// (gemm_bf16.h's denormals aside) instruction set.
#pragma once

#include "kernels/nf4.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of a product that is made from the packed bytes.
#define GRAFT_LINEAR4_ROWS 4

// y = x W^T + beta y.
//   weight  of out_features * in_features, rows of in_features; what it points at and the arrays
//   lie
//           in the device's memory
//   x [m, in_features]   float32 or bfloat16, ldx >= in_features
//   y [m, out_features]  float32, or bfloat16 beside a bfloat16 x: then summed in float32 and
//   rounded
//                        once; ldy >= out_features; not read when beta is 0; overlaps nothing
//   m                    on a device at most GRAFT_LINEAR4_ROWS
// On the CPU scratch is kept per thread: 1 MiB, and x in bfloat16 or float32 where it has to be
// converted. Errors: GRAFT_BAD_SHAPE (also a weight of another count), GRAFT_BAD_ARGUMENT,
// GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_linear4_forward(const graft_nf4_weight* weight,
                                   int64_t out_features,
                                   int64_t in_features,
                                   int64_t m,
                                   const void* x,
                                   graft_float_type x_type,
                                   int64_t ldx,
                                   float beta,
                                   void* y,
                                   int64_t ldy,
                                   graft_float_type y_type GRAFT_DEFAULT(GRAFT_F32),
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// dx = dy W + beta dx, on the CPU.
//   dy [m, out_features]  float32 or bfloat16, lddy >= out_features
//   dx [m, in_features]   float32, or bfloat16 beside a bfloat16 dy; lddx >= in_features; not read
//                         when beta is 0; overlaps nothing
// Errors: as the forward.
graft_status graft_linear4_backward(const graft_nf4_weight* weight,
                                    int64_t out_features,
                                    int64_t in_features,
                                    int64_t m,
                                    const void* dy,
                                    graft_float_type dy_type,
                                    int64_t lddy,
                                    float beta,
                                    void* dx,
                                    int64_t lddx,
                                    graft_float_type dx_type GRAFT_DEFAULT(GRAFT_F32));

#ifdef __cplusplus
}
#endif
