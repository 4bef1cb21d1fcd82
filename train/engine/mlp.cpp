// The MLP half of a block: down(activation(gate) * up), of one MLP or of a mixture of experts.
//
// With experts the tokens' rows are sorted by expert (kernels/moe.h) and the weights of the router
// multiply the rows before `down`, which is linear: what `down` gives need not be kept.
#include "kernels/moe.h"
#include "kernels/swiglu.h"
#include "train/engine/block.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// Of Activation.
graft_gate gate_of(const Pass& pass) {
  return pass.config.activation == Activation::kSilu ? GRAFT_SILU : GRAFT_GELU_TANH;
}

graft_moe_shape moe_shape(const Pass& pass, const LayerConfig& layer) {
  return {pass.batch.tokens(), layer.experts, pass.config.experts_per_token,
          pass.config.renormalises_experts ? 1 : 0};
}

int64_t row_count(const Pass& pass, const LayerConfig& layer) {
  return pass.batch.tokens() * (layer.experts > 0 ? pass.config.experts_per_token : 1);
}

// product = activation(gate) * up.
void activate(const Pass& pass,
              const LayerConfig& layer,
              const float* gate,
              const float* up,
              float* product) {
  const int64_t inner = layer.intermediate_size;
  check(graft_gate_forward(gate_of(pass), row_count(pass, layer), inner, gate, up, inner, product,
                           inner, GRAFT_F32, GRAFT_CPU, nullptr));
}

// Rows [begin, begin + count) of the sorted rows, which are one MLP's.
struct RowRange {
  int64_t begin, count;
};

// Calls body(mlp, its rows, the linears' workspace for them); not for experts without rows.
template <typename Body>
void for_mlps(const Pass& pass, const Layer& layer, const MlpState& state, const Body& body) {
  if (!layer.router) {
    body(layer.mlps[0], RowRange{0, pass.batch.tokens()}, pass.linear);
    return;
  }
  for (size_t expert = 0; expert < layer.mlps.size(); ++expert) {
    const int64_t begin = state.offsets[expert];
    const int64_t count = state.offsets[expert + 1] - begin;
    if (count == 0) continue;
    LinearWorkspace workspace = pass.linear;
    workspace.token_index = state.token_index.data() + begin;
    workspace.row = state.row.data() + begin;
    body(layer.mlps[expert], RowRange{begin, count}, workspace);
  }
}

// Row `begin` of a linear's u, whose rows are of its own rank.
float* u_at(const at::Tensor& u, const Linear& linear, int64_t begin) {
  return u.defined() ? f32(u) + begin * linear.lora.rank : nullptr;
}

void route(const Pass& pass,
           const Layer& layer,
           const LayerConfig& config,
           MlpState& state,
           const float* input) {
  const graft_moe_shape shape = moe_shape(pass, config);
  float* const logits[] = {f32(pass.scratch.logits)};
  linear_forward(*layer.router, pass.linear, input, shape.tokens, logits,
                 f32_or_null(state.u_router));
  check(graft_moe_route(&shape, logits[0], f32(state.probabilities), state.expert.data(),
                        f32(state.weight)));
  check(graft_moe_sort(&shape, state.expert.data(), state.offsets.data(), state.row_pair.data(),
                       state.pair_row.data()));
  for (int64_t row = 0; row < shape.tokens * shape.top; ++row) {
    const auto at = static_cast<size_t>(row);
    const int64_t token = state.row_pair[at] / shape.top;
    state.token_index[at] = pass.linear.token_index[token];
    state.row[at] = pass.linear.row[token];
  }
}

void route_backward(const Pass& pass,
                    const Layer& layer,
                    const LayerConfig& config,
                    const MlpState& state,
                    const float* input,
                    float* d_input) {
  const graft_moe_shape shape = moe_shape(pass, config);
  float* d_logits = f32(pass.scratch.logits);
  check(graft_moe_route_backward(&shape, f32(state.probabilities), state.expert.data(),
                                 f32(state.weight), f32(pass.scratch.d_weight), d_logits));
  const float* const planes[] = {d_logits};
  linear_backward(*layer.router, pass.linear, input, f32_or_null(state.u_router), shape.tokens,
                  planes, d_input, InputGrad::kAdd);
}

// The MLPs' input: every token's row, or the sorted rows of the experts.
const float* mlp_rows(const Pass& pass,
                      const LayerConfig& config,
                      const MlpState& state,
                      const float* input) {
  if (config.experts == 0) return input;
  const graft_moe_shape shape = moe_shape(pass, config);
  float* rows = f32(pass.scratch.rows);
  check(graft_moe_gather(&shape, input, state.row_pair.data(), pass.config.hidden_size, rows));
  return rows;
}

}  // namespace

void mlp_half_forward(const Pass& pass,
                      const Layer& layer,
                      size_t index,
                      MlpState& state,
                      const float* x,
                      float* output) {
  const LayerConfig& config = pass.config.layers[index];
  const graft_moe_shape shape = moe_shape(pass, config);
  const int64_t hidden = pass.config.hidden_size, inner = config.intermediate_size;
  const bool routed = config.experts > 0;
  float *gate = f32(state.gate), *up = f32(state.up), *product = f32(pass.scratch.product);
  const float* input = half_input(pass, layer.mlp_norm, state.half, x);
  if (routed) route(pass, layer, config, state, input);
  const float* rows = mlp_rows(pass, config, state, input);
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    float* const planes[] = {gate + range.begin * inner, up + range.begin * inner};
    size_t plane = 0;
    for (size_t i = 0; i < mlp.in.size(); ++i) {
      const size_t parts = mlp.in[i].parts.size();
      linear_forward(mlp.in[i], linear, rows + range.begin * hidden, range.count,
                     {planes + plane, parts}, u_at(state.u_in[i], mlp.in[i], range.begin));
      plane += parts;
    }
  });
  activate(pass, config, gate, up, product);
  float* target = half_target(layer.mlp_out_norm, state.half, output);
  float* out_rows = target;
  if (routed) {
    check(
        graft_moe_weigh(&shape, product, state.row_pair.data(), f32(state.weight), inner, product));
    out_rows = f32(pass.scratch.out_rows);
  }
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    float* const plane[] = {out_rows + range.begin * hidden};
    linear_forward(mlp.down, linear, product + range.begin * inner, range.count, plane,
                   u_at(state.u_down, mlp.down, range.begin));
  });
  if (routed) {
    check(graft_moe_combine(&shape, out_rows, state.pair_row.data(), hidden, target));
  }
  half_join(pass, layer.mlp_out_norm, state.half, x, output);
}

void mlp_half_backward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x, float* d) {
  const LayerConfig& config = pass.config.layers[index];
  const graft_moe_shape shape = moe_shape(pass, config);
  const int64_t hidden = pass.config.hidden_size, inner = config.intermediate_size;
  const bool routed = config.experts > 0;
  Scratch& scratch = pass.scratch;
  float *gate = f32(state.gate), *up = f32(state.up), *product = f32(scratch.product);
  float *d_gate = f32(scratch.d_gate), *d_up = f32(scratch.d_up);
  float* d_product = f32(scratch.d_product);

  const float* d_rows = half_split(pass, layer.mlp_out_norm, state.half, d);
  activate(pass, config, gate, up, product);
  const float* down_input = product;
  if (routed) {
    // d_gate is free until the activation's backward pass.
    check(
        graft_moe_weigh(&shape, product, state.row_pair.data(), f32(state.weight), inner, d_gate));
    down_input = d_gate;
    float* d_out_rows = f32(scratch.out_rows);
    check(graft_moe_gather(&shape, d_rows, state.row_pair.data(), hidden, d_out_rows));
    d_rows = d_out_rows;
  }
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    const float* const plane[] = {d_rows + range.begin * hidden};
    linear_backward(mlp.down, linear, down_input + range.begin * inner,
                    u_at(state.u_down, mlp.down, range.begin), range.count, plane,
                    d_product + range.begin * inner, InputGrad::kOverwrite);
  });
  if (routed) {
    check(graft_moe_weigh_backward(&shape, d_product, product, state.row_pair.data(),
                                   f32(state.weight), inner, d_product, f32(scratch.d_weight)));
  }
  check(graft_gate_backward(gate_of(pass), row_count(pass, config), inner, d_product, inner, gate,
                            up, inner, d_gate, d_up, GRAFT_F32, GRAFT_CPU, nullptr));

  const float* input = half_input(pass, layer.mlp_norm, state.half, x);
  const float* rows = mlp_rows(pass, config, state, input);
  float* d_input = f32(scratch.d_normed);
  float* d_in_rows = routed ? f32(scratch.out_rows) : d_input;
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    const float* const planes[] = {d_gate + range.begin * inner, d_up + range.begin * inner};
    size_t plane = 0;
    for (size_t i = 0; i < mlp.in.size(); ++i) {
      const size_t parts = mlp.in[i].parts.size();
      linear_backward(mlp.in[i], linear, rows + range.begin * hidden,
                      u_at(state.u_in[i], mlp.in[i], range.begin), range.count,
                      {planes + plane, parts}, d_in_rows + range.begin * hidden,
                      i == 0 ? InputGrad::kOverwrite : InputGrad::kAdd);
      plane += parts;
    }
  });
  if (routed) {
    check(graft_moe_combine(&shape, d_in_rows, state.pair_row.data(), hidden, d_input));
    route_backward(pass, layer, config, state, input, d_input);
  }
  half_input_backward(pass, layer.mlp_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
