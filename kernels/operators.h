// The arguments of the operators as the inner functions take them, on the processor and on a device
// (internal): one struct per operator, so that a new argument is one line.
#pragma once

#include "kernels/adamw_parts.h"
#include "kernels/attention.h"
#include "kernels/decode_rows.h"
#include "kernels/moe.h"
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

struct CrossEntropyRows {
  float* logits;
  const int32_t* labels;
  const float* weight;  // or NULL for 1
  int64_t vocab;
  float scale;
  float* row_loss;
  uint8_t* row_correct;  // or NULL
  bool with_gradient;
};

enum class DecodedType { kF32, kBf16, kF16 };

struct DecodeRows {
  const graft_decode_target* targets;
  int64_t count;
  DecodedType type;
};

struct MoeRoute {
  graft_moe_shape shape;
  const float* logits;
  float* probabilities;
  int32_t* expert;
  float* weight;
};

struct MoeRouteBackward {
  graft_moe_shape shape;
  const float* probabilities;
  const int32_t* expert;
  const float *weight, *dweight;
  float* dlogits;
};

struct MoeSort {
  graft_moe_shape shape;
  const int32_t* expert;
  int32_t *offsets, *row_pair, *pair_row;
};

// Rows from one order to another, or weighed in place.
struct MoeMove {
  graft_moe_shape shape;
  const float* from;
  const int32_t* index;  // row_pair, or pair_row to combine
  const float* weight;   // to weigh
  int64_t dim;
  float* to;
};

struct MoeWeighBackward {
  graft_moe_shape shape;
  const float *dout, *rows;
  const int32_t* row_pair;
  const float* weight;
  int64_t dim;
  float *drows, *dweight;
};

// One step over many tensors; the factors without the gradient's scale, which the device computes.
struct AdamTensors {
  const graft_adamw_part* parts;
  int64_t count;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, bias2_root, eps, grad_scale;
  double lr;
  float max_norm;
  float* result;    // norm, factor
  double* squares;  // one per tile of every tensor
};

}  // namespace graft::kernels
