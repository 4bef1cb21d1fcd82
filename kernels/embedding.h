// Rows of a table by id, and the gradient of the table.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// out[t] = table[ids[t]].
//   ids [tokens] in 0..vocab-1; table [vocab, dim]; out [tokens, dim], must not overlap table
// All ids are checked before anything is written.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (id out of range).
graft_status graft_embedding_forward(
    const int32_t* ids, int64_t tokens, const float* table, int64_t vocab, int64_t dim, float* out);

// dtable[ids[t]] += dout[t], tokens added in order, so the thread count does not matter.
//   dout [tokens, dim]; dtable [vocab, dim] +=
// All ids are checked before anything is written. Errors: as the forward.
graft_status graft_embedding_backward(const float* dout,
                                      const int32_t* ids,
                                      int64_t tokens,
                                      int64_t vocab,
                                      int64_t dim,
                                      float* dtable);

#ifdef __cplusplus
}
#endif
