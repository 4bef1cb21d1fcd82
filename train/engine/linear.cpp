#include "train/engine/linear.h"

#include <algorithm>

#include "kernels/bias.h"
#include "kernels/dora.h"
#include "kernels/elementwise.h"
#include "train/engine/batch.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// W's rows, of Linear::operands.
class Rows {
 public:
  Rows(const void* values, const Linear& linear)
      : values_(static_cast<const std::byte*>(values)),
        row_bytes_(linear.in * size_of(linear.operands)) {}
  const void* at(int64_t row) const { return values_ + row * row_bytes_; }

 private:
  const std::byte* values_;
  int64_t row_bytes_;
};

Rows dense_weight(const Linear& linear, const LinearWorkspace& workspace) {
  const BaseWeight& base = linear.base;
  if (base.decoded.defined()) return {base.decoded.data_ptr(), linear};
  if (!base.quantized()) return {base.dense.data_ptr(), linear};
  decode(workspace.device, base.nf4(), linear.operands, workspace.weight);
  workspace.clock->lap(Work::kDecode);
  return {workspace.weight, linear};
}

// x [tokens, dim] in bfloat16.
const uint16_t* round_to(uint16_t* rounded,
                         const LinearWorkspace& workspace,
                         const float* x,
                         int64_t tokens,
                         int64_t dim) {
  round_values(workspace.device, x, tokens, dim, rounded);
  workspace.clock->lap(Work::kProducts);
  return rounded;
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
  ProductChain chain(workspace.device);
  for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
    chain.add({GRAFT_T, GRAFT_N, sum.out, sum.in, count, sum.scale, sum.dy + begin * sum.out,
               sum.x + begin * sum.in, 1, sum.grad});
  });
  chain.run();
  workspace.clock->lap(sum.work);
}

// du = scale * inner * B, for whoever needs dx, and the gradients of A and B.
template <typename Inner>
void low_rank_backward(const Linear& linear,
                       const LinearWorkspace& workspace,
                       const float* x,
                       const float* u,
                       int64_t tokens,
                       const Inner& inner) {
  const Lora& lora = linear.lora;
  const int64_t in = linear.in, rank = lora.rank;
  const float scale = lora.scale;
  float* const du = workspace.low_rank;
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    multiply(workspace,
             {GRAFT_N, GRAFT_N, tokens, rank, rows, scale, inner(part, row),
              f32(lora.b) + row * rank, part > 0 ? 1.0F : 0.0F, du},
             Work::kAdapters);
    if (lora.grad_b.defined()) {
      add_weight_gradient(
          workspace, tokens,
          {rows, rank, scale, inner(part, row), u, f32(lora.grad_b) + row * rank, Work::kAdapters});
    }
  });
  if (lora.grad_a.defined()) {
    const float* x_low = low_rank_input(linear, workspace, x, tokens);
    add_weight_gradient(workspace, tokens,
                        {rank, in, 1, du, x_low, f32(lora.grad_a), Work::kAdapters});
  }
}

}  // namespace

LinearInput round_input(std::span<const Linear> linears,
                        const LinearWorkspace& workspace,
                        const float* x,
                        int64_t tokens) {
  const auto rounds = [](const Linear& linear) { return linear.operands == GRAFT_BF16; };
  if (std::none_of(linears.begin(), linears.end(), rounds)) return {x, nullptr};
  return {x, round_to(workspace.rounded, workspace, x, tokens, linears[0].in)};
}

void linear_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const LinearInput& input,
                    int64_t tokens,
                    std::span<float* const> y,
                    float* kept) {
  const Device& device = workspace.device;
  const int64_t in = linear.in;
  const int64_t rank = linear.lora.rank;
  const bool weighs = linear.lora.magnitude.defined();
  const bool drop = drops(linear.lora, workspace);
  const bool rounds = linear.operands == GRAFT_BF16;
  const Rows weight = dense_weight(linear, workspace);
  // What the product with W takes of x and of its dropped copy.
  const void* const operand = rounds ? static_cast<const void*>(input.rounded) : input.x;
  const void* operand_low = operand;
  float* const u = kept;
  if (rank > 0) {
    const float* x_low = low_rank_input(linear, workspace, input.x, tokens);
    multiply(workspace, {GRAFT_N, GRAFT_T, tokens, rank, in, 1, x_low, f32(linear.lora.a), 0, u},
             Work::kAdapters);
    if (weighs && drop) {
      operand_low = rounds ? round_to(workspace.rounded_dropped, workspace, x_low, tokens, in)
                           : static_cast<const void*>(x_low);
    }
  }
  const auto times_weight = [&](const void* x, int64_t row, int64_t rows, float alpha, float beta,
                                float* output) {
    return Product{GRAFT_N,        GRAFT_T, tokens, rows,           in, alpha, x,
                   weight.at(row), beta,    output, linear.operands};
  };
  const auto add_bias = [&](int64_t row, int64_t rows, float* output) {
    check(graft_bias_add(output, f32(linear.bias) + row, tokens, rows, device.kind, device.stream));
    workspace.clock->lap(Work::kRows);
  };
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    float* const sum = weighs ? kept + tokens * (rank + row) : y[part];  // h or y
    ProductChain chain(device);
    chain.add(times_weight(operand_low, row, rows, 1, 0, sum));
    if (rank > 0) {
      chain.add({GRAFT_N, GRAFT_T, tokens, rows, rank, linear.lora.scale, u,
                 f32(linear.lora.b) + row * rank, 1, sum});
    }
    chain.run();
    workspace.clock->lap(Work::kProducts);
    if (!weighs) {
      if (linear.has_bias) add_bias(row, rows, sum);
      return;
    }
    if (drop) {
      chain.add(times_weight(operand, row, rows, 1, 0, y[part]));
      chain.add(times_weight(operand_low, row, rows, -1, 1, y[part]));
      chain.run();
      workspace.clock->lap(Work::kProducts);
    }
    check(graft_gain_forward(sum, f32(linear.lora.gain) + row, tokens, rows, drop ? 1 : 0, y[part],
                             device.kind, device.stream));
    workspace.clock->lap(Work::kAdapters);
    if (linear.has_bias) add_bias(row, rows, y[part]);
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
  const Device& device = workspace.device;
  const Lora& lora = linear.lora;
  const int64_t in = linear.in;
  const int64_t rank = lora.rank;
  const bool weighs = lora.magnitude.defined();
  const bool drop = drops(lora, workspace);
  const bool needs_dx = input_grad != InputGrad::kSkip;
  const Rows weight = needs_dx ? dense_weight(linear, workspace) : Rows(nullptr, linear);
  const auto times_weight = [&](const float* d, int64_t row, int64_t rows, float alpha, float beta,
                                float* output) {
    const void* operand = d;
    if (linear.operands == GRAFT_BF16) {
      operand = round_to(workspace.rounded, workspace, d, tokens, rows);
    }
    return Product{GRAFT_N, GRAFT_N,        tokens, in,     rows,           alpha,
                   operand, weight.at(row), beta,   output, linear.operands};
  };
  // What reaches h: dy, or with DoRA dh.
  const auto inner = [&](size_t part, int64_t row) {
    return weighs ? workspace.weighed + tokens * row : dy[part];
  };
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    if (weighs) {
      for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
        const int64_t first = begin * rows;
        check(graft_gain_backward(dy[part] + first, kept + tokens * (rank + row) + first,
                                  f32(lora.gain) + row, f32(lora.inverse_norm) + row, count, rows,
                                  workspace.weighed + tokens * row + first,
                                  f32(lora.grad_magnitude) + row, device.kind, device.stream));
      });
      workspace.clock->lap(Work::kAdapters);
    }
    if (linear.base_grad.defined()) {
      add_weight_gradient(
          workspace, tokens,
          {rows, in, 1, dy[part], x, f32(linear.base_grad) + row * in, Work::kProducts});
    }
    if (linear.bias_grad.defined()) {
      for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
        check(graft_bias_backward(dy[part] + begin * rows, count, rows, f32(linear.bias_grad) + row,
                                  device.kind, device.stream));
      });
      workspace.clock->lap(Work::kRows);
    }
  });
  if (rank > 0) low_rank_backward(linear, workspace, x, kept, tokens, inner);
  if (!needs_dx) return;
  ProductChain chain(device);
  for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
    const float beta = part > 0 || input_grad == InputGrad::kAdd ? 1.0F : 0.0F;
    chain.add(times_weight(drop ? dy[part] : inner(part, row), row, rows, 1, beta, dx));
  });
  const auto low_rank_part = [&](float beta, float* output) {
    return Product{GRAFT_N,     GRAFT_N, tokens, in, rank, 1, workspace.low_rank,
                   f32(lora.a), beta,    output};
  };
  if (rank > 0 && !drop) chain.add(low_rank_part(1, dx));
  chain.run();
  workspace.clock->lap(Work::kProducts);
  if (rank == 0 || !drop) return;
  float* const dropped = workspace.dropped;
  chain.add(low_rank_part(0, dropped));
  if (weighs) {
    for_parts(linear, [&](size_t part, int64_t row, int64_t rows) {
      chain.add(times_weight(inner(part, row), row, rows, 1, 1, dropped));
      chain.add(times_weight(dy[part], row, rows, -1, 1, dropped));
    });
  }
  chain.run();
  apply_dropout(lora, workspace, dropped, tokens, in);
  check(graft_add(dx, dropped, tokens * in, GRAFT_F32, device.kind, device.stream));
  workspace.clock->lap(Work::kAdapters);
}

}  // namespace graft::train
