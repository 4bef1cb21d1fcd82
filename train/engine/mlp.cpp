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
                           inner, GRAFT_F32, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
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
    const int64_t begin = state.sorted.offsets[expert];
    const int64_t count = state.sorted.offsets[expert + 1] - begin;
    if (count == 0) continue;
    LinearWorkspace workspace = pass.linear;
    workspace.token_index = state.token_index + begin;
    workspace.row = state.sorted.row + begin;
    body(layer.mlps[expert], RowRange{begin, count}, workspace);
  }
}

// What a linear keeps of the rows from `begin` on.
float* kept_at(float* kept, const Linear& linear, int64_t begin) {
  return kept != nullptr ? kept + begin * linear.kept_width() : nullptr;
}

// The packed rows of the sorted rows, and what the host has to know of their order.
void sort_on_host(const Pass& pass, const graft_moe_shape& shape, const MlpState& state) {
  const Device& device = pass.device;
  const SortedRows& sorted = state.sorted;
  const int64_t pairs = shape.tokens * shape.top;
  if (!device.is_host()) {
    device.copy(sorted.offsets, state.offsets,
                static_cast<size_t>(shape.experts + 1) * sizeof(int32_t));
    device.copy(sorted.row_pair, state.row_pair, static_cast<size_t>(pairs) * sizeof(int32_t));
    device.wait();
  }
  for (int64_t at = 0; at < pairs; ++at) {
    const auto token = static_cast<size_t>(sorted.row_pair[at] / shape.top);
    sorted.token_index[at] = pass.batch.token_index[token];
    sorted.row[at] = pass.batch.row[token];
  }
  if (device.is_host()) return;
  device.copy(state.token_index, sorted.token_index, static_cast<size_t>(pairs) * sizeof(int64_t));
}

void route(const Pass& pass,
           const Layer& layer,
           const LayerConfig& config,
           MlpState& state,
           const float* input) {
  const graft_moe_shape shape = moe_shape(pass, config);
  float* const logits[] = {pass.scratch.logits};
  linear_forward(*layer.router, pass.linear,
                 round_input({&*layer.router, 1}, pass.linear, input, shape.tokens), shape.tokens,
                 logits, state.kept_router);
  check(graft_moe_route(&shape, logits[0], state.probabilities, state.expert, state.weight,
                        pass.device.kind, pass.device.stream));
  check(graft_moe_sort(&shape, state.expert, state.offsets, state.row_pair, state.pair_row,
                       pass.device.kind, pass.device.stream));
  sort_on_host(pass, shape, state);
  pass.clock.lap(Work::kRows);
}

void route_backward(const Pass& pass,
                    const Layer& layer,
                    const LayerConfig& config,
                    const MlpState& state,
                    const float* input,
                    float* d_input) {
  const graft_moe_shape shape = moe_shape(pass, config);
  float* d_logits = pass.scratch.logits;
  check(graft_moe_route_backward(&shape, state.probabilities, state.expert, state.weight,
                                 pass.scratch.d_weight, d_logits, pass.device.kind,
                                 pass.device.stream));
  pass.clock.lap(Work::kRows);
  const float* const planes[] = {d_logits};
  linear_backward(*layer.router, pass.linear, input, state.kept_router, shape.tokens, planes,
                  d_input, InputGrad::kAdd);
}

// The MLPs' input: every token's row, or the sorted rows of the experts.
const float* mlp_rows(const Pass& pass,
                      const LayerConfig& config,
                      const MlpState& state,
                      const float* input) {
  if (config.experts == 0) return input;
  const graft_moe_shape shape = moe_shape(pass, config);
  float* rows = pass.scratch.rows;
  check(graft_moe_gather(&shape, input, state.row_pair, pass.config.hidden_size, rows,
                         pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
  return rows;
}

// gate and up.
void inner_forward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x) {
  const LayerConfig& config = pass.config.layers[index];
  const int64_t hidden = pass.config.hidden_size, inner = config.intermediate_size;
  const float* input = half_input(pass, layer.mlp_norm, state.half, x);
  if (config.experts > 0) route(pass, layer, config, state, input);
  const float* rows = mlp_rows(pass, config, state, input);
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    float* const planes[] = {state.gate + range.begin * inner, state.up + range.begin * inner};
    const LinearInput in = round_input(mlp.in, linear, rows + range.begin * hidden, range.count);
    size_t plane = 0;
    for (size_t i = 0; i < mlp.in.size(); ++i) {
      const size_t parts = mlp.in[i].parts.size();
      linear_forward(mlp.in[i], linear, in, range.count, {planes + plane, parts},
                     kept_at(state.kept_in[i], mlp.in[i], range.begin));
      plane += parts;
    }
  });
}

// target = down(activation(gate) * up).
void down_forward(
    const Pass& pass, const Layer& layer, size_t index, const MlpState& state, float* target) {
  const LayerConfig& config = pass.config.layers[index];
  const graft_moe_shape shape = moe_shape(pass, config);
  const int64_t hidden = pass.config.hidden_size, inner = config.intermediate_size;
  const bool routed = config.experts > 0;
  float* product = pass.scratch.product;
  activate(pass, config, state.gate, state.up, product);
  float* out_rows = target;
  if (routed) {
    check(graft_moe_weigh(&shape, product, state.row_pair, state.weight, inner, product,
                          pass.device.kind, pass.device.stream));
    pass.clock.lap(Work::kRows);
    out_rows = pass.scratch.out_rows;
  }
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    float* const plane[] = {out_rows + range.begin * hidden};
    const LinearInput in =
        round_input({&mlp.down, 1}, linear, product + range.begin * inner, range.count);
    linear_forward(mlp.down, linear, in, range.count, plane,
                   kept_at(state.kept_down, mlp.down, range.begin));
  });
  if (!routed) return;
  check(graft_moe_combine(&shape, out_rows, state.pair_row, hidden, target, pass.device.kind,
                          pass.device.stream));
  pass.clock.lap(Work::kRows);
}

}  // namespace

void mlp_half_forward(const Pass& pass,
                      const Layer& layer,
                      size_t index,
                      MlpState& state,
                      const float* x,
                      float* output) {
  inner_forward(pass, layer, index, state, x);
  down_forward(pass, layer, index, state, half_target(layer.mlp_out_norm, state.half, output));
  half_join(pass, layer.mlp_out_norm, state.half, x, output);
}

void mlp_half_again(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x) {
  inner_forward(pass, layer, index, state, x);
  if (layer.mlp_out_norm.size == 0) return;
  down_forward(pass, layer, index, state, state.half.branch);
  norm_branch(pass, layer.mlp_out_norm, state.half, pass.scratch.normed);
}

void mlp_half_backward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x, float* d) {
  const LayerConfig& config = pass.config.layers[index];
  const graft_moe_shape shape = moe_shape(pass, config);
  const int64_t hidden = pass.config.hidden_size, inner = config.intermediate_size;
  const bool routed = config.experts > 0;
  const Scratch& scratch = pass.scratch;
  float *gate = state.gate, *up = state.up, *product = scratch.product;
  float* d_product = scratch.d_product;

  const float* d_rows = half_split(pass, layer.mlp_out_norm, state.half, d);
  activate(pass, config, gate, up, product);
  const float* down_input = product;
  if (routed) {
    check(graft_moe_weigh(&shape, product, state.row_pair, state.weight, inner, scratch.weighed,
                          pass.device.kind, pass.device.stream));
    down_input = scratch.weighed;
    float* d_out_rows = scratch.out_rows;
    check(graft_moe_gather(&shape, d_rows, state.row_pair, hidden, d_out_rows, pass.device.kind,
                           pass.device.stream));
    pass.clock.lap(Work::kRows);
    d_rows = d_out_rows;
  }
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    const float* const plane[] = {d_rows + range.begin * hidden};
    linear_backward(mlp.down, linear, down_input + range.begin * inner,
                    kept_at(state.kept_down, mlp.down, range.begin), range.count, plane,
                    d_product + range.begin * inner, InputGrad::kOverwrite);
  });
  if (routed) {
    check(graft_moe_weigh_backward(&shape, d_product, product, state.row_pair, state.weight, inner,
                                   d_product, scratch.d_weight, pass.device.kind,
                                   pass.device.stream));
  }
  // In place: nothing reads gate and up any more.
  check(graft_gate_backward(gate_of(pass), row_count(pass, config), inner, d_product, inner, gate,
                            up, inner, gate, up, GRAFT_F32, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);

  const float* input = half_input(pass, layer.mlp_norm, state.half, x);
  const float* rows = mlp_rows(pass, config, state, input);
  float* d_input = scratch.d_normed;
  float* d_in_rows = routed ? scratch.out_rows : d_input;
  for_mlps(pass, layer, state, [&](const Mlp& mlp, RowRange range, const LinearWorkspace& linear) {
    const float* const planes[] = {gate + range.begin * inner, up + range.begin * inner};
    size_t plane = 0;
    for (size_t i = 0; i < mlp.in.size(); ++i) {
      const size_t parts = mlp.in[i].parts.size();
      linear_backward(mlp.in[i], linear, rows + range.begin * hidden,
                      kept_at(state.kept_in[i], mlp.in[i], range.begin), range.count,
                      {planes + plane, parts}, d_in_rows + range.begin * hidden,
                      i == 0 ? InputGrad::kOverwrite : InputGrad::kAdd);
      plane += parts;
    }
  });
  if (routed) {
    check(graft_moe_combine(&shape, d_in_rows, state.pair_row, hidden, d_input, pass.device.kind,
                            pass.device.stream));
    pass.clock.lap(Work::kRows);
    route_backward(pass, layer, config, state, input, d_input);
  }
  half_input_backward(pass, layer.mlp_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
