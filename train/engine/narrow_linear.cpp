#include "train/engine/narrow_linear.h"

#include "core/error.h"
#include "kernels/product_add.h"
#include "kernels/product_decode.h"
#include "train/engine/batch.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {
namespace {

struct Operand {
  graft_transpose transpose;
  const uint16_t* values;
  int64_t stride;
};

// M of the group; what is in 4 bits on the processor is in `packed` alone.
class Extended {
 public:
  Extended(const uint16_t* values, int64_t stride, const ExtendedTargets& packed = {})
      : values_(values), stride_(stride), packed_(packed) {}
  // What begins at [row, column].
  Operand part(graft_transpose transpose, int64_t row, int64_t column) const {
    return {transpose, values_ + row * stride_ + column, stride_};
  }
  const ExtendedTargets& packed() const { return packed_; }

 private:
  const uint16_t* values_;
  int64_t stride_;
  ExtendedTargets packed_;
};

Extended weight_of(LinearGroup group, const LinearWorkspace& workspace) {
  const int64_t stride = shape_of(group).stride();
  const at::Tensor& extended = group[0].base.extended;
  if (extended.defined()) return {bf16(extended), stride};
  auto* const made = reinterpret_cast<uint16_t*>(workspace.weight);
  // A processor decodes what a product reads next: its sums take longer than that, and memory is
  // slower.
  if (workspace.device.is_host()) {
    const ExtendedTargets packed = make_all_but_packed(group, made);
    workspace.clock->lap(Work::kDecode);
    return {made, stride, packed};
  }
  make_extended(group, workspace.device, made);
  workspace.clock->lap(Work::kDecode);
  return {made, stride};
}

// [m, n] with sums over k.
struct Size {
  int64_t m, n, k;
};

// What a product is added to.
struct Added {
  const float* values = nullptr;  // rows without gaps; nullptr for nothing, or the result itself
  bool in_place = false;
};
constexpr Added kNothing = {nullptr, false};
constexpr Added kResult = {nullptr, true};

// result = alpha * op(a) op(b) + what is added.
void multiply(const LinearWorkspace& workspace,
              const Size& size,
              float alpha,
              const Operand& a,
              const Operand& b,
              const Added& added,
              const NarrowResult& result,
              Work work,
              const ExtendedTargets& packed = {}) {
  graft_product product{};
  product.ta = a.transpose;
  product.tb = b.transpose;
  product.m = size.m;
  product.n = size.n;
  product.k = size.k;
  product.alpha = alpha;
  product.beta = added.in_place || added.values != nullptr ? 1.0F : 0.0F;
  product.a = a.values;
  product.lda = a.stride;
  product.b = b.values;
  product.ldb = b.stride;
  product.c = result.values;
  product.ldc = result.stride;
  product.type = GRAFT_BF16;
  product.c_type = result.type;
  const Device& device = workspace.device;
  if (packed.count > 0) {
    check(graft_multiply_decoding(&product, added.values, size.n, packed.target.data(),
                                  packed.count));
  } else if (added.values != nullptr) {
    check(graft_multiply_add(&product, added.values, size.n, device.kind, device.stream));
  } else {
    check(graft_multiply(&product, device.kind, device.stream));
  }
  workspace.clock->lap(work);
}

// The gradients of all A of the group, one behind the other.
float* grad_a_of(LinearGroup group) {
  float *first = nullptr, *next = nullptr;
  for (const Linear& linear : group) {
    if (linear.lora.rank == 0) continue;
    float* const grad = f32(linear.lora.grad_a);
    if (first == nullptr) first = next = grad;
    if (grad != next) {
      fail(ExitCode::kBug, "the gradient of A of " + linear.name + " lies apart from its group's");
    }
    next += linear.lora.rank * linear.in;
  }
  return first;
}

void add_gradients(LinearGroup group,
                   const LinearWorkspace& workspace,
                   const NarrowRows& x,
                   int64_t tokens,
                   const NarrowRows& dy) {
  const GroupShape shape = shape_of(group);
  float* const grad_a = grad_a_of(group);
  for_packed_rows(workspace.row, tokens, [&](int64_t begin, int64_t count) {
    const uint16_t* const inputs = x.values + begin * x.stride;
    const uint16_t* const gradients = dy.values + begin * dy.stride;
    multiply(workspace, {shape.rank, shape.in, count}, 1,
             {GRAFT_T, gradients + shape.out, dy.stride}, {GRAFT_N, inputs, x.stride}, kResult,
             {grad_a, GRAFT_F32, shape.in}, Work::kAdapters);
    int64_t column = 0, low = shape.in;
    for (const Linear& linear : group) {
      const Lora& lora = linear.lora;
      if (lora.rank > 0) {
        multiply(workspace, {linear.out, lora.rank, count}, lora.scale,
                 {GRAFT_T, gradients + column, dy.stride}, {GRAFT_N, inputs + low, x.stride},
                 kResult, {f32(lora.grad_b), GRAFT_F32, lora.rank}, Work::kAdapters);
      }
      column += linear.out;
      low += lora.rank;
    }
  });
}

}  // namespace

void narrow_forward(LinearGroup group,
                    const LinearWorkspace& workspace,
                    const NarrowRows& x,
                    int64_t tokens,
                    const NarrowResult& y,
                    const NarrowSum& sum) {
  const GroupShape shape = shape_of(group);
  const Extended weight = weight_of(group, workspace);
  const Operand rows{GRAFT_N, x.values, x.stride};
  if (shape.rank > 0) {
    multiply(workspace, {tokens, shape.rank, shape.in}, 1, rows, weight.part(GRAFT_T, shape.out, 0),
             kNothing, {x.values + shape.in, GRAFT_BF16, x.stride}, Work::kAdapters);
  }
  multiply(workspace, {tokens, shape.out, shape.stride()}, sum.scale, rows,
           weight.part(GRAFT_T, 0, 0), {sum.values}, y, Work::kProducts, weight.packed());
}

void narrow_backward(LinearGroup group,
                     const LinearWorkspace& workspace,
                     const NarrowRows& x,
                     int64_t tokens,
                     const NarrowRows& dy,
                     const NarrowResult& dx) {
  const GroupShape shape = shape_of(group);
  const bool needs_dx = dx.values != nullptr;
  if (shape.rank == 0 && !needs_dx) return;
  const Extended weight = weight_of(group, workspace);
  const Operand rows{GRAFT_N, dy.values, dy.stride};
  if (shape.rank > 0) {
    multiply(workspace, {tokens, shape.rank, shape.out}, 1, rows, weight.part(GRAFT_N, 0, shape.in),
             kNothing, {dy.values + shape.out, GRAFT_BF16, dy.stride}, Work::kAdapters);
    add_gradients(group, workspace, x, tokens, dy);
  }
  if (!needs_dx) return;
  multiply(workspace, {tokens, shape.in, shape.wide()}, 1, rows, weight.part(GRAFT_N, 0, 0),
           kNothing, dx, Work::kProducts, weight.packed());
}

}  // namespace graft::train
