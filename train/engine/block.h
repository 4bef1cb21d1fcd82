// The two halves of a decoder block, attention and MLP, forward and backward (internal to engine/).
//
// Shape letters: T tokens of the micro-batch, D hidden size, F intermediate size, H query heads,
// G key/value heads, E head size; N experts, M experts of a token, R = T M sorted rows (R = T
// without experts).
//
// What differs between families is in ModelConfig and in which tensors a Layer has; nothing here
// asks for a family.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/batch.h"
#include "train/engine/kv_cache.h"
#include "train/engine/linear.h"
#include "train/engine/rotation.h"
#include "train/model/model.h"

namespace graft::train {

enum class Keep { kNothing, kForBackward };

// Makes float32 buffers and counts their bytes.
class Buffers {
 public:
  at::Tensor make(std::initializer_list<int64_t> shape);
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Of a half f, whose input is x and whose output joins the residual stream.
struct HalfState {
  at::Tensor inv_rms;         // [T] of the norm of x
  at::Tensor branch;          // [T, D] f's result where it is normed; else undefined
  at::Tensor branch_inv_rms;  // [T]
};

struct AttentionState {
  HalfState half;
  at::Tensor q;  // [T, H E] as projected where queries are normed, else rotated
  at::Tensor k;  // [T, G E] likewise
  at::Tensor v;  // [T, G E]
  at::Tensor q_inv_rms;
  at::Tensor k_inv_rms;
  at::Tensor attended;            // [T, H E]
  at::Tensor lse;                 // [T, H]
  std::vector<at::Tensor> u_qkv;  // [T, rank] for each linear; undefined without an adapter
  at::Tensor u_o;
};

struct MlpState {
  HalfState half;
  at::Tensor gate;               // [R F]
  at::Tensor up;                 // [R F]
  std::vector<at::Tensor> u_in;  // [R, rank] for each linear, the experts' one after another
  at::Tensor u_down;
  // With experts (kernels/moe.h):
  at::Tensor u_router;       // [T, rank]
  at::Tensor probabilities;  // [T, N]
  at::Tensor weight;         // [T, M]
  std::vector<int32_t> expert;
  std::vector<int32_t> offsets;
  std::vector<int32_t> row_pair;
  std::vector<int32_t> pair_row;
  std::vector<int64_t> token_index;  // [R] of the rows' tokens in the whole step
  std::vector<int32_t> row;          // [R] and their packed rows
};

// What one block keeps; with Keep::kNothing all blocks share one.
struct BlockState {
  at::Tensor input;   // [T, D]
  at::Tensor middle;  // [T, D] residual stream between the halves
  AttentionState attention;
  MlpState mlp;
};

// The sizes, for one token, of what a block keeps. Those of several blocks that share one state are
// the largest of each.
struct StateShape {
  int64_t rows = 0;     // R / T
  int64_t inner = 0;    // values of gate: R F / T
  int64_t experts = 0;  // 0 without
  std::vector<int64_t> qkv_ranks;
  int64_t o_rank = 0;
  int64_t router_rank = 0;
  std::vector<int64_t> in_ranks;
  int64_t down_rank = 0;

  static StateShape of(const Model& model, size_t index);
  static StateShape of_all(const Model& model);
};

BlockState make_state(const ModelConfig& config,
                      const StateShape& shape,
                      int64_t tokens,
                      Buffers& buffers);

// What the blocks use one after another.
struct Scratch {
  Scratch(const Model& model, int64_t tokens, Keep keep, Buffers& buffers);

  LinearWorkspace linear;  // points into the tensors below
  at::Tensor normed;       // [T, D]
  at::Tensor q;            // [T, H E] normed and rotated; undefined where queries are not normed
  at::Tensor k;            // [T, G E]
  at::Tensor product;      // [R F] activation(gate) * up
  at::Tensor rows;         // [R, D] sorted rows of the experts' input
  at::Tensor out_rows;     // [R, D] and of their output
  at::Tensor logits;       // [T, N] of the router

  at::Tensor d_normed;    // [T, D]
  at::Tensor d_branch;    // [T, D] scaled by residual_scale
  at::Tensor d_unnormed;  // [T, D] before the norm of a half's output
  at::Tensor d_q, d_k, d_v;
  at::Tensor d_q_unnormed, d_k_unnormed;
  at::Tensor d_attended;               // [T, H E]
  at::Tensor d_product, d_gate, d_up;  // [R F]
  at::Tensor d_weight;                 // [T, M]
  at::Tensor attention_workspace;

 private:
  at::Tensor weight_, low_rank_, dropped_;
};

// One micro-batch on its way through the blocks.
struct Pass {
  const ModelConfig& config;
  const Batch& batch;
  const Rotation& rotation;
  Scratch& scratch;
  LinearWorkspace linear;  // of this batch
  KvCache* cache;          // or nullptr
};

// output = x + half(x). output must not be x; it may be any buffer that no later half reads.
void attention_half_forward(const Pass& pass,
                            const Layer& layer,
                            size_t index,
                            AttentionState& state,
                            const float* x,
                            float* output);
void mlp_half_forward(const Pass& pass,
                      const Layer& layer,
                      size_t index,
                      MlpState& state,
                      const float* x,
                      float* output);

// d [T, D]: the gradient of the half's output, which becomes that of x, unless `input_grad` is
// false: then only the gradients of what the half trains are made and d is left undefined.
void attention_half_backward(const Pass& pass,
                             const Layer& layer,
                             size_t index,
                             AttentionState& state,
                             const float* x,
                             float* d,
                             bool input_grad);
void mlp_half_backward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x, float* d);

// What both halves share (block.cpp).

// The half's input: x normed into scratch, or x itself.
const float* half_input(const Pass& pass, const Norm& norm, HalfState& state, const float* x);
// Where f writes: the branch to be normed, or the output itself.
float* half_target(const Norm& out_norm, HalfState& state, float* output);
// output = x + residual_scale * norm(branch).
void half_join(
    const Pass& pass, const Norm& out_norm, HalfState& state, const float* x, float* output);
// The gradient of f's result, given that of the half's output.
const float* half_split(const Pass& pass, const Norm& out_norm, HalfState& state, const float* d);
// dx += the gradient of x, the input of a norm with `per_token` norms a token, given d, that of its
// output. The norm's own gradient is summed one packed row after another.
void norm_backward(const Pass& pass,
                   const Norm& norm,
                   int64_t per_token,
                   const float* d,
                   const float* x,
                   const float* inv_rms,
                   float* dx);
// d += the gradient of x by way of f's input.
void half_input_backward(const Pass& pass,
                         const Norm& norm,
                         HalfState& state,
                         const float* x,
                         const float* d_input,
                         float* d);

}  // namespace graft::train
