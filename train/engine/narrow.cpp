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
#include "train/model/extended.h"

namespace graft::train {
namespace {

// The half's input, normed, with room for u behind each row.
NarrowRows narrow_input(
    const Pass& pass, const Norm& norm, HalfState& state, const float* x, const NarrowRows& to) {
  const int64_t hidden = pass.config.hidden_size;
  if (norm.size == 0) {
    check(graft_convert(x, GRAFT_F32, hidden, to.values, GRAFT_BF16, to.stride, pass.batch.tokens(),
                        hidden, 1, pass.device.kind, pass.device.stream));
  } else {
    check(graft_rmsnorm_forward_bf16(
        x, f32(norm.weight), pass.config.rms_norm_eps, pass.batch.tokens(), norm.size, to.values,
        state.inv_rms, pass.config.norm, to.stride, pass.device.kind, pass.device.stream));
  }
  pass.clock.lap(Work::kRows);
  return to;
}

// The gradient of what joins the residual stream, which `last` gave, with room for du.
NarrowRows narrow_gradient(const Pass& pass, const Linear& last, const float* d) {
  const NarrowRows to{pass.scratch.narrow.dy, shape_of({&last, 1}).wide()};
  check(graft_convert(d, GRAFT_F32, last.out, to.values, GRAFT_BF16, to.stride, pass.batch.tokens(),
                      last.out, 1, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
  return to;
}

// output = x + residual_scale * f(x), of which `last` gives f's result: in its own product, but
// where the result is normed.
void join(const Pass& pass,
          const Linear& last,
          const NarrowRows& input,
          const Norm& out_norm,
          HalfState& state,
          const float* x,
          float* output) {
  const bool normed = out_norm.size > 0;
  const NarrowResult result{normed ? state.branch : output, GRAFT_F32, last.out};
  const NarrowSum sum = normed ? NarrowSum{} : NarrowSum{x, pass.config.residual_scale};
  narrow_forward({&last, 1}, pass.linear, input, pass.batch.tokens(), result, sum);
  if (normed) half_join(pass, out_norm, state, x, output);
}

// Between bfloat16 rows.
void copy_rows(const Pass& pass, const NarrowRows& from, const NarrowRows& to, int64_t columns) {
  check(graft_convert(from.values, GRAFT_BF16, from.stride, to.values, GRAFT_BF16, to.stride,
                      pass.batch.tokens(), columns, 1, pass.device.kind, pass.device.stream));
}

// q, k and v as columns of the rows that one product gives.
struct Columns {
  Columns(const Pass& pass, const Layer& layer, uint16_t* rows)
      : stride(shape_of(layer.qkv).wide()),
        q(rows),
        k(q + pass.config.q_width()),
        v(k + pass.config.kv_width()) {}
  int64_t stride;
  uint16_t *q, *k, *v;
};

Turned queries(const Pass& pass, const Layer& layer, const AttentionState& state) {
  const Columns own(pass, layer, state.narrow.qkv);
  return {layer.q_norm, pass.config.heads, GRAFT_BF16,           own.q,
          own.stride,   state.q_inv_rms,   pass.scratch.narrow.q};
}

Turned keys(const Pass& pass, const Layer& layer, const AttentionState& state) {
  const Columns own(pass, layer, state.narrow.qkv);
  return {layer.k_norm, pass.config.kv_heads, GRAFT_BF16,           own.k,
          own.stride,   state.k_inv_rms,      pass.scratch.narrow.k};
}

graft_attention_shape narrow_shape(const Pass& pass, const Layer& layer, size_t index) {
  graft_attention_shape shape = attention_shape(pass, index);
  shape.v_stride = shape_of(layer.qkv).wide();
  // Normed ones are turned elsewhere, without gaps.
  if (layer.q_norm.size == 0) shape.q_stride = shape.v_stride;
  if (layer.k_norm.size == 0) shape.k_stride = shape.v_stride;
  shape.out_stride = shape_of({&layer.o, 1}).stride();
  shape.type = GRAFT_BF16;
  return shape;
}

// The normed input of the half, and what attention gave, with u behind their rows.
NarrowRows input_of(const Layer& layer, const AttentionState& state) {
  return {state.narrow.x, shape_of(layer.qkv).stride()};
}
NarrowRows attended_of(const Layer& layer, const AttentionState& state) {
  return {state.narrow.attended, shape_of({&layer.o, 1}).stride()};
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
  const Columns own(pass, layer, state.narrow.qkv);
  const NarrowRows input =
      narrow_input(pass, layer.attention_norm, state.half, x, input_of(layer, state));
  narrow_forward(layer.qkv, pass.linear, input, tokens, {own.q, GRAFT_BF16, own.stride});
  const auto* const q =
      static_cast<const uint16_t*>(turn(pass, config, queries(pass, layer, state)));
  const auto* const k = static_cast<const uint16_t*>(turn(pass, config, keys(pass, layer, state)));
  const graft_attention_shape shape = narrow_shape(pass, layer, index);
  const NarrowRows attended = attended_of(layer, state);
  if (pass.flash != nullptr) {
    pass.flash->forward(shape, {q, k, own.v, attended.values, state.lse});
  } else {
    check(graft_attention_forward(&shape, q, k, own.v, attended.values, state.lse, pass.device.kind,
                                  pass.device.stream));
  }
  pass.clock.lap(Work::kAttention);
  join(pass, layer.o, attended, layer.attention_out_norm, state.half, x, output);
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
  const graft_attention_shape shape = narrow_shape(pass, layer, index);
  const NarrowRows attended = attended_of(layer, state);
  const float* const d_out = half_split(pass, layer.attention_out_norm, state.half, d);
  narrow_backward({&layer.o, 1}, pass.linear, attended, tokens,
                  narrow_gradient(pass, layer.o, d_out),
                  {scratch.d_attended, GRAFT_BF16, shape.out_stride});

  const Turned q = queries(pass, layer, state), k = keys(pass, layer, state);
  const auto* const turned_q = static_cast<const uint16_t*>(turned_again(pass, config, q));
  const auto* const turned_k = static_cast<const uint16_t*>(turned_again(pass, config, k));
  const Columns own(pass, layer, state.narrow.qkv), d_own(pass, layer, scratch.d_qkv);
  uint16_t* const d_q = q.norm.size > 0 ? scratch.d_q : d_own.q;
  uint16_t* const d_k = k.norm.size > 0 ? scratch.d_k : d_own.k;
  if (pass.flash != nullptr) {
    pass.flash->backward(shape, {turned_q, turned_k, own.v, attended.values, state.lse},
                         scratch.d_attended,
                         {d_q, d_k, d_own.v, pass.scratch.attention_workspace,
                          pass.scratch.attention_workspace_bytes});
  } else {
    check(graft_attention_backward(&shape, turned_q, turned_k, own.v, attended.values, state.lse,
                                   scratch.d_attended, d_q, d_k, d_own.v,
                                   pass.scratch.attention_workspace,
                                   static_cast<size_t>(pass.scratch.attention_workspace_bytes),
                                   pass.device.kind, pass.device.stream));
  }
  pass.clock.lap(Work::kAttention);
  const auto backward = [&](const Turned& turned, uint16_t* d_turned, uint16_t* unnormed,
                            uint16_t* to) {
    auto* const d_projected =
        static_cast<uint16_t*>(turn_backward(pass, config, turned, d_turned, unnormed));
    if (d_projected == to) return;
    const int64_t width = turned.heads * pass.config.head_dim;
    copy_rows(pass, {d_projected, width}, {to, d_own.stride}, width);
    pass.clock.lap(Work::kRows);
  };
  backward(q, d_q, scratch.d_q_unnormed, d_own.q);
  backward(k, d_k, scratch.d_k_unnormed, d_own.k);

  float* const d_input = input_grad ? pass.scratch.d_normed : nullptr;
  narrow_backward(layer.qkv, pass.linear, input_of(layer, state), tokens,
                  {scratch.d_qkv, d_own.stride}, {d_input, GRAFT_F32, hidden});
  if (input_grad) half_input_backward(pass, layer.attention_norm, state.half, x, d_input, d);
}

namespace {

// activation(gate) * up, with u of down behind each row.
NarrowRows product_of(const Mlp& mlp, const MlpState& state) {
  return {state.narrow.product, shape_of({&mlp.down, 1}).stride()};
}

NarrowRows u_down_of(const Mlp& mlp, const MlpState& state) {
  return {state.narrow.u_down, mlp.down.lora.rank};
}
NarrowRows behind(const NarrowRows& rows, int64_t columns) {
  return {rows.values + columns, rows.stride};
}

// gate and up, and their product.
void inner_forward(const Pass& pass, const Layer& layer, MlpState& state, const float* x) {
  const Mlp& mlp = layer.mlps[0];
  const GroupShape in = shape_of(mlp.in);
  uint16_t* const gate = state.narrow.inner;
  const int64_t tokens = pass.batch.tokens(), inner = mlp.down.in;
  const NarrowRows input =
      narrow_input(pass, layer.mlp_norm, state.half, x, {state.narrow.x, in.stride()});
  narrow_forward(mlp.in, pass.linear, input, tokens, {gate, GRAFT_BF16, in.wide()});
  const NarrowRows product = product_of(mlp, state);
  check(graft_gate_forward(gate_of(pass), tokens, inner, gate, gate + inner, in.wide(),
                           product.values, product.stride, GRAFT_BF16, pass.device.kind,
                           pass.device.stream));
  pass.clock.lap(Work::kRows);
}

}  // namespace

void narrow_mlp_forward(
    const Pass& pass, const Layer& layer, size_t, MlpState& state, const float* x, float* output) {
  const Mlp& mlp = layer.mlps[0];
  inner_forward(pass, layer, state, x);
  join(pass, mlp.down, product_of(mlp, state), layer.mlp_out_norm, state.half, x, output);
  if (state.narrow.u_down != nullptr) {
    copy_rows(pass, behind(product_of(mlp, state), mlp.down.in), u_down_of(mlp, state),
              mlp.down.lora.rank);
    pass.clock.lap(Work::kAdapters);
  }
}

void narrow_mlp_again(
    const Pass& pass, const Layer& layer, size_t, MlpState& state, const float* x) {
  const Mlp& mlp = layer.mlps[0];
  inner_forward(pass, layer, state, x);
  if (state.narrow.u_down != nullptr) {
    copy_rows(pass, u_down_of(mlp, state), behind(product_of(mlp, state), mlp.down.in),
              mlp.down.lora.rank);
    pass.clock.lap(Work::kAdapters);
  }
  if (layer.mlp_out_norm.size == 0) return;
  narrow_forward({&mlp.down, 1}, pass.linear, product_of(mlp, state), pass.batch.tokens(),
                 {state.half.branch, GRAFT_F32, mlp.down.out});
  norm_branch(pass, layer.mlp_out_norm, state.half, pass.scratch.normed);
}

void narrow_mlp_backward(
    const Pass& pass, const Layer& layer, size_t, MlpState& state, const float* x, float* d) {
  const Mlp& mlp = layer.mlps[0];
  const NarrowScratch& scratch = pass.scratch.narrow;
  const GroupShape in = shape_of(mlp.in);
  const int64_t tokens = pass.batch.tokens(), hidden = pass.config.hidden_size;
  const int64_t inner = mlp.down.in;
  const float* const d_out = half_split(pass, layer.mlp_out_norm, state.half, d);
  narrow_backward({&mlp.down, 1}, pass.linear, product_of(mlp, state), tokens,
                  narrow_gradient(pass, mlp.down, d_out), {scratch.d_product, GRAFT_BF16, inner});
  // In place: nothing reads gate and up any more.
  uint16_t* const gate = state.narrow.inner;
  uint16_t* const up = gate + inner;
  check(graft_gate_backward(gate_of(pass), tokens, inner, scratch.d_product, inner, gate, up,
                            in.wide(), gate, up, GRAFT_BF16, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);

  float* const d_input = pass.scratch.d_normed;
  narrow_backward(mlp.in, pass.linear, {state.narrow.x, in.stride()}, tokens, {gate, in.wide()},
                  {d_input, GRAFT_F32, hidden});
  half_input_backward(pass, layer.mlp_norm, state.half, x, d_input, d);
}

}  // namespace graft::train
