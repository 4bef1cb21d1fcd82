// The arguments of the operators as the inner functions take them, on the processor and on a device
// (internal): one struct per operator, so that a new argument is one line.
#pragma once

#include "kernels/adamw_parts.h"
#include "kernels/attention.h"
#include "kernels/decode_rows.h"
#include "kernels/linear4.h"
#include "kernels/lora.h"
#include "kernels/moe.h"
#include "kernels/product.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"

namespace graft::kernels {

// `type` is that of every void pointer of a struct that has no type of its own.

struct NormForward {
  const void* added;  // NULL, or what is added to x first
  const void* x;      // written when `added` is there
  const float* weight;
  float eps;
  graft_rmsnorm_kind kind;
  graft_float_type type;
  graft_float_type out_type;  // `type`, or bfloat16
  int64_t dim, out_stride;
  void* out;
  float* inv_rms;
};

struct NormBackward {
  const void *dout, *x;
  const float *weight, *inv_rms;
  graft_rmsnorm_kind kind;
  graft_float_type type;
  int64_t dim, dout_stride;
  void* dx;
  float* dweight;
};

struct RopeTurn {
  void* x;
  graft_float_type type;
  int64_t heads, head_dim, rotary_dim, row_stride;
  const float *cos, *sin;
  float sign;  // -1 for the inverse
};

// Rows of gate, up, dgate and dup are gate_stride apart, those of out and dout out_stride.
struct GateForward {
  graft_gate gate_kind;
  graft_float_type type;
  int64_t dim, gate_stride, out_stride;
  const void *gate, *up;
  void* out;
};

struct GateBackward {
  graft_gate gate_kind;
  graft_float_type type;
  int64_t dim, gate_stride, dout_stride;
  const void *dout, *gate, *up;
  void *dgate, *dup;
};

// The rows of a dropout mask: threshold and factor are computed once, on the host.
struct DropoutRows {
  void* x;
  graft_float_type type;
  int64_t dim;
  const int64_t* row_index;
  uint64_t seed, stream;
  uint32_t threshold;
  float keep_scale;
};

// x += y, element by element.
struct Addition {
  void* x;
  const void* y;
  graft_float_type x_type, y_type;
};

// to [rows, columns] = from * scale; strides between rows.
struct Conversion {
  const void* from;
  void* to;
  graft_float_type from_type, to_type;
  int64_t columns, from_stride, to_stride;
  float scale;
};

struct EmbeddingRows {
  const int32_t* ids;
  int64_t tokens, vocab, dim;
  graft_float_type type;
  const void *table, *dout;
  void* out;
  float* dtable;
};

struct AttentionForward {
  graft_attention_shape shape;
  const void *q, *k, *v;
  void* out;
  float* lse;
};

struct AttentionBackward {
  graft_attention_shape shape;
  const void *q, *k, *v, *out;
  const float* lse;
  const void* dout;
  void *dq, *dk, *dv;
  float* delta;  // [tokens, heads] on a device
};

// One new token per head over a cache.
struct AttentionDecode {
  const void *q, *k, *v;
  graft_float_type type;
  int64_t first, positions;  // keys [first, positions) are seen
  int64_t heads, kv_heads, head_dim;
  float scale, softcap;
  void* out;
};

struct CrossEntropyRows {
  const void* logits;
  void* gradient;  // may be the logits
  graft_float_type type, gradient_type;
  const int32_t* labels;
  const float* weight;  // or NULL for 1
  int64_t vocab;
  float scale, softcap;  // softcap 0 for none
  float* row_loss;
  uint8_t* row_correct;  // or NULL
  bool with_gradient;
};

// A product of up to GRAFT_LINEAR4_ROWS rows with a packed weight [n, k] on a device.
struct SmallRows {
  graft_nf4_weight weight;
  int64_t m, n, k;
  const void* x;
  graft_float_type x_type;
  int64_t ldx;
  float beta;
  void* y;
  graft_float_type y_type;
  int64_t ldy;
};

// to[rows[i]] = from[i], both of `dim` elements a row; to has `tokens` rows.
struct ScatteredRows {
  const void* from;
  const int32_t* rows;
  int64_t count, tokens, dim;
  graft_float_type type;
  void* to;
};

// Sums over the rows of a loss (cross_entropy.h defines their order).
struct LossSums {
  const float *row_loss, *weight;  // weight NULL for 1
  const uint8_t* correct;
  int64_t count;
  double* sums;  // added to: weight * loss, weight, correct
};

enum class DecodedType { kF32, kBf16, kF16 };

struct DecodeRows {
  const graft_decode_target* targets;
  int64_t count;
  DecodedType type;
};

// Pairs of projections of one x around their weight (lora.h).
struct LoraPairs {
  graft_lora_pair pair[GRAFT_LORA_PAIRS];  // those behind `count` have neither rows nor a rank
  int64_t count;
  int64_t in, out, rank;  // out and rank: sums
  uint16_t* to;
  int64_t to_stride;
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
  float beta1, one_minus_beta1, beta2, one_minus_beta2, bias2_root, eps, grad_scale;
  double bias1;
  float max_norm;
  float* result;    // norm, factor
  double* squares;  // one per tile of every tensor
};

}  // namespace graft::kernels
