// Rows of a table by id, and the gradient of the table.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// out[t] = table[ids[t]].
//   ids [tokens] in 0..vocab-1; table [vocab, dim] of `type`; out [tokens, dim] of `type`, must not
//   overlap table
// On the CPU all ids are checked before anything is written. A device cannot say no without being
// waited for: there an id out of range gives a row of NaN.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (id out of range), GRAFT_NO_DEVICE,
// GRAFT_DEVICE_ERROR.
graft_status graft_embedding_forward(const int32_t* ids,
                                     int64_t tokens,
                                     const void* table,
                                     int64_t vocab,
                                     int64_t dim,
                                     void* out,
                                     graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                     graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                     graft_stream stream GRAFT_DEFAULT(nullptr));

// dtable[ids[t]] += dout[t], tokens added in order, so neither threads nor the device matter.
//   dout [tokens, dim] of `type`; dtable [vocab, dim] += in float32
// Ids are checked as in the forward pass; on a device a token with an id out of range is left out.
graft_status graft_embedding_backward(const void* dout,
                                      const int32_t* ids,
                                      int64_t tokens,
                                      int64_t vocab,
                                      int64_t dim,
                                      float* dtable,
                                      graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream stream GRAFT_DEFAULT(nullptr));

// to[rows[i]] = from[i]; the other rows of `to` are left alone. The inverse of
// graft_embedding_forward, which gathers.
//   from [count, dim] of `type`; rows [count] in 0..tokens-1, each once; to [tokens, dim] of `type`
// On the CPU all rows are checked before anything is written; on a device a row out of range is
// left out. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_rows_scatter(const void* from,
                                const int32_t* rows,
                                int64_t count,
                                int64_t tokens,
                                int64_t dim,
                                void* to,
                                graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
