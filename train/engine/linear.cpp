#include "train/engine/linear.h"

#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

const float* dense_weight(const BaseWeight& base, float* scratch) {
  if (!base.quantized()) {
    return f32(base.dense);
  }
  const graft_nf4_weight weight = base.nf4();
  check(graft_nf4_decode(&weight, scratch, GRAFT_CPU, nullptr));
  return scratch;
}

bool drops(const Lora& lora, const LinearWorkspace& workspace) {
  return lora.dropout > 0 && workspace.dropout_seed != 0;
}

void apply_dropout(
    const Lora& lora, const LinearWorkspace& workspace, float* x, int64_t tokens, int64_t dim) {
  check(graft_dropout_mask_apply(x, tokens, dim, workspace.token_index, workspace.dropout_seed,
                                 lora.stream, lora.dropout));
}

// The input of A: x, or its dropped copy.
const float* low_rank_input(const Linear& linear,
                            const LinearWorkspace& workspace,
                            const float* x,
                            int64_t tokens) {
  if (!drops(linear.lora, workspace)) {
    return x;
  }
  std::memcpy(workspace.dropped, x, static_cast<size_t>(tokens * linear.in) * sizeof(float));
  apply_dropout(linear.lora, workspace, workspace.dropped, tokens, linear.in);
  return workspace.dropped;
}

}  // namespace

void linear_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const float* x,
                    int64_t tokens,
                    float* y,
                    int64_t ldy,
                    float* u) {
  const int64_t in = linear.in;
  const int64_t out = linear.out;
  const float* weight = dense_weight(linear.base, workspace.weight);
  check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, out, in, 1, x, in, weight, in, 0, y, ldy));
  const int64_t rank = linear.lora.rank;
  if (rank == 0) {
    return;
  }
  const float* x_low = low_rank_input(linear, workspace, x, tokens);
  check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, rank, in, 1, x_low, in, f32(linear.lora.a), in, 0,
                       u, rank));
  check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, out, rank, linear.lora.scale, u, rank,
                       f32(linear.lora.b), rank, 1, y, ldy));
}

void linear_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const float* x,
                     const float* u,
                     int64_t tokens,
                     const float* dy,
                     int64_t ld_dy,
                     float* dx,
                     InputGrad input_grad) {
  const int64_t in = linear.in;
  const int64_t out = linear.out;
  const int64_t rank = linear.lora.rank;
  if (linear.base_grad.defined()) {
    check(graft_gemm_f32(GRAFT_T, GRAFT_N, out, in, tokens, 1, dy, ld_dy, x, in, 1,
                         f32(linear.base_grad), in));
  }
  if (input_grad != InputGrad::kSkip) {
    const float* weight = dense_weight(linear.base, workspace.weight);
    const float beta = input_grad == InputGrad::kAdd ? 1.0F : 0.0F;
    check(
        graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, out, 1, dy, ld_dy, weight, in, beta, dx, in));
  }
  if (rank == 0) {
    return;
  }
  const float scale = linear.lora.scale;
  float* du = workspace.low_rank;
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, rank, out, scale, dy, ld_dy, f32(linear.lora.b),
                       rank, 0, du, rank));
  if (linear.lora.grad_b.defined()) {
    check(graft_gemm_f32(GRAFT_T, GRAFT_N, out, rank, tokens, scale, dy, ld_dy, u, rank, 1,
                         f32(linear.lora.grad_b), rank));
    const float* x_low = low_rank_input(linear, workspace, x, tokens);
    check(graft_gemm_f32(GRAFT_T, GRAFT_N, rank, in, tokens, 1, du, rank, x_low, in, 1,
                         f32(linear.lora.grad_a), in));
  }
  if (input_grad == InputGrad::kSkip) {
    return;
  }
  if (!drops(linear.lora, workspace)) {
    check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, rank, f32(linear.lora.a), in, 1,
                         dx, in));
    return;
  }
  float* dropped = workspace.dropped;
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, rank, f32(linear.lora.a), in, 0,
                       dropped, in));
  apply_dropout(linear.lora, workspace, dropped, tokens, in);
  check(graft_add(dx, dropped, tokens * in));
}

}  // namespace graft::train
