#include "train/engine/linear.h"

#include "kernels/bias.h"
#include "kernels/elementwise.h"
#include "kernels/nf4.h"
#include "train/engine/batch.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

const float* dense_weight(const BaseWeight& base, const LinearWorkspace& workspace) {
  if (base.decoded.defined()) return f32(base.decoded);
  if (!base.quantized()) return f32(base.dense);
  const graft_nf4_weight weight = base.nf4();
  check(
      graft_nf4_decode(&weight, workspace.weight, workspace.device.kind, workspace.device.stream));
  workspace.clock->lap(Work::kDecode);
  return workspace.weight;
}

void multiply(const LinearWorkspace& workspace, const Product& product, Work work) {
  multiply(workspace.device, product);
  workspace.clock->lap(work);
}

bool drops(const Lora& lora, const LinearWorkspace& workspace) {
  return lora.dropout > 0 && workspace.dropout_seed != 0;
}

void apply_dropout(
    const Lora& lora, const LinearWorkspace& workspace, float* x, int64_t tokens, int64_t dim) {
  check(graft_dropout_mask_apply(x, tokens, dim, workspace.token_index, workspace.dropout_seed,
                                 lora.stream, lora.dropout, GRAFT_F32, workspace.device.kind,
                                 workspace.device.stream));
  workspace.clock->lap(Work::kAdapters);
}

// The input of A: x, or its dropped copy.
const float* low_rank_input(const Linear& linear,
                            const LinearWorkspace& workspace,
                            const float* x,
                            int64_t tokens) {
  if (!drops(linear.lora, workspace)) {
    return x;
  }
  workspace.device.copy(workspace.dropped, x,
                        static_cast<size_t>(tokens * linear.in) * sizeof(float));
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

// grad [out, in] += scale * dy^T x.
struct WeightGradient {
  int64_t out, in;
  float scale;
  const float* dy;  // [tokens, out]
  const float* x;   // [tokens, in]
  float* grad;
  Work work;
};

void add_weight_gradient(const LinearWorkspace& workspace,
                         int64_t tokens,
                         const WeightGradient& sum) {
  for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
    multiply(workspace,
             {GRAFT_T, GRAFT_N, sum.out, sum.in, count, sum.scale, sum.dy + begin * sum.out,
              sum.x + begin * sum.in, 1, sum.grad},
             sum.work);
  });
}

}  // namespace

void linear_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const float* x,
                    int64_t tokens,
                    std::span<float* const> y,
                    float* u) {
  const int64_t in = linear.in;
  const int64_t rank = linear.lora.rank;
  const float* weight = dense_weight(linear.base, workspace);
  if (rank > 0) {
    const float* x_low = low_rank_input(linear, workspace, x, tokens);
    multiply(workspace, {GRAFT_N, GRAFT_T, tokens, rank, in, 1, x_low, f32(linear.lora.a), 0, u},
             Work::kAdapters);
  }
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    multiply(workspace, {GRAFT_N, GRAFT_T, tokens, rows, in, 1, x, weight + row * in, 0, y[part]},
             Work::kProducts);
    if (linear.has_bias) {
      check(graft_bias_add(y[part], f32(linear.bias) + row, tokens, rows, workspace.device.kind,
                           workspace.device.stream));
      workspace.clock->lap(Work::kRows);
    }
    if (rank > 0) {
      multiply(workspace,
               {GRAFT_N, GRAFT_T, tokens, rows, rank, linear.lora.scale, u,
                f32(linear.lora.b) + row * rank, 1, y[part]},
               Work::kAdapters);
    }
  });
}

void linear_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const float* x,
                     const float* u,
                     int64_t tokens,
                     std::span<const float* const> dy,
                     float* dx,
                     InputGrad input_grad) {
  const int64_t in = linear.in;
  const int64_t rank = linear.lora.rank;
  const bool needs_dx = input_grad != InputGrad::kSkip;
  const float* weight = needs_dx ? dense_weight(linear.base, workspace) : nullptr;
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    if (linear.base_grad.defined()) {
      add_weight_gradient(
          workspace, tokens,
          {rows, in, 1, dy[part], x, f32(linear.base_grad) + row * in, Work::kProducts});
    }
    if (linear.bias_grad.defined()) {
      for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
        check(graft_bias_backward(dy[part] + begin * rows, count, rows, f32(linear.bias_grad) + row,
                                  workspace.device.kind, workspace.device.stream));
      });
    }
    if (needs_dx) {
      const float beta = part > 0 || input_grad == InputGrad::kAdd ? 1.0F : 0.0F;
      multiply(workspace,
               {GRAFT_N, GRAFT_N, tokens, in, rows, 1, dy[part], weight + row * in, beta, dx},
               Work::kProducts);
    }
  });
  if (rank == 0) {
    return;
  }
  const float scale = linear.lora.scale;
  float* du = workspace.low_rank;
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    multiply(workspace,
             {GRAFT_N, GRAFT_N, tokens, rank, rows, scale, dy[part],
              f32(linear.lora.b) + row * rank, part > 0 ? 1.0F : 0.0F, du},
             Work::kAdapters);
    if (linear.lora.grad_b.defined()) {
      add_weight_gradient(
          workspace, tokens,
          {rows, rank, scale, dy[part], u, f32(linear.lora.grad_b) + row * rank, Work::kAdapters});
    }
  });
  if (linear.lora.grad_a.defined()) {
    const float* x_low = low_rank_input(linear, workspace, x, tokens);
    add_weight_gradient(workspace, tokens,
                        {rank, in, 1, du, x_low, f32(linear.lora.grad_a), Work::kAdapters});
  }
  if (!needs_dx) {
    return;
  }
  if (!drops(linear.lora, workspace)) {
    multiply(workspace, {GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, f32(linear.lora.a), 1, dx},
             Work::kAdapters);
    return;
  }
  float* dropped = workspace.dropped;
  multiply(workspace, {GRAFT_N, GRAFT_N, tokens, in, rank, 1, du, f32(linear.lora.a), 0, dropped},
           Work::kAdapters);
  apply_dropout(linear.lora, workspace, dropped, tokens, in);
  check(graft_add(dx, dropped, tokens * in, GRAFT_F32, workspace.device.kind,
                  workspace.device.stream));
  workspace.clock->lap(Work::kAdapters);
}

}  // namespace graft::train
