// Causal softmax attention over packed documents with grouped query heads, sliding windows
// (Mistral, Gemma 2) and capped scores (Gemma 2, arXiv 2408.00118, section 2).
//
// Documents lie one after another in the token dimension; a token sees the tokens of its own
// document up to itself, or the last `window` of them. Query head h reads key/value head h / (heads
// / kv_heads). Nothing of size tokens x tokens is stored: scores live in tiles, as in
// FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Heads of a token are adjacent: element d of head h of token t is at t * stride + h * head_dim +
// d.
typedef struct graft_attention_shape {
  int64_t documents;
  const int32_t* cu_seqlens;  // [documents + 1]: 0, then the end of each document; a document may
                              // be empty; the last value is the number of tokens. In the device's
                              // memory, where it is not checked
  int64_t heads;              // of the queries; a multiple of kv_heads
  int64_t kv_heads;
  int64_t head_dim;      // 8..256
  int64_t q_stride;      // elements from token to token, >= heads * head_dim
  int64_t k_stride;      // >= kv_heads * head_dim
  int64_t v_stride;      // >= kv_heads * head_dim
  int64_t out_stride;    // >= heads * head_dim; the stride of dout as well
  float scale;           // usually 1 / sqrt(head_dim)
  int64_t window;        // query i sees key j when i - window < j <= i; 0 for all before it
  float softcap;         // scores become softcap * tanh(score / softcap); 0 for none
  int64_t tokens;        // on a device: the last value of cu_seqlens. The CPU reads that value
  graft_float_type type  // of q, k, v, out and their gradients; scores and sums are float32
#ifdef __cplusplus
      = GRAFT_F32
#endif
      ;
} graft_attention_shape;

// out = softmax(cap(scale * q k^T)) v for every head, causal inside each document.
//   q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; strides as in the shape
//   out [tokens, heads, head_dim]  written; only the heads' elements of each row, never the gap
//   lse [tokens, heads]            log of the sum of exp of the scores, for the backward pass
// out must not overlap q, k, v. A document's result does not depend on its neighbours: equal to the
// bit to the same document alone, and every device gives the same bits. Finite inputs give finite
// outputs at any score size.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR. Cost 2 *
// head_dim * heads * sum(length^2) flops.
graft_status graft_attention_forward(const graft_attention_shape* shape,
                                     const void* q,
                                     const void* k,
                                     const void* v,
                                     void* out,
                                     float* lse,
                                     graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                     graft_stream stream GRAFT_DEFAULT(nullptr));

// Bytes of workspace that graft_attention_backward needs; 0 for a shape that it would refuse.
size_t graft_attention_workspace_bytes(const graft_attention_shape* shape,
                                       graft_device device GRAFT_DEFAULT(GRAFT_CPU));

// Gradients of the forward pass; scores are computed again from lse.
//   out, lse   as the forward gave them; dout [tokens, heads, head_dim] with out_stride
//   dq, dk, dv overwritten (the heads' elements of each row), strides of q, k, v; may not overlap
//              any input
//   workspace  at least graft_attention_workspace_bytes(shape, device), any content, 64-byte
//              aligned, in the device's memory
// dk and dv of a group add its query heads in order, in float32. Packed documents equal separate
// ones to the bit. Errors: as the forward, GRAFT_BAD_SHAPE for a short workspace. Cost 5 * head_dim
// * heads * sum(length^2) flops.
graft_status graft_attention_backward(const graft_attention_shape* shape,
                                      const void* q,
                                      const void* k,
                                      const void* v,
                                      const void* out,
                                      const float* lse,
                                      const void* dout,
                                      void* dq,
                                      void* dk,
                                      void* dv,
                                      void* workspace,
                                      size_t workspace_bytes,
                                      graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                      graft_stream stream GRAFT_DEFAULT(nullptr));

// Attention of one new token over a cache: out = softmax(cap(scale * q k^T)) v over `positions`, or
// the last `window` of them.
//   q, out            [heads, head_dim] of `type`, as the caches
//   k_cache, v_cache  [positions, kv_heads, head_dim]; the new token's own k and v are the last row
// Errors: GRAFT_BAD_SHAPE (positions < 1, window < 0), GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE,
// GRAFT_DEVICE_ERROR.
graft_status graft_attention_decode(const void* q,
                                    const void* k_cache,
                                    const void* v_cache,
                                    int64_t positions,
                                    int64_t heads,
                                    int64_t kv_heads,
                                    int64_t head_dim,
                                    float scale,
                                    void* out,
                                    int64_t window GRAFT_DEFAULT(0),
                                    float softcap GRAFT_DEFAULT(0),
                                    graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                                    graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                    graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
