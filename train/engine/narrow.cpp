// The two halves of a block in a narrow model: what lies between the residual stream and what joins
// it is bfloat16 (model.h). Norms of the residual stream, what is added to it and its gradient are
// float32.
#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "train/engine/block.h"
#include "train/engine/flash.h"
#include "train/engine/narrow_linear.h"
#include "train/engine/tensor.h"
#include "train/engine/turn.h"

namespace graft::train {
namespace {

// The half's input, normed, with room for u behind each row.
NarrowInput narrow_input(const Pass& pass,
                         const Norm& norm,
                         HalfState& state,
                         int64_t room,
                         const float* x,
                         uint16_t* to) {
  const int64_t hidden = pass.config.hidden_size, stride = hidden + room;
  if (norm.size == 0) {
    check(graft_convert(x, GRAFT_F32, hidden, to, GRAFT_BF16, stride, pass.batch.tokens(), hidden,
                        1, pass.device.kind, pass.device.stream));
  } else {
    check(graft_rmsnorm_forward_bf16(
        x, f32(norm.weight), pass.config.rms_norm_eps, pass.batch.tokens(), norm.size, to,
        state.inv_rms, pass.config.norm, stride, pass.device.kind, pass.device.stream));
  }
  pass.clock.lap(Work::kRows);
  return {to, stride};
}

// The gradient of what joins the residual stream, with room for du behind each row.
NarrowGradient narrow_gradient(const Pass& pass, int64_t room, const float* d) {
  const int64_t hidden = pass.config.hidden_size, stride = hidden + room;
  uint16_t* const to = pass.scratch.narrow.dy;
  check(graft_convert(d, GRAFT_F32, hidden, to, GRAFT_BF16, stride, pass.batch.tokens(), hidden, 1,
                      pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
  return {{}, to, stride};
}

// The gradient of a linear's parts; of one part whose rows have room, with it.
NarrowGradient gradient_of(const Linear& linear, std::span<uint16_t* const> parts, int64_t stride) {
  if (parts.size() == 1 && stride >= linear.out + linear.lora.rank) return {{}, parts[0], stride};
  return {parts, nullptr, 0};
}

Turned queries(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.q_norm,
          pass.config.heads,
          GRAFT_BF16,
          state.narrow.q,
          narrow_strides(pass.config, layer)[0],
          state.q_inv_rms,
          pass.scratch.narrow.q};
}

Turned keys(const Pass& pass, const Layer& layer, const AttentionState& state) {
  return {layer.k_norm,
          pass.config.kv_heads,
          GRAFT_BF16,
          state.narrow.k,
          narrow_strides(pass.config, layer)[1],
          state.k_inv_rms,
          pass.scratch.narrow.k};
}

graft_attention_shape narrow_shape(const Pass& pass, const Layer& layer, size_t index) {
  graft_attention_shape shape = attention_shape(pass, index);
  const NarrowStrides strides = narrow_strides(pass.config, layer);
  shape.q_stride = strides[0];
  shape.k_stride = strides[1];
  shape.v_stride = strides[2];
  shape.out_stride += layer.o.lora.rank;
  shape.type = GRAFT_BF16;
  return shape;
}

}  // namespace

void narrow_attention_forward(const Pass& pass,
                              const Layer& layer,
                              size_t index,
                              AttentionState& state,
                              const float* x,
                              float* output) {
  const LayerConfig& config = pass.config.layers[index];
  const int64_t tokens = pass.batch.tokens();
  NarrowAttention& own = state.narrow;
  const NarrowInput input =
      narrow_input(pass, layer.attention_norm, state.half, room_of(layer.qkv), x, own.x);
  void* const planes[] = {own.q, own.k, own.v};
  const NarrowStrides strides = narrow_strides(pass.config, layer);
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    narrow_forward(layer.qkv[i], pass.linear, input, tokens, {planes + plane, parts}, GRAFT_BF16,
                   parts == 1 ? strides.at(plane) : 0, own.u_qkv[i]);
    plane += parts;
  }
  const auto* const q =
      static_cast<const uint16_t*>(turn(pass, config, queries(pass, layer, state)));
  const auto* const k = static_cast<const uint16_t*>(turn(pass, config, keys(pass, layer, state)));
  const graft_attention_shape shape = narrow_shape(pass, layer, index);
  if (pass.flash != nullptr) {
    pass.flash->forward(shape, q, k, own.v, own.attended, state.lse);
  } else {
    check(graft_attention_forward(&shape, q, k, own.v, own.attended, state.lse, pass.device.kind,
                                  pass.device.stream));
  }
  pass.clock.lap(Work::kAttention);
  void* const target[] = {half_target(layer.attention_out_norm, state.half, output)};
  narrow_forward(layer.o, pass.linear, {own.attended, shape.out_stride}, tokens, target, GRAFT_F32,
                 0, own.u_o);
  half_join(pass, layer.attention_out_norm, state.half, x, output);
}

void narrow_attention_backward(const Pass& pass,
                               const Layer& layer,
                               size_t index,
                               AttentionState& state,
                               const float* x,
                               float* d,
                               bool input_grad) {
  const LayerConfig& config = pass.config.layers[index];
  const NarrowScratch& scratch = pass.scratch.narrow;
  const int64_t tokens = pass.batch.tokens(), hidden = pass.config.hidden_size;
  NarrowAttention& own = state.narrow;
  const graft_attention_shape shape = narrow_shape(pass, layer, index);
  const float* const d_out = half_split(pass, layer.attention_out_norm, state.half, d);
  narrow_backward(layer.o, pass.linear, {own.attended, shape.out_stride}, own.u_o, tokens,
                  narrow_gradient(pass, layer.o.lora.rank, d_out),
                  {scratch.d_attended, GRAFT_BF16, shape.out_stride, InputGrad::kOverwrite});

  const Turned q = queries(pass, layer, state), k = keys(pass, layer, state);
  const auto* const turned_q = static_cast<const uint16_t*>(turned_again(pass, config, q));
  const auto* const turned_k = static_cast<const uint16_t*>(turned_again(pass, config, k));
  if (pass.flash != nullptr) {
    pass.flash->backward(shape,
                         {scratch.d_q, scratch.d_k, scratch.d_v, pass.scratch.attention_workspace,
                          pass.scratch.attention_workspace_bytes},
                         turned_q, turned_k, own.v, own.attended, state.lse, scratch.d_attended);
  } else {
    check(graft_attention_backward(&shape, turned_q, turned_k, own.v, own.attended, state.lse,
                                   scratch.d_attended, scratch.d_q, scratch.d_k, scratch.d_v,
                                   pass.scratch.attention_workspace,
                                   static_cast<size_t>(pass.scratch.attention_workspace_bytes),
                                   pass.device.kind, pass.device.stream));
  }
  pass.clock.lap(Work::kAttention);
  const auto backward = [&](const Turned& x, uint16_t* d_x, uint16_t* unnormed) {
    return static_cast<uint16_t*>(turn_backward(pass, config, x, d_x, unnormed));
  };
  uint16_t* const d_planes[] = {backward(q, scratch.d_q, scratch.d_q_unnormed),
                                backward(k, scratch.d_k, scratch.d_k_unnormed), scratch.d_v};

  const NarrowInput input{own.x, hidden + room_of(layer.qkv)};
  float* const d_input = pass.scratch.d_normed;
  InputGrad mode = input_grad ? InputGrad::kOverwrite : InputGrad::kSkip;
  const NarrowStrides strides = narrow_strides(pass.config, layer);
  size_t plane = 0;
  for (size_t i = 0; i < layer.qkv.size(); ++i) {
    const size_t parts = layer.qkv[i].parts.size();
    narrow_backward(layer.qkv[i], pass.linear, input, own.u_qkv[i], tokens,
                    gradient_of(layer.qkv[i], {d_planes + plane, parts}, strides.at(plane)),
                    {d_input, GRAFT_F32, hidden, mode});
    plane += parts;
    if (input_grad) mode = InputGrad::kAdd;
  }
  if (input_grad) half_input_backward(pass, layer.attention_norm, state.half, x, d_input, d);
}

namespace {

int64_t inner_stride(const Pass& pass, const Layer& layer, size_t index) {
  return narrow_inner_stride(layer, pass.config.layers[index].intermediate_size);
}

// activation(gate) * up, with room for u behind each row.
NarrowInput product_of(const Pass& pass, const Layer& layer, size_t index, const MlpState& state) {
  return {state.narrow.product,
          pass.config.layers[index].intermediate_size + layer.mlps[0].down.lora.rank};
}

void activate(const Pass& pass, const Layer& layer, size_t index, const MlpState& state) {
  const NarrowInput product = product_of(pass, layer, index, state);
  check(graft_gate_forward(gate_of(pass), pass.batch.tokens(),
                           pass.config.layers[index].intermediate_size, state.narrow.gate,
                           state.narrow.up, inner_stride(pass, layer, index), product.x,
                           product.stride, GRAFT_BF16, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
}

// gate and up, and their product.
void inner_forward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x) {
  const Mlp& mlp = layer.mlps[0];
  NarrowMlp& own = state.narrow;
  const NarrowInput input =
      narrow_input(pass, layer.mlp_norm, state.half, room_of(mlp.in), x, own.x);
  void* const planes[] = {own.gate, own.up};
  size_t plane = 0;
  for (size_t i = 0; i < mlp.in.size(); ++i) {
    const size_t parts = mlp.in[i].parts.size();
    narrow_forward(mlp.in[i], pass.linear, input, pass.batch.tokens(), {planes + plane, parts},
                   GRAFT_BF16, parts == 1 ? inner_stride(pass, layer, index) : 0, own.u_in[i]);
    plane += parts;
  }
  activate(pass, layer, index, state);
}

void down_forward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, float* target) {
  void* const plane[] = {target};
  narrow_forward(layer.mlps[0].down, pass.linear, product_of(pass, layer, index, state),
                 pass.batch.tokens(), plane, GRAFT_F32, 0, state.narrow.u_down);
}

}  // namespace

void narrow_mlp_forward(const Pass& pass,
                        const Layer& layer,
                        size_t index,
                        MlpState& state,
                        const float* x,
                        float* output) {
  inner_forward(pass, layer, index, state, x);
  down_forward(pass, layer, index, state, half_target(layer.mlp_out_norm, state.half, output));
  half_join(pass, layer.mlp_out_norm, state.half, x, output);
}

void narrow_mlp_again(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x) {
  inner_forward(pass, layer, index, state, x);
  if (layer.mlp_out_norm.size == 0) return;
  down_forward(pass, layer, index, state, state.half.branch);
  norm_branch(pass, layer.mlp_out_norm, state.half, pass.scratch.normed);
}

void narrow_mlp_backward(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x, float* d) {
  const Mlp& mlp = layer.mlps[0];
  const NarrowScratch& scratch = pass.scratch.narrow;
  const int64_t tokens = pass.batch.tokens(), hidden = pass.config.hidden_size;
  const int64_t inner = pass.config.layers[index].intermediate_size;
  NarrowMlp& own = state.narrow;
  const float* const d_out = half_split(pass, layer.mlp_out_norm, state.half, d);
  narrow_backward(mlp.down, pass.linear, product_of(pass, layer, index, state), own.u_down, tokens,
                  narrow_gradient(pass, mlp.down.lora.rank, d_out),
                  {scratch.d_product, GRAFT_BF16, inner, InputGrad::kOverwrite});
  // In place: nothing reads gate and up any more.
  const int64_t stride = inner_stride(pass, layer, index);
  check(graft_gate_backward(gate_of(pass), tokens, inner, scratch.d_product, inner, own.gate,
                            own.up, stride, own.gate, own.up, GRAFT_BF16, pass.device.kind,
                            pass.device.stream));
  pass.clock.lap(Work::kRows);

  const NarrowInput input{own.x, hidden + room_of(mlp.in)};
  float* const d_input = pass.scratch.d_normed;
  uint16_t* const planes[] = {own.gate, own.up};
  size_t plane = 0;
  for (size_t i = 0; i < mlp.in.size(); ++i) {
    const size_t parts = mlp.in[i].parts.size();
    narrow_backward(mlp.in[i], pass.linear, input, own.u_in[i], tokens,
                    gradient_of(mlp.in[i], {planes + plane, parts}, stride),
                    {d_input, GRAFT_F32, hidden, i == 0 ? InputGrad::kOverwrite : InputGrad::kAdd});
    plane += parts;
  }
  half_input_backward(pass, layer.mlp_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
