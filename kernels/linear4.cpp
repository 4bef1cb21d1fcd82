#include "kernels/linear4.h"

#include <bit>
#include <vector>

#include "kernels/bf16_product.h"
#include "kernels/device.h"
#include "kernels/gemm.h"

namespace graft::kernels {
namespace {

// Of one piece of a float32 product: 256 x 256 decoded weights are 256 KiB. A chain of
// graft_gemm_f32 is 256 deep, so that pieces of that depth add up as one call would.
constexpr int64_t kF32Depth = 256;
constexpr int64_t kF32Columns = 256;

// op(W): forward W^T [in, out], backward W [out, in].
enum class Direction { kForward, kBackward };

struct Linear {
  const graft_nf4_weight* weight;
  int64_t out_features, in_features;
  Direction direction;
  Bf16Operands operands;
};

graft_status check(const char* function, const Linear& linear) {
  if (const graft_status status = check_pointers(function, {{"weight", linear.weight}})) {
    return status;
  }
  const graft_nf4_weight& weight = *linear.weight;
  if (const graft_status status = check_counts(
          function, {{"out_features", linear.out_features}, {"in_features", linear.in_features}})) {
    return status;
  }
  if (weight.count != linear.out_features * linear.in_features) {
    return fail(GRAFT_BAD_SHAPE, function, "the weight has %lld elements, expected %lld x %lld",
                static_cast<long long>(weight.count), static_cast<long long>(linear.out_features),
                static_cast<long long>(linear.in_features));
  }
  if (weight.type != GRAFT_NF4 && weight.type != GRAFT_FP4) {
    return fail(GRAFT_BAD_ARGUMENT, function, "the weight's type is %d, expected 0 or 1",
                static_cast<int>(weight.type));
  }
  if (weight.block_size < 32 || weight.block_size > 4096 ||
      !std::has_single_bit(static_cast<unsigned>(weight.block_size))) {
    return fail(GRAFT_BAD_SHAPE, function, "block_size is %d, expected a power of two in 32..4096",
                weight.block_size);
  }
  if (const graft_status status = check_bf16_operands(function, linear.operands)) return status;
  if (weight.count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(function, {{"packed", weight.packed}})) {
    return status;
  }
  if ((weight.absmax != nullptr) == (weight.absmax8 != nullptr)) {
    return fail(GRAFT_BAD_ARGUMENT, function, "%s of absmax and absmax8 given, expected one",
                weight.absmax != nullptr ? "both" : "neither");
  }
  return weight.absmax8 == nullptr
             ? GRAFT_OK
             : check_pointers(function, {{"nested_absmax", weight.nested_absmax}});
}

// op(W)'s rows p.. and columns j.., decoded row by row of W as [rows of W, columns of W].
struct Piece {
  const float* values;
  int64_t op_row, op_col;  // strides of op(W)
};
Piece decode_piece(
    const Linear& linear, int64_t j, int64_t width, int64_t p, int64_t depth, float* scratch) {
  const bool forward = linear.direction == Direction::kForward;
  const int64_t row = forward ? j : p, rows = forward ? width : depth;
  const int64_t column = forward ? p : j, columns = forward ? depth : width;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t begin = (row + r) * linear.in_features + column;
    table().weights->quant4_decode_f32(*linear.weight, begin, begin + columns,
                                       scratch + r * columns, Stores::kCached);
  }
  return {scratch, forward ? 1 : columns, forward ? columns : 1};
}

// A B that is one weight, all of it in 4 bits.
void product_bf16(const Linear& linear) {
  graft_decode_target target{};
  target.weight = *linear.weight;
  target.columns = target.row_stride = linear.in_features;
  bf16_product_decoding(linear.operands,
                        linear.direction == Direction::kForward ? GRAFT_T : GRAFT_N,
                        {nullptr, linear.in_features, &target, 1});
}

void product_f32(const Linear& linear) {
  const Bf16Operands& o = linear.operands;
  const Table& isa = table();
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  int64_t columns = std::min(o.n, kF32Columns);
  const int64_t share = (o.n + 3 * threads - 1) / (3 * threads);
  if (threads > 1 && share < columns) {
    columns = (share + isa.gemm_tile_columns - 1) / isa.gemm_tile_columns * isa.gemm_tile_columns;
  }
  const int64_t tasks = (o.n + columns - 1) / columns;
  for_tasks(tasks, threads > 1, [&](int64_t task) {
    const int64_t j = task * columns, width = std::min(columns, o.n - j);
    const int64_t product_floats = isa.gemm_scratch_floats(width);
    float* const scratch = thread_scratch(kF32Depth * kF32Columns + product_floats);
    for (int64_t p = 0; p < o.k; p += kF32Depth) {
      const int64_t depth = std::min(kF32Depth, o.k - p);
      const Piece piece = decode_piece(linear, j, width, p, depth, scratch + product_floats);
      GemmBlock block;
      block.m = o.m;
      block.n = width;
      block.k = depth;
      block.a = static_cast<const float*>(o.a) + p;
      block.a_row = o.lda;
      block.a_col = 1;
      block.b = piece.values;
      block.b_row = piece.op_row;
      block.b_col = piece.op_col;
      block.c = static_cast<float*>(o.c) + j;
      block.ldc = o.ldc;
      block.alpha = 1.0f;
      block.beta = p == 0 ? o.beta : 1.0f;
      isa.gemm_block(block, scratch);
    }
  });
}

// The largest number of blocks that a row can touch.
int64_t blocks_of_row(const Linear& linear) {
  return linear.in_features / linear.weight->block_size + 2;
}

void product_of_few_rows(const Linear& linear) {
  const Bf16Operands& o = linear.operands;
  const bool whole = small_unit(o.k, linear.weight->block_size) != 0;
  static thread_local std::vector<float> x;
  x.resize(static_cast<size_t>(2 * o.m * o.k));
  float* const row = x.data() + o.m * o.k;  // one row, widened
  const int64_t half = o.k / 2;
  float* const even = x.data();
  float* const odd = even + o.m * half;
  const int64_t element = o.a_type == GRAFT_F32 ? 4 : 2;
  for (int64_t i = 0; i < o.m; ++i) {
    const uint8_t* const from = static_cast<const uint8_t*>(o.a) + i * o.lda * element;
    widen(from, o.a_type, o.k, whole ? row : even + i * o.k);
    for (int64_t p = 0; whole && p < half; ++p) {
      even[i * half + p] = row[2 * p];
      odd[i * half + p] = row[2 * p + 1];
    }
  }
  const SmallProduct product{linear.weight, o.m, o.n, o.k, even, odd, o.beta, o.c, o.ldc, o.c_type};
  const WeightTable& isa = *table().weights;
  const int64_t blocks = kSmallColumns * blocks_of_row(linear);
  for_pieces(o.n, 64, o.n * o.k, [&](int64_t begin, int64_t end) {
    isa.small_product(product, begin, end, thread_scratch(blocks));
  });
}

graft_status multiply(const char* function,
                      const Linear& linear,
                      graft_device device,
                      graft_stream stream) {
  if (const graft_status status = check(function, linear)) return status;
  const Bf16Operands& o = linear.operands;
  if (o.c_type != GRAFT_F32 && o.c_type != o.a_type) {
    return fail(GRAFT_BAD_ARGUMENT, function, "a bfloat16 result of float32 operands");
  }
  if (o.m == 0 || o.n == 0) return GRAFT_OK;
  if (device != GRAFT_CPU) {
    if (o.m > kSmallRows) {
      return fail(GRAFT_BAD_SHAPE, function, "m is %lld, expected at most %lld on a device",
                  static_cast<long long>(o.m), static_cast<long long>(kSmallRows));
    }
    const SmallRows call{*linear.weight, o.m,    o.n, o.k,      o.a,  o.a_type,
                         o.lda,          o.beta, o.c, o.c_type, o.ldc};
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.small_product(call, stream);
    });
  }
  if (linear.direction == Direction::kForward && o.m <= kSmallRows && o.k > 0) {
    product_of_few_rows(linear);
  } else if (o.a_type == GRAFT_BF16 || o.k == 0) {
    product_bf16(linear);
  } else {
    product_f32(linear);
  }
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_linear4_forward(const graft_nf4_weight* weight,
                                              int64_t out_features,
                                              int64_t in_features,
                                              int64_t m,
                                              const void* x,
                                              graft_float_type x_type,
                                              int64_t ldx,
                                              float beta,
                                              void* y,
                                              int64_t ldy,
                                              graft_float_type y_type,
                                              graft_device device,
                                              graft_stream stream) {
  return multiply("graft_linear4_forward",
                  {weight,
                   out_features,
                   in_features,
                   Direction::kForward,
                   {m, out_features, in_features, x, x_type, ldx, beta, y, ldy, y_type}},
                  device, stream);
}

extern "C" graft_status graft_linear4_backward(const graft_nf4_weight* weight,
                                               int64_t out_features,
                                               int64_t in_features,
                                               int64_t m,
                                               const void* dy,
                                               graft_float_type dy_type,
                                               int64_t lddy,
                                               float beta,
                                               void* dx,
                                               int64_t lddx,
                                               graft_float_type dx_type) {
  return multiply("graft_linear4_backward",
                  {weight,
                   out_features,
                   in_features,
                   Direction::kBackward,
                   {m, in_features, out_features, dy, dy_type, lddy, beta, dx, lddx, dx_type}},
                  GRAFT_CPU, nullptr);
}
