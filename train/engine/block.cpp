#include "train/engine/block.h"

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "train/engine/tensor.h"

namespace graft::train {

graft_gate gate_of(const Pass& pass) {
  return pass.config.activation == Activation::kSilu ? GRAFT_SILU : GRAFT_GELU_TANH;
}

const float* half_input(const Pass& pass, const Norm& norm, HalfState& state, const float* x) {
  if (norm.size == 0) return x;
  float* normed = pass.scratch.normed;
  check(graft_rmsnorm_forward(x, f32(norm.weight), pass.config.rms_norm_eps, pass.batch.tokens(),
                              norm.size, normed, state.inv_rms, pass.config.norm, GRAFT_F32, 0,
                              pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
  return normed;
}

float* half_target(const Norm& out_norm, HalfState& state, float* output) {
  return out_norm.size == 0 ? output : state.branch;
}

void norm_branch(const Pass& pass, const Norm& out_norm, HalfState& state, float* output) {
  check(graft_rmsnorm_forward(state.branch, f32(out_norm.weight), pass.config.rms_norm_eps,
                              pass.batch.tokens(), out_norm.size, output, state.branch_inv_rms,
                              pass.config.norm, GRAFT_F32, 0, pass.device.kind,
                              pass.device.stream));
  pass.clock.lap(Work::kRows);
}

void half_join(
    const Pass& pass, const Norm& out_norm, HalfState& state, const float* x, float* output) {
  const int64_t values = pass.batch.tokens() * pass.config.hidden_size;
  if (out_norm.size > 0) norm_branch(pass, out_norm, state, output);
  if (pass.config.residual_scale != 1) {
    check(graft_scale(output, pass.config.residual_scale, values, GRAFT_F32, pass.device.kind,
                      pass.device.stream));
  }
  check(graft_add(output, x, values, GRAFT_F32, pass.device.kind, pass.device.stream));
  pass.clock.lap(Work::kRows);
}

const float* half_split(const Pass& pass, const Norm& out_norm, HalfState& state, const float* d) {
  const int64_t tokens = pass.batch.tokens();
  const int64_t values = tokens * pass.config.hidden_size;
  const float* d_branch = d;
  if (pass.config.residual_scale != 1) {
    float* scaled = pass.scratch.d_branch;
    pass.device.copy(scaled, d, static_cast<size_t>(values) * sizeof(float));
    check(graft_scale(scaled, pass.config.residual_scale, values, GRAFT_F32, pass.device.kind,
                      pass.device.stream));
    pass.clock.lap(Work::kRows);
    d_branch = scaled;
  }
  if (out_norm.size == 0) return d_branch;
  float* unnormed = pass.scratch.d_unnormed;
  pass.device.zero(unnormed, static_cast<size_t>(values) * sizeof(float));
  norm_backward(pass, out_norm, 1, GRAFT_F32, d_branch, state.branch, state.branch_inv_rms,
                unnormed);
  return unnormed;
}

void norm_backward(const Pass& pass,
                   const Norm& norm,
                   int64_t per_token,
                   graft_float_type type,
                   const void* d,
                   const void* x,
                   const float* inv_rms,
                   void* dx) {
  const auto backward = [&](int64_t begin, int64_t count) {
    const int64_t first = begin * per_token, bytes = first * norm.size * size_of(type);
    check(graft_rmsnorm_backward(static_cast<const std::byte*>(d) + bytes,
                                 static_cast<const std::byte*>(x) + bytes, f32(norm.weight),
                                 inv_rms + first, count * per_token, norm.size,
                                 static_cast<std::byte*>(dx) + bytes, f32_or_null(norm.grad),
                                 pass.config.norm, type, 0, pass.device.kind, pass.device.stream));
  };
  if (norm.grad.defined()) {
    for_packed_rows(pass.batch.row.data(), pass.batch.tokens(), backward);
  } else {
    backward(0, pass.batch.tokens());
  }
  pass.clock.lap(Work::kRows);
}

void half_input_backward(const Pass& pass,
                         const Norm& norm,
                         HalfState& state,
                         const float* x,
                         const float* d_input,
                         float* d) {
  if (norm.size == 0) {
    check(graft_add(d, d_input, pass.batch.tokens() * pass.config.hidden_size, GRAFT_F32,
                    pass.device.kind, pass.device.stream));
    pass.clock.lap(Work::kRows);
    return;
  }
  norm_backward(pass, norm, 1, GRAFT_F32, d_input, x, state.inv_rms, d);
}

}  // namespace graft::train
