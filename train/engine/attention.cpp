// The attention half of a block: o(attention(turn(q), turn(k), v)), turn = rotation of the norm.
#include "kernels/attention.h"

#include "train/engine/block.h"
#include "train/engine/tensor.h"
#include "train/engine/turn.h"

namespace graft::train {
namespace {

Turned queries(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.q_norm,          pass.config.heads, GRAFT_F32,     state.q,
          pass.config.q_width(), state.q_inv_rms,   pass.scratch.q};
}

Turned keys(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.k_norm,           pass.config.kv_heads, GRAFT_F32,     state.k,
          pass.config.kv_width(), state.k_inv_rms,      pass.scratch.k};
}

void attend(
    const Pass& pass, size_t index, const AttentionState& state, const float* q, const float* k) {
  const graft_attention_shape shape = attention_shape(pass, index);
  if (pass.cache != nullptr) {
    KvCache& cache = *pass.cache;
    cache.append(index, k, state.v, shape.tokens);
    if (cache.positions() > 0) {
      check(graft_attention_decode(q, cache.keys(index), cache.values(index), cache.positions() + 1,
                                   shape.heads, shape.kv_heads, shape.head_dim, shape.scale,
                                   state.attended, shape.window, shape.softcap, GRAFT_F32,
                                   pass.device.kind, pass.device.stream));
      pass.clock.lap(Work::kAttention);
      return;
    }
  }
  check(graft_attention_forward(&shape, q, k, state.v, state.attended, state.lse, pass.device.kind,
                                pass.device.stream));
  pass.clock.lap(Work::kAttention);
}

}  // namespace

void attention_half_forward(const Pass& pass,
                            const Layer& layer,
                            size_t index,
                            AttentionState& state,
                            const float* x,
                            float* output) {
  const LayerConfig& shape = pass.config.layers[index];
  const int64_t tokens = pass.batch.tokens();
  const LinearInput input = round_input(
      layer.qkv, pass.linear, half_input(pass, layer.attention_norm, state.half, x), tokens);
  float* const planes[] = {state.q, state.k, state.v};
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    linear_forward(layer.qkv[i], pass.linear, input, tokens, {planes + plane, parts},
                   state.kept_qkv[i]);
    plane += parts;
  }
  const auto* q = static_cast<const float*>(turn(pass, shape, queries(pass, layer, state)));
  const auto* k = static_cast<const float*>(turn(pass, shape, keys(pass, layer, state)));
  attend(pass, index, state, q, k);
  float* const target[] = {half_target(layer.attention_out_norm, state.half, output)};
  linear_forward(layer.o, pass.linear,
                 round_input({&layer.o, 1}, pass.linear, state.attended, tokens), tokens, target,
                 state.kept_o);
  half_join(pass, layer.attention_out_norm, state.half, x, output);
}

void attention_half_backward(const Pass& pass,
                             const Layer& layer,
                             size_t index,
                             AttentionState& state,
                             const float* x,
                             float* d,
                             bool input_grad) {
  const LayerConfig& shape = pass.config.layers[index];
  const Scratch& scratch = pass.scratch;
  const int64_t tokens = pass.batch.tokens();
  const float* const d_out[] = {half_split(pass, layer.attention_out_norm, state.half, d)};
  linear_backward(layer.o, pass.linear, state.attended, state.kept_o, tokens, d_out,
                  scratch.d_attended, InputGrad::kOverwrite);

  const graft_attention_shape attention = attention_shape(pass, index);
  const Turned q = queries(pass, layer, state), k = keys(pass, layer, state);
  check(graft_attention_backward(
      &attention, turned_again(pass, shape, q), turned_again(pass, shape, k), state.v,
      state.attended, state.lse, scratch.d_attended, scratch.d_q, scratch.d_k, scratch.d_v,
      scratch.attention_workspace, static_cast<size_t>(scratch.attention_workspace_bytes),
      pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kAttention);
  const auto backward = [&](const Turned& turned, float* d_turned, float* unnormed) {
    return static_cast<const float*>(turn_backward(pass, shape, turned, d_turned, unnormed));
  };
  const float* const d_planes[] = {backward(q, scratch.d_q, scratch.d_q_unnormed),
                                   backward(k, scratch.d_k, scratch.d_k_unnormed), scratch.d_v};

  const float* input = half_input(pass, layer.attention_norm, state.half, x);
  float* d_input = scratch.d_normed;
  InputGrad mode = input_grad ? InputGrad::kOverwrite : InputGrad::kSkip;
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    linear_backward(layer.qkv[i], pass.linear, input, state.kept_qkv[i], tokens,
                    {d_planes + plane, parts}, d_input, mode);
    plane += parts;
    if (input_grad) mode = InputGrad::kAdd;
  }
  if (input_grad) half_input_backward(pass, layer.attention_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
