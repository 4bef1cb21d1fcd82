// The attention half of a block: o(attention(turn(q), turn(k), v)), turn = rotation of the norm.
#include "kernels/attention.h"

#include <algorithm>
#include <cstring>

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
  shape.cu_seqlens = pass.batch.cu_seqlens.data();
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
  const at::Tensor& projected;
  const at::Tensor& inv_rms;
  const at::Tensor& turned;  // where they go when they are normed; else `projected` itself turns
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
                         pass.rotation.rotary_dim(layer.rope)));
}

float* turn(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  float* turned = f32(x.projected);
  if (x.norm.size > 0) {
    turned = f32(x.turned);
    check(graft_rmsnorm_forward(f32(x.projected), f32(x.norm.weight), pass.config.rms_norm_eps,
                                pass.batch.tokens() * norms_per_token(pass, x), x.norm.size, turned,
                                f32(x.inv_rms), pass.config.norm));
  }
  rotate(pass, layer, turned, x.heads, GRAFT_ROPE_FORWARD);
  return turned;
}

// As `turn` left them: kept where they turned in place, else made again.
const float* turned_again(const Pass& pass, const LayerConfig& layer, const Turned& x) {
  return x.norm.size > 0 ? turn(pass, layer, x) : f32(x.projected);
}

// d: the gradient of the turned values, overwritten. Gives the gradient of the projected ones.
float* turn_backward(const Pass& pass,
                     const LayerConfig& layer,
                     const Turned& x,
                     float* d,
                     const at::Tensor& unnormed) {
  rotate(pass, layer, d, x.heads, GRAFT_ROPE_INVERSE);
  if (x.norm.size == 0) return d;
  float* d_projected = f32(unnormed);
  std::memset(
      d_projected, 0,
      static_cast<size_t>(pass.batch.tokens() * x.heads * pass.config.head_dim) * sizeof(float));
  norm_backward(pass, x.norm, norms_per_token(pass, x), d, f32(x.projected), f32(x.inv_rms),
                d_projected);
  return d_projected;
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
    cache.append(index, k, f32(state.v), shape.tokens);
    if (cache.positions() > 0) {
      check(graft_attention_decode(q, cache.keys(index), cache.values(index), cache.positions() + 1,
                                   shape.heads, shape.kv_heads, shape.head_dim, shape.scale,
                                   f32(state.attended), shape.window, shape.softcap));
      return;
    }
  }
  check(graft_attention_forward(&shape, q, k, f32(state.v), f32(state.attended), f32(state.lse)));
}

void* workspace_of(Scratch& scratch, size_t bytes) {
  if (!scratch.attention_workspace.defined() || scratch.attention_workspace.nbytes() < bytes) {
    scratch.attention_workspace = empty_u8(static_cast<int64_t>(bytes));
  }
  return scratch.attention_workspace.data_ptr();
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
  const float* input = half_input(pass, layer.attention_norm, state.half, x);
  float* const planes[] = {f32(state.q), f32(state.k), f32(state.v)};
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    linear_forward(layer.qkv[i], pass.linear, input, tokens, {planes + plane, parts},
                   f32_or_null(state.u_qkv[i]));
    plane += parts;
  }
  const float* q = turn(pass, shape, queries(pass, layer, state));
  const float* k = turn(pass, shape, keys(pass, layer, state));
  attend(pass, index, state, q, k);
  float* const target[] = {half_target(layer.attention_out_norm, state.half, output)};
  linear_forward(layer.o, pass.linear, f32(state.attended), tokens, target, f32_or_null(state.u_o));
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
  Scratch& scratch = pass.scratch;
  const int64_t tokens = pass.batch.tokens();
  const float* const d_out[] = {half_split(pass, layer.attention_out_norm, state.half, d)};
  linear_backward(layer.o, pass.linear, f32(state.attended), f32_or_null(state.u_o), tokens, d_out,
                  f32(scratch.d_attended), InputGrad::kOverwrite);

  const graft_attention_shape attention = attention_shape(pass, shape);
  const Turned q = queries(pass, layer, state), k = keys(pass, layer, state);
  const size_t bytes = graft_attention_workspace_bytes(&attention);
  check(graft_attention_backward(
      &attention, turned_again(pass, shape, q), turned_again(pass, shape, k), f32(state.v),
      f32(state.attended), f32(state.lse), f32(scratch.d_attended), f32(scratch.d_q),
      f32(scratch.d_k), f32(scratch.d_v), workspace_of(scratch, bytes), bytes));
  const float* const d_planes[] = {
      turn_backward(pass, shape, q, f32(scratch.d_q), scratch.d_q_unnormed),
      turn_backward(pass, shape, k, f32(scratch.d_k), scratch.d_k_unnormed), f32(scratch.d_v)};

  const float* input = half_input(pass, layer.attention_norm, state.half, x);
  float* d_input = f32(scratch.d_normed);
  InputGrad mode = input_grad ? InputGrad::kOverwrite : InputGrad::kSkip;
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    linear_backward(layer.qkv[i], pass.linear, input, f32_or_null(state.u_qkv[i]), tokens,
                    {d_planes + plane, parts}, d_input, mode);
    plane += parts;
    if (input_grad) mode = InputGrad::kAdd;
  }
  if (input_grad) half_input_backward(pass, layer.attention_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
