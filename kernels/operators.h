// The arguments of the operators as the inner functions take them, on the processor and on a device
// (internal): one struct per operator, so that a new argument is one line.
#pragma once

#include "kernels/attention.h"
#include "kernels/rmsnorm.h"

namespace graft::kernels {

struct NormForward {
  const float* added;  // NULL, or what is (on the CPU: has been) added to x first
  const float* x;      // written when `added` is there
  const float* weight;
  float eps;
  graft_rmsnorm_kind kind;
  int64_t dim;
  float *out, *inv_rms;
};

struct NormBackward {
  const float *dout, *x, *weight, *inv_rms;
  graft_rmsnorm_kind kind;
  int64_t dim;
  float *dx, *dweight;
};

struct RopeTurn {
  float* x;
  int64_t heads, head_dim, rotary_dim, row_stride;
  const float *cos, *sin;
  float sign;  // -1 for the inverse
};

enum class Gate { kSilu, kGeluTanh };

struct GateForward {
  Gate gate_kind;
  const float *gate, *up;
  float* out;
};

struct GateBackward {
  Gate gate_kind;
  const float *dout, *gate, *up;
  float *dgate, *dup;
};

// The rows of a dropout mask: threshold and factor are computed once, on the host.
struct DropoutRows {
  float* x;
  int64_t dim;
  const int64_t* row_index;
  uint64_t seed, stream;
  uint32_t threshold;
  float keep_scale;
};

struct AttentionForward {
  graft_attention_shape shape;
  const float *q, *k, *v;
  float *out, *lse;
};

struct AttentionBackward {
  graft_attention_shape shape;
  const float *q, *k, *v, *out, *lse, *dout;
  float *dq, *dk, *dv;
  float* delta;  // [tokens, heads] on a device
};

// One new token per head over a cache.
struct AttentionDecode {
  const float *q, *k, *v;
  int64_t first, positions;  // keys [first, positions) are seen
  int64_t heads, kv_heads, head_dim;
  float scale, softcap;
  float* out;
};

}  // namespace graft::kernels
