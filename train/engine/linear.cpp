#include "train/engine/linear.h"

#include <cstring>

#include "kernels/bias.h"
#include "kernels/dora.h"
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

// Calls body(part, first row of W, rows) for each part.
template <typename Body>
void for_parts(const Linear& linear, const Body& body) {
  int64_t row = 0;
  for (size_t part = 0; part < linear.parts.size(); ++part) {
    body(part, row, linear.parts[part]);
    row += linear.parts[part];
  }
}

}  // namespace

void linear_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const float* x,
                    int64_t tokens,
                    std::span<float* const> y,
                    float* kept) {
  const int64_t in = linear.in;
  const int64_t rank = linear.lora.rank;
  const bool weighs = linear.lora.magnitude.defined();
  const float* weight = dense_weight(linear.base, workspace.weight);
  float* const u = kept;
  const float* x_low = x;
  if (rank > 0) {
    x_low = low_rank_input(linear, workspace, x, tokens);
    check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, rank, in, 1, x_low, in, f32(linear.lora.a), in,
                         0, u, rank));
  }
  const auto times_weight = [&](const float* input, int64_t row, int64_t rows, float alpha,
                                float beta, float* output) {
    check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, rows, in, alpha, input, in, weight + row * in,
                         in, beta, output, rows));
  };
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    float* const sum = weighs ? kept + tokens * (rank + row) : y[part];  // h or y
    times_weight(weighs ? x_low : x, row, rows, 1, 0, sum);
    if (!weighs && linear.has_bias) {
      check(graft_bias_add(sum, f32(linear.bias) + row, tokens, rows));
    }
    if (rank > 0) {
      check(graft_gemm_f32(GRAFT_N, GRAFT_T, tokens, rows, rank, linear.lora.scale, u, rank,
                           f32(linear.lora.b) + row * rank, rank, 1, sum, rows));
    }
    if (!weighs) return;
    const bool drop = drops(linear.lora, workspace);
    if (drop) {
      times_weight(x, row, rows, 1, 0, y[part]);
      times_weight(x_low, row, rows, -1, 1, y[part]);
    }
    check(
        graft_gain_forward(sum, f32(linear.lora.gain) + row, tokens, rows, drop ? 1 : 0, y[part]));
    if (linear.has_bias) {
      check(graft_bias_add(y[part], f32(linear.bias) + row, tokens, rows));
    }
  });
}

void linear_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const float* x,
                     const float* kept,
                     int64_t tokens,
                     std::span<const float* const> dy,
                     float* dx,
                     InputGrad input_grad) {
  const int64_t in = linear.in;
  const int64_t rank = linear.lora.rank;
  const bool weighs = linear.lora.magnitude.defined();
  const bool drop = drops(linear.lora, workspace);
  const bool needs_dx = input_grad != InputGrad::kSkip;
  const float* weight = needs_dx ? dense_weight(linear.base, workspace.weight) : nullptr;
  const auto times_weight = [&](const float* input, int64_t row, int64_t rows, float alpha,
                                float beta, float* output) {
    check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, rows, alpha, input, rows, weight + row * in,
                         in, beta, output, in));
  };
  // What reaches h: dy, or with DoRA dh.
  const auto inner = [&](size_t part, int64_t row) {
    return weighs ? workspace.weighed + tokens * row : dy[part];
  };
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    if (weighs) {
      const Lora& lora = linear.lora;
      check(graft_gain_backward(dy[part], kept + tokens * (rank + row), f32(lora.gain) + row,
                                f32(lora.inverse_norm) + row, tokens, rows,
                                workspace.weighed + tokens * row, f32(lora.grad_magnitude) + row));
    }
    if (linear.base_grad.defined()) {
      check(graft_gemm_f32(GRAFT_T, GRAFT_N, rows, in, tokens, 1, dy[part], rows, x, in, 1,
                           f32(linear.base_grad) + row * in, in));
    }
    if (linear.bias_grad.defined()) {
      check(graft_bias_backward(dy[part], tokens, rows, f32(linear.bias_grad) + row));
    }
    if (needs_dx) {
      const float beta = part > 0 || input_grad == InputGrad::kAdd ? 1.0F : 0.0F;
      times_weight(drop ? dy[part] : inner(part, row), row, rows, 1, beta, dx);
    }
  });
  if (rank == 0) {
    return;
  }
  const float scale = linear.lora.scale;
  const float* const u = kept;
  float* du = workspace.low_rank;
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, rank, rows, scale, inner(part, row), rows,
                         f32(linear.lora.b) + row * rank, rank, part > 0 ? 1.0F : 0.0F, du, rank));
    if (linear.lora.grad_b.defined()) {
      check(graft_gemm_f32(GRAFT_T, GRAFT_N, rows, rank, tokens, scale, inner(part, row), rows, u,
                           rank, 1, f32(linear.lora.grad_b) + row * rank, rank));
    }
  });
  if (linear.lora.grad_a.defined()) {
    const float* x_low = low_rank_input(linear, workspace, x, tokens);
    check(graft_gemm_f32(GRAFT_T, GRAFT_N, rank, in, tokens, 1, du, rank, x_low, in, 1,
                         f32(linear.lora.grad_a), in));
  }
  if (!needs_dx) {
    return;
  }
  if (!drop) {
    check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, rank, f32(linear.lora.a), in, 1,
                         dx, in));
    return;
  }
  float* dropped = workspace.dropped;
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, rank, f32(linear.lora.a), in, 0,
                       dropped, in));
  if (weighs) {
    for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
      times_weight(inner(part, row), row, rows, 1, 1, dropped);
      times_weight(dy[part], row, rows, -1, 1, dropped);
    });
  }
  apply_dropout(linear.lora, workspace, dropped, tokens, in);
  check(graft_add(dx, dropped, tokens * in));
}

}  // namespace graft::train
