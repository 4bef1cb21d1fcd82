// The bias of a linear layer.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// y[row] += bias.
//   y [rows, dim]; bias [dim], must not overlap y
// Errors of both: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR. Every
// device gives the same bits.
graft_status graft_bias_add(float* y,
                            const float* bias,
                            int64_t rows,
                            int64_t dim,
                            graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                            graft_stream stream GRAFT_DEFAULT(nullptr));

// dbias += the sum of dy over its rows: in tiles of 64 rows, tiles in order, so that neither
// threads nor the device matter.
//   dy [rows, dim]; dbias [dim]
graft_status graft_bias_backward(const float* dy,
                                 int64_t rows,
                                 int64_t dim,
                                 float* dbias,
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
