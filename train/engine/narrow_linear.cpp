#include "train/engine/narrow_linear.h"

#include "kernels/elementwise.h"
#include "train/engine/batch.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {
namespace {

// The extended weight, and how far its rows are apart.
struct Extended {
  const uint16_t* values;
  int64_t stride;
  const uint16_t* at(int64_t row, int64_t column) const { return values + row * stride + column; }
};

Extended weight_of(const Linear& linear, const LinearWorkspace& workspace) {
  const int64_t stride = linear.in + linear.lora.rank;
  if (linear.base.extended.defined()) return {bf16(linear.base.extended), stride};
  auto* const decoded = reinterpret_cast<uint16_t*>(workspace.weight);
  decode_extended(linear, workspace.device, decoded);
  workspace.clock->lap(Work::kDecode);
  return {decoded, stride};
}

struct Operand {
  graft_transpose transpose;
  const uint16_t* values;
  int64_t stride;
};
struct Result {
  void* values;
  graft_float_type type;
  int64_t stride;
  float beta;
};

// result = alpha * op(a) op(b) + beta * result, [m, n] with sums over k.
void multiply(const LinearWorkspace& workspace,
              int64_t m,
              int64_t n,
              int64_t k,
              float alpha,
              const Operand& a,
              const Operand& b,
              const Result& result,
              Work work) {
  graft_product product{};
  product.ta = a.transpose;
  product.tb = b.transpose;
  product.m = m;
  product.n = n;
  product.k = k;
  product.alpha = alpha;
  product.beta = result.beta;
  product.a = a.values;
  product.lda = a.stride;
  product.b = b.values;
  product.ldb = b.stride;
  product.c = result.values;
  product.ldc = result.stride;
  product.type = GRAFT_BF16;
  product.c_type = result.type;
  check(graft_multiply(&product, workspace.device.kind, workspace.device.stream));
  workspace.clock->lap(work);
}

void copy_rows(const LinearWorkspace& workspace,
               const uint16_t* from,
               int64_t from_stride,
               uint16_t* to,
               int64_t to_stride,
               int64_t rows,
               int64_t columns) {
  check(graft_convert(from, GRAFT_BF16, from_stride, to, GRAFT_BF16, to_stride, rows, columns, 1,
                      workspace.device.kind, workspace.device.stream));
  workspace.clock->lap(Work::kAdapters);
}

// Calls body(dy of the part, its stride, first row of W, rows) for each part.
template <typename Body>
void for_parts(const Linear& linear, const NarrowGradient& dy, const Body& body) {
  int64_t row = 0;
  for (size_t part = 0; part < linear.parts.size(); ++part) {
    const int64_t rows = linear.parts[part];
    if (dy.rows != nullptr) {
      body(part, dy.rows + row, dy.stride, row, rows);
    } else {
      body(part, dy.parts[part], rows, row, rows);
    }
    row += rows;
  }
}

// du, where it lies, and the gradients of A and B.
Operand low_rank_backward(const Linear& linear,
                          const LinearWorkspace& workspace,
                          const Extended& weight,
                          const NarrowInput& input,
                          const uint16_t* u,
                          int64_t tokens,
                          const NarrowGradient& dy) {
  const Lora& lora = linear.lora;
  const int64_t rank = lora.rank;
  const bool behind = dy.rows != nullptr;
  uint16_t* const du = behind ? dy.rows + linear.out : workspace.du;
  const int64_t du_stride = behind ? dy.stride : rank;
  if (behind) {
    multiply(workspace, tokens, rank, linear.out, 1, {GRAFT_N, dy.rows, dy.stride},
             {GRAFT_N, weight.at(0, linear.in), weight.stride}, {du, GRAFT_BF16, du_stride, 0},
             Work::kAdapters);
  } else {
    // Parts add up in float32.
    for_parts(
        linear, dy, [&](size_t part, const uint16_t* d, int64_t stride, int64_t row, int64_t rows) {
          const bool alone = linear.parts.size() == 1;
          multiply(workspace, tokens, rank, rows, 1, {GRAFT_N, d, stride},
                   {GRAFT_N, weight.at(row, linear.in), weight.stride},
                   alone ? Result{du, GRAFT_BF16, rank, 0}
                         : Result{workspace.low_rank, GRAFT_F32, rank, part > 0 ? 1.0F : 0.0F},
                   Work::kAdapters);
        });
    if (linear.parts.size() > 1) {
      round_values(workspace.device, workspace.low_rank, tokens, rank, du);
      workspace.clock->lap(Work::kAdapters);
    }
  }
  for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
    multiply(workspace, rank, linear.in, count, 1, {GRAFT_T, du + begin * du_stride, du_stride},
             {GRAFT_N, input.x + begin * input.stride, input.stride},
             {f32(lora.grad_a), GRAFT_F32, linear.in, 1}, Work::kAdapters);
    for_parts(linear, dy,
              [&](size_t, const uint16_t* d, int64_t stride, int64_t row, int64_t rows) {
                multiply(workspace, rows, rank, count, lora.scale,
                         {GRAFT_T, d + begin * stride, stride}, {GRAFT_N, u + begin * rank, rank},
                         {f32(lora.grad_b) + row * rank, GRAFT_F32, rank, 1}, Work::kAdapters);
              });
  });
  return {GRAFT_N, du, du_stride};
}

}  // namespace

void narrow_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const NarrowInput& input,
                    int64_t tokens,
                    std::span<void* const> y,
                    graft_float_type y_type,
                    int64_t y_stride,
                    uint16_t* u) {
  const Extended weight = weight_of(linear, workspace);
  const int64_t in = linear.in, rank = linear.lora.rank;
  const Operand x{GRAFT_N, input.x, input.stride};
  if (rank > 0) {
    uint16_t* const behind = input.x + in;
    multiply(workspace, tokens, rank, in, 1, x, {GRAFT_T, weight.at(linear.out, 0), weight.stride},
             {behind, GRAFT_BF16, input.stride, 0}, Work::kAdapters);
    copy_rows(workspace, behind, input.stride, u, rank, tokens, rank);
  }
  int64_t row = 0;
  for (size_t part = 0; part < linear.parts.size(); ++part) {
    const int64_t rows = linear.parts[part];
    multiply(workspace, tokens, rows, in + rank, 1, x, {GRAFT_T, weight.at(row, 0), weight.stride},
             {y[part], y_type, y_stride > 0 ? y_stride : rows, 0}, Work::kProducts);
    row += rows;
  }
}

void narrow_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const NarrowInput& input,
                     const uint16_t* u,
                     int64_t tokens,
                     const NarrowGradient& dy,
                     const NarrowInputGradient& result) {
  const int64_t in = linear.in, rank = linear.lora.rank;
  const bool needs_dx = result.mode != InputGrad::kSkip;
  if (rank == 0 && !needs_dx) return;
  const Extended weight = weight_of(linear, workspace);
  Operand du{};
  if (rank > 0) du = low_rank_backward(linear, workspace, weight, input, u, tokens, dy);
  if (!needs_dx) return;
  const auto into = [&](bool adds) {
    return Result{result.dx, result.type, result.stride, adds ? 1.0F : 0.0F};
  };
  const bool adds = result.mode == InputGrad::kAdd;
  if (dy.rows != nullptr) {
    multiply(workspace, tokens, in, linear.out + rank, 1, {GRAFT_N, dy.rows, dy.stride},
             {GRAFT_N, weight.at(0, 0), weight.stride}, into(adds), Work::kProducts);
    return;
  }
  for_parts(linear, dy,
            [&](size_t part, const uint16_t* d, int64_t stride, int64_t row, int64_t rows) {
              multiply(workspace, tokens, in, rows, 1, {GRAFT_N, d, stride},
                       {GRAFT_N, weight.at(row, 0), weight.stride}, into(adds || part > 0),
                       Work::kProducts);
            });
  if (rank == 0) return;
  multiply(workspace, tokens, in, rank, 1, du, {GRAFT_N, weight.at(linear.out, 0), weight.stride},
           into(true), Work::kAdapters);
}

}  // namespace graft::train
