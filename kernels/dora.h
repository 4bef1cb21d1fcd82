// The gain of a linear whose rows have trained lengths: weight-decomposed adapters, DoRA (arXiv
// 2402.09353, section 4.1; the gradient does not pass through the norm, section 4.3).
//
// With h = x W^T + s (x A^T) B^T and, for each output, gain = magnitude / |row of W + s B A|:
// y = gain h. The norm counts as a constant: dh = gain dy, dmagnitude = sum of dy h / norm.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = gain h, or y += gain h with `adds`; product and sum are rounded one after the other.
//   h, y [rows, dim], may be the same; gain [dim]
// Errors of both: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR. Every
// device gives the same bits.
graft_status graft_gain_forward(const float* h,
                                const float* gain,
                                int64_t rows,
                                int64_t dim,
                                int adds,
                                float* y,
                                graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                graft_stream stream GRAFT_DEFAULT(nullptr));

// dh = gain dy, and dmagnitude += inverse_norm * the sum of dy h over the rows: in tiles of 64
// rows, tiles in order, so that neither threads nor the device matter.
//   dy, h, dh [rows, dim], dh may be dy; gain, inverse_norm, dmagnitude [dim]
graft_status graft_gain_backward(const float* dy,
                                 const float* h,
                                 const float* gain,
                                 const float* inverse_norm,
                                 int64_t rows,
                                 int64_t dim,
                                 float* dh,
                                 float* dmagnitude,
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
