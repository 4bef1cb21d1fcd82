#include "train/engine/block.h"

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "train/engine/tensor.h"

namespace graft::train {
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

void half_join(
    const Pass& pass, const Norm& out_norm, HalfState& state, const float* x, float* output) {
  const int64_t tokens = pass.batch.tokens();
  const int64_t values = tokens * pass.config.hidden_size;
  if (out_norm.size > 0) {
    check(graft_rmsnorm_forward(state.branch, f32(out_norm.weight), pass.config.rms_norm_eps,
                                tokens, out_norm.size, output, state.branch_inv_rms,
                                pass.config.norm, GRAFT_F32, 0, pass.device.kind,
                                pass.device.stream));
  }
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
  norm_backward(pass, out_norm, 1, d_branch, state.branch, state.branch_inv_rms, unnormed);
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
                                 pass.config.norm, GRAFT_F32, 0, pass.device.kind,
                                 pass.device.stream));
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
  norm_backward(pass, norm, 1, d_input, x, state.inv_rms, d);
}

}  // namespace graft::train
