// The attention half of a block: o(attention(turn(q), turn(k), v)), turn = rotation of the norm.
#include "kernels/attention.h"

#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "train/engine/block.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

graft_attention_shape attention_shape(const Pass& pass, const LayerConfig& layer) {
  const ModelConfig& config = pass.config;
  graft_attention_shape shape{};
  shape.documents = pass.batch.documents();
  shape.cu_seqlens = pass.arrays.cu_seqlens;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.q_stride = config.q_width();
  shape.k_stride = config.kv_width();
  shape.v_stride = config.kv_width();
  shape.out_stride = config.q_width();
  shape.scale = config.attention_scale;
  shape.window = layer.window;
  shape.softcap = config.attention_cap;
  shape.tokens = pass.batch.tokens();
  return shape;
}

// Queries, or keys: `heads` heads of head_dim a token.
struct Turned {
  const Norm& norm;
  int64_t heads;
  float* projected;
  float* inv_rms;
  float* turned;  // where they go when they are normed; else `projected` itself turns
};

int64_t norms_per_token(const Pass& pass, const Turned& x) {
  return x.heads * pass.config.head_dim / x.norm.size;
}

void rotate(const Pass& pass,
            const LayerConfig& layer,
            float* x,
            int64_t heads,
            graft_rope_direction direction) {
  if (layer.rope < 0) return;
  const int64_t head_dim = pass.config.head_dim;
  check(graft_rope_apply(x, pass.batch.tokens(), heads, head_dim, heads * head_dim,
                         pass.rotation.cos(layer.rope), pass.rotation.sin(layer.rope), direction,
                         pass.rotation.rotary_dim(layer.rope), GRAFT_F32, pass.device.kind,
                         pass.device.stream));
}

float* turn(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  float* turned = x.projected;
  if (x.norm.size > 0) {
    turned = x.turned;
    check(graft_rmsnorm_forward(x.projected, f32(x.norm.weight), pass.config.rms_norm_eps,
                                pass.batch.tokens() * norms_per_token(pass, x), x.norm.size, turned,
                                x.inv_rms, pass.config.norm, GRAFT_F32, 0, pass.device.kind,
                                pass.device.stream));
  }
  rotate(pass, layer, turned, x.heads, GRAFT_ROPE_FORWARD);
  pass.clock.lap(Work::kRows);
  return turned;
}

// As `turn` left them: kept where they turned in place, else made again.
const float* turned_again(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  return x.norm.size > 0 ? turn(pass, layer, x) : x.projected;
}

// d: the gradient of the turned values, overwritten. Gives the gradient of the projected ones.
float* turn_backward(
    const Pass& pass, const LayerConfig& layer, const Turned& x, float* d, float* unnormed) {
  rotate(pass, layer, d, x.heads, GRAFT_ROPE_INVERSE);
  pass.clock.lap(Work::kRows);
  if (x.norm.size == 0) return d;
  pass.device.zero(
      unnormed,
      static_cast<size_t>(pass.batch.tokens() * x.heads * pass.config.head_dim) * sizeof(float));
  norm_backward(pass, x.norm, norms_per_token(pass, x), d, x.projected, x.inv_rms, unnormed);
  return unnormed;
}

Turned queries(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.q_norm, pass.config.heads, state.q, state.q_inv_rms, pass.scratch.q};
}

Turned keys(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.k_norm, pass.config.kv_heads, state.k, state.k_inv_rms, pass.scratch.k};
}

void attend(
    const Pass& pass, size_t index, const AttentionState& state, const float* q, const float* k) {
  const graft_attention_shape shape = attention_shape(pass, pass.config.layers[index]);
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
  const float* q = turn(pass, shape, queries(pass, layer, state));
  const float* k = turn(pass, shape, keys(pass, layer, state));
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

  const graft_attention_shape attention = attention_shape(pass, shape);
  const Turned q = queries(pass, layer, state), k = keys(pass, layer, state);
  check(graft_attention_backward(
      &attention, turned_again(pass, shape, q), turned_again(pass, shape, k), state.v,
      state.attended, state.lse, scratch.d_attended, scratch.d_q, scratch.d_k, scratch.d_v,
      scratch.attention_workspace, static_cast<size_t>(scratch.attention_workspace_bytes),
      pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kAttention);
  const float* const d_planes[] = {turn_backward(pass, shape, q, scratch.d_q, scratch.d_q_unnormed),
                                   turn_backward(pass, shape, k, scratch.d_k, scratch.d_k_unnormed),
                                   scratch.d_v};

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
