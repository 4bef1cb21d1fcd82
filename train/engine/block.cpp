#include "train/engine/block.h"

#include <algorithm>
#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

struct LinearExtent {
  int64_t rank = 0;
  int64_t in = 0;
  int64_t quantized = 0;  // values of the largest weight in 4 bits
  bool dropout = false;
};

LinearExtent linear_extent(const Model& model) {
  LinearExtent extent;
  for (const Linear* linear : model.linears()) {
    extent.rank = std::max(extent.rank, linear->lora.rank);
    extent.in = std::max(extent.in, linear->in);
    extent.dropout = extent.dropout || linear->lora.dropout > 0;
    if (linear->base.quantized()) {
      extent.quantized = std::max(extent.quantized, linear->in * linear->out);
    }
  }
  return extent;
}

std::vector<int64_t> ranks_of(const std::vector<Linear>& linears) {
  std::vector<int64_t> ranks;
  for (const Linear& linear : linears) ranks.push_back(linear.lora.rank);
  return ranks;
}

void enlarge(int64_t& size, int64_t other) {
  size = std::max(size, other);
}

void enlarge(std::vector<int64_t>& sizes, const std::vector<int64_t>& others) {
  sizes.resize(others.size());
  for (size_t i = 0; i < others.size(); ++i) enlarge(sizes[i], others[i]);
}

// u of a linear, undefined where it has no adapter.
at::Tensor make_u(int64_t rows, int64_t rank, Buffers& buffers) {
  return rank > 0 ? buffers.make({rows, rank}) : at::Tensor();
}

HalfState make_half(const ModelConfig& config, int64_t tokens, Buffers& buffers) {
  HalfState half;
  half.inv_rms = buffers.make({tokens});
  if (config.placement != Placement::kPre) {
    half.branch = buffers.make({tokens, config.hidden_size});
    half.branch_inv_rms = buffers.make({tokens});
  }
  return half;
}

AttentionState make_attention_state(const ModelConfig& config,
                                    const StateShape& shape,
                                    int64_t tokens,
                                    Buffers& buffers) {
  AttentionState state;
  state.half = make_half(config, tokens, buffers);
  state.q = buffers.make({tokens, config.q_width()});
  state.k = buffers.make({tokens, config.kv_width()});
  state.v = buffers.make({tokens, config.kv_width()});
  if (config.qk_norm != QkNorm::kNone) {
    const bool whole = config.qk_norm == QkNorm::kFull;
    state.q_inv_rms = buffers.make({tokens, whole ? 1 : config.heads});
    state.k_inv_rms = buffers.make({tokens, whole ? 1 : config.kv_heads});
  }
  state.attended = buffers.make({tokens, config.q_width()});
  state.lse = buffers.make({tokens, config.heads});
  for (const int64_t rank : shape.qkv_ranks) state.u_qkv.push_back(make_u(tokens, rank, buffers));
  state.u_o = make_u(tokens, shape.o_rank, buffers);
  return state;
}

MlpState make_mlp_state(const ModelConfig& config,
                        const StateShape& shape,
                        int64_t tokens,
                        Buffers& buffers) {
  const int64_t rows = tokens * shape.rows;
  MlpState state;
  state.half = make_half(config, tokens, buffers);
  state.gate = buffers.make({tokens * shape.inner});
  state.up = buffers.make({tokens * shape.inner});
  for (const int64_t rank : shape.in_ranks) state.u_in.push_back(make_u(rows, rank, buffers));
  state.u_down = make_u(rows, shape.down_rank, buffers);
  if (shape.experts == 0) return state;
  state.u_router = make_u(tokens, shape.router_rank, buffers);
  state.probabilities = buffers.make({tokens, shape.experts});
  state.weight = buffers.make({tokens, config.experts_per_token});
  const auto pairs = static_cast<size_t>(tokens * config.experts_per_token);
  state.expert.resize(pairs);
  state.offsets.resize(static_cast<size_t>(shape.experts) + 1);
  state.row_pair.resize(pairs);
  state.pair_row.resize(pairs);
  state.token_index.resize(pairs);
  state.row.resize(pairs);
  return state;
}

}  // namespace

at::Tensor Buffers::make(std::initializer_list<int64_t> shape) {
  at::Tensor tensor = empty_f32(shape);
  bytes_ += static_cast<int64_t>(tensor.nbytes());
  return tensor;
}

StateShape StateShape::of(const Model& model, size_t index) {
  const LayerConfig& config = model.config.layers[index];
  const Layer& layer = model.layers[index];
  StateShape shape;
  shape.rows = config.experts > 0 ? model.config.experts_per_token : 1;
  shape.inner = shape.rows * config.intermediate_size;
  shape.experts = config.experts;
  shape.qkv_ranks = ranks_of(layer.qkv);
  shape.o_rank = layer.o.lora.rank;
  if (layer.router) shape.router_rank = layer.router->lora.rank;
  for (const Mlp& mlp : layer.mlps) {
    enlarge(shape.in_ranks, ranks_of(mlp.in));
    enlarge(shape.down_rank, mlp.down.lora.rank);
  }
  return shape;
}

StateShape StateShape::of_all(const Model& model) {
  StateShape all;
  for (size_t index = 0; index < model.layers.size(); ++index) {
    const StateShape shape = of(model, index);
    enlarge(all.rows, shape.rows);
    enlarge(all.inner, shape.inner);
    enlarge(all.experts, shape.experts);
    enlarge(all.qkv_ranks, shape.qkv_ranks);
    enlarge(all.o_rank, shape.o_rank);
    enlarge(all.router_rank, shape.router_rank);
    enlarge(all.in_ranks, shape.in_ranks);
    enlarge(all.down_rank, shape.down_rank);
  }
  return all;
}

BlockState make_state(const ModelConfig& config,
                      const StateShape& shape,
                      int64_t tokens,
                      Buffers& buffers) {
  BlockState state;
  state.input = buffers.make({tokens, config.hidden_size});
  state.middle = buffers.make({tokens, config.hidden_size});
  state.attention = make_attention_state(config, shape, tokens, buffers);
  state.mlp = make_mlp_state(config, shape, tokens, buffers);
  return state;
}

Scratch::Scratch(const Model& model, int64_t tokens, Keep keep, Buffers& buffers) {
  const ModelConfig& config = model.config;
  const StateShape shape = StateShape::of_all(model);
  const LinearExtent extent = linear_extent(model);
  const int64_t hidden = config.hidden_size, row_count = tokens * shape.rows;
  const int64_t inner = tokens * shape.inner;
  const bool norms_qk = config.qk_norm != QkNorm::kNone;
  const bool routes = shape.experts > 0;
  normed = buffers.make({tokens, hidden});
  product = buffers.make({inner});
  if (norms_qk) {
    q = buffers.make({tokens, config.q_width()});
    k = buffers.make({tokens, config.kv_width()});
  }
  if (routes) {
    rows = buffers.make({row_count, hidden});
    out_rows = buffers.make({row_count, hidden});
    logits = buffers.make({tokens, shape.experts});
  }
  if (extent.quantized > 0) weight_ = buffers.make({extent.quantized});
  if (extent.dropout) dropped_ = buffers.make({row_count, extent.in});
  if (keep == Keep::kForBackward) {
    low_rank_ = make_u(row_count, extent.rank, buffers);
    d_normed = buffers.make({tokens, hidden});
    if (config.residual_scale != 1) d_branch = buffers.make({tokens, hidden});
    if (config.placement != Placement::kPre) d_unnormed = buffers.make({tokens, hidden});
    d_q = buffers.make({tokens, config.q_width()});
    d_k = buffers.make({tokens, config.kv_width()});
    d_v = buffers.make({tokens, config.kv_width()});
    if (norms_qk) {
      d_q_unnormed = buffers.make({tokens, config.q_width()});
      d_k_unnormed = buffers.make({tokens, config.kv_width()});
    }
    d_attended = buffers.make({tokens, config.q_width()});
    d_product = buffers.make({inner});
    d_gate = buffers.make({inner});
    d_up = buffers.make({inner});
    if (routes) d_weight = buffers.make({tokens, config.experts_per_token});
  }
  linear.weight = f32_or_null(weight_);
  linear.low_rank = f32_or_null(low_rank_);
  linear.dropped = f32_or_null(dropped_);
}

const float* half_input(const Pass& pass, const Norm& norm, HalfState& state, const float* x) {
  if (norm.size == 0) return x;
  float* normed = f32(pass.scratch.normed);
  check(graft_rmsnorm_forward(x, f32(norm.weight), pass.config.rms_norm_eps, pass.batch.tokens(),
                              norm.size, normed, f32(state.inv_rms), pass.config.norm));
  return normed;
}

float* half_target(const Norm& out_norm, HalfState& state, float* output) {
  return out_norm.size == 0 ? output : f32(state.branch);
}

void half_join(
    const Pass& pass, const Norm& out_norm, HalfState& state, const float* x, float* output) {
  const int64_t tokens = pass.batch.tokens();
  const int64_t values = tokens * pass.config.hidden_size;
  if (out_norm.size > 0) {
    check(graft_rmsnorm_forward(f32(state.branch), f32(out_norm.weight), pass.config.rms_norm_eps,
                                tokens, out_norm.size, output, f32(state.branch_inv_rms),
                                pass.config.norm));
  }
  if (pass.config.residual_scale != 1) {
    check(graft_scale(output, pass.config.residual_scale, values));
  }
  check(graft_add(output, x, values));
}

const float* half_split(const Pass& pass, const Norm& out_norm, HalfState& state, const float* d) {
  const int64_t tokens = pass.batch.tokens();
  const int64_t values = tokens * pass.config.hidden_size;
  const float* d_branch = d;
  if (pass.config.residual_scale != 1) {
    float* scaled = f32(pass.scratch.d_branch);
    std::memcpy(scaled, d, static_cast<size_t>(values) * sizeof(float));
    check(graft_scale(scaled, pass.config.residual_scale, values));
    d_branch = scaled;
  }
  if (out_norm.size == 0) return d_branch;
  float* unnormed = f32(pass.scratch.d_unnormed);
  std::memset(unnormed, 0, static_cast<size_t>(values) * sizeof(float));
  norm_backward(pass, out_norm, 1, d_branch, f32(state.branch), f32(state.branch_inv_rms),
                unnormed);
  return unnormed;
}

void norm_backward(const Pass& pass,
                   const Norm& norm,
                   int64_t per_token,
                   const float* d,
                   const float* x,
                   const float* inv_rms,
                   float* dx) {
  const auto backward = [&](int64_t begin, int64_t count) {
    const int64_t first = begin * per_token, values = first * norm.size;
    check(graft_rmsnorm_backward(d + values, x + values, f32(norm.weight), inv_rms + first,
                                 count * per_token, norm.size, dx + values, f32_or_null(norm.grad),
                                 pass.config.norm));
  };
  if (norm.grad.defined()) {
    for_packed_rows(pass.batch.row.data(), pass.batch.tokens(), backward);
  } else {
    backward(0, pass.batch.tokens());
  }
}

void half_input_backward(const Pass& pass,
                         const Norm& norm,
                         HalfState& state,
                         const float* x,
                         const float* d_input,
                         float* d) {
  if (norm.size == 0) {
    check(graft_add(d, d_input, pass.batch.tokens() * pass.config.hidden_size));
    return;
  }
  norm_backward(pass, norm, 1, d_input, x, f32(state.inv_rms), d);
}

}  // namespace graft::train
