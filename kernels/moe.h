// Mixtures of experts (arXiv 2401.04088): the router's choice, and the moves of rows between the
// order of tokens and the order of experts.
//
// Token t chooses `top` experts; pair p = t * top + j is its j-th choice. Sorted by expert, pairs
// of one expert in their own order, the pairs become rows 0..tokens * top - 1: exactly that many,
// no expert has a capacity. Every device gives the same bits.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct graft_moe_shape {
  int64_t tokens;   // tokens * top is below 2^31
  int64_t experts;  // 1..1024
  int64_t top;      // 1..experts
  int renormalise;  // 1: the weights of a token's choices add up to 1 (Mixtral); 0: they are its
                    // probabilities (Qwen 3 with norm_topk_prob false)
} graft_moe_shape;

// The choice of each token: its `top` largest probabilities, the lower expert first on a tie.
//   logits        [tokens, experts]
//   probabilities [tokens, experts] out  softmax of the logits, for the backward pass
//   expert        [tokens, top]     out  largest probability first
//   weight        [tokens, top]     out
// Sums run over experts (over choices) in order. NaN logits give NaN weights and valid experts.
// Errors of all: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_moe_route(const graft_moe_shape* shape,
                             const float* logits,
                             float* probabilities,
                             int32_t* expert,
                             float* weight,
                             graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                             graft_stream stream GRAFT_DEFAULT(nullptr));

// dlogits [tokens, experts] out: the gradient of the logits, given that of the weights.
//   dweight [tokens, top]; the others as graft_moe_route gave them
graft_status graft_moe_route_backward(const graft_moe_shape* shape,
                                      const float* probabilities,
                                      const int32_t* expert,
                                      const float* weight,
                                      const float* dweight,
                                      float* dlogits,
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream stream GRAFT_DEFAULT(nullptr));

// The sorted rows.
//   expert   [tokens, top]  in 0..experts-1; on the CPU checked, on a device not
//   offsets  [experts + 1]  out: rows of expert e are offsets[e] .. offsets[e + 1] - 1
//   row_pair [tokens * top] out: the pair of a row
//   pair_row [tokens * top] out: the row of a pair
graft_status graft_moe_sort(const graft_moe_shape* shape,
                            const int32_t* expert,
                            int32_t* offsets,
                            int32_t* row_pair,
                            int32_t* pair_row,
                            graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                            graft_stream stream GRAFT_DEFAULT(nullptr));

// rows[i] = x[row_pair[i] / top].
//   x [tokens, dim]; rows [tokens * top, dim] out
graft_status graft_moe_gather(const graft_moe_shape* shape,
                              const float* x,
                              const int32_t* row_pair,
                              int64_t dim,
                              float* rows,
                              graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                              graft_stream stream GRAFT_DEFAULT(nullptr));

// y[t] = sum over j of rows[pair_row[t * top + j]], j in order: the way back, and the gradient of
// graft_moe_gather.
//   rows [tokens * top, dim]; y [tokens, dim] out
graft_status graft_moe_combine(const graft_moe_shape* shape,
                               const float* rows,
                               const int32_t* pair_row,
                               int64_t dim,
                               float* y,
                               graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                               graft_stream stream GRAFT_DEFAULT(nullptr));

// out[i] = rows[i] * weight[row_pair[i]]; out may be rows.
//   rows, out [tokens * top, dim]
graft_status graft_moe_weigh(const graft_moe_shape* shape,
                             const float* rows,
                             const int32_t* row_pair,
                             const float* weight,
                             int64_t dim,
                             float* out,
                             graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                             graft_stream stream GRAFT_DEFAULT(nullptr));

// dweight[row_pair[i]] = sum of dout[i] * rows[i]; drows[i] = dout[i] * weight[row_pair[i]].
//   drows   [tokens * top, dim] out; may be dout
//   dweight [tokens, top]       out
// The products of a row are rounded, then added in the 128 lanes of kernels/rmsnorm.h.
graft_status graft_moe_weigh_backward(const graft_moe_shape* shape,
                                      const float* dout,
                                      const float* rows,
                                      const int32_t* row_pair,
                                      const float* weight,
                                      int64_t dim,
                                      float* drows,
                                      float* dweight,
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
