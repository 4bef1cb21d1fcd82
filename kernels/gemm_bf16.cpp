#include "kernels/gemm_bf16.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "kernels/bf16_product.h"

namespace graft::kernels {
namespace {

int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// A second buffer of the calling thread beside thread_scratch, which its tasks use.
uint16_t* rows_scratch(int64_t values) {
  struct Free {
    void operator()(uint16_t* pointer) const { std::free(pointer); }
  };
  static thread_local std::unique_ptr<uint16_t, Free> buffer;
  static thread_local int64_t capacity = 0;
  if (values > capacity) {
    buffer.reset();
    capacity = 0;
    const int64_t rounded = round_up(values, 4096);
    void* memory = std::aligned_alloc(64, static_cast<size_t>(rounded) * sizeof(uint16_t));
    if (memory == nullptr) throw std::bad_alloc();
    buffer.reset(static_cast<uint16_t*>(memory));
    capacity = rounded;
  }
  return buffer.get();
}

graft_status check_b(
    const char* function, graft_transpose tb, int64_t n, int64_t k, const void* b, int64_t ldb) {
  if (tb != GRAFT_N && tb != GRAFT_T) {
    return fail(GRAFT_BAD_ARGUMENT, function, "transpose is %d, expected 0 or 1",
                static_cast<int>(tb));
  }
  if (const graft_status status = check_counts(function, {{"ldb", ldb, tb == GRAFT_N ? n : k}})) {
    return status;
  }
  return check_pointers(function, {{"b", b}});
}

// The product where A is stored [k, m] and has many more columns than B, with the operands in each
// other's place: no column of A is read alone, and no lane is idle. Float32 C, beta 0 or 1.
bool swaps(const Bf16Operands& o) {
  return o.ta == GRAFT_T && o.a_type == GRAFT_BF16 && o.c_type == GRAFT_F32 &&
         o.n <= kBf16FewColumns && o.m >= 4 * o.n && o.k > 0 && o.alpha != 0.0f &&
         (o.beta == 0.0f || o.beta == 1.0f);
}

void product_swapped(const Bf16Operands& o, graft_transpose tb, const uint16_t* b, int64_t ldb) {
  const WeightTable& isa = *table().weights;
  // op(B)^T as rows.
  const int64_t row = o.k + o.k % 2;
  const int64_t b_row = tb == GRAFT_N ? ldb : 1, b_col = tb == GRAFT_N ? 1 : ldb;
  uint16_t* const rows = rows_scratch(o.n * row);
  for (int64_t j = 0; j < o.n; ++j) {
    for (int64_t p = 0; p < o.k; ++p) rows[j * row + p] = b[p * b_row + j * b_col];
    if (row > o.k) rows[j * row + o.k] = 0;
  }
  constexpr int64_t kPanels = kBf16TaskColumns * kBf16Depth / 2;  // floats
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  const int64_t tasks = (o.m + kBf16TaskColumns - 1) / kBf16TaskColumns;
  for_tasks(tasks, threads > 1 && o.m * o.n * o.k > kParallelWork, [&](int64_t task) {
    const int64_t i = task * kBf16TaskColumns, width = std::min(kBf16TaskColumns, o.m - i);
    float* const sums = thread_scratch(kPanels + o.n * width) + kPanels;
    auto* const panels = reinterpret_cast<uint16_t*>(sums - kPanels);
    float* const c = static_cast<float*>(o.c) + i * o.ldc;
    for (int64_t p = 0; p < o.k; p += kBf16Depth) {
      const int64_t depth = std::min(kBf16Depth, o.k - p);
      isa.bf16_pack(static_cast<const uint16_t*>(o.a) + p * o.lda + i, o.lda, 1, depth, width,
                    panels);
      isa.bf16_block({rows + p, row, panels, o.n, width, depth, sums, width, o.alpha, 0.0f});
      const bool adds = p > 0 || o.beta != 0.0f;
      for (int64_t q = 0; q < width; ++q) {
        for (int64_t j = 0; j < o.n; ++j) {
          c[q * o.ldc + j] = adds ? sums[j * width + q] + c[q * o.ldc + j] : sums[j * width + q];
        }
      }
    }
  });
}

}  // namespace

graft_status check_bf16_operands(const char* function, const Bf16Operands& o) {
  for (const graft_float_type type : {o.a_type, o.c_type}) {
    if (const graft_status status = check_element(function, type)) return status;
  }
  if (const graft_status status = check_counts(function, {{"m", o.m}, {"n", o.n}, {"k", o.k}})) {
    return status;
  }
  if (o.m == 0 || o.n == 0) return GRAFT_OK;
  if (const graft_status status = check_counts(
          function, {{"lda", o.lda, o.ta == GRAFT_N ? o.k : o.m}, {"ldc", o.ldc, o.n}})) {
    return status;
  }
  if (const graft_status status = check_pointers(function, {{"c", o.c}})) return status;
  return o.k == 0 ? GRAFT_OK : check_pointers(function, {{"a", o.a}});
}

Bf16Rows bf16_rows(const Bf16Operands& o) {
  if (o.a_type == GRAFT_BF16 && o.ta == GRAFT_N && o.k % 2 == 0) {
    return {static_cast<const uint16_t*>(o.a), o.lda};
  }
  const int64_t row = o.k + o.k % 2;
  uint16_t* const values = rows_scratch(o.m * row);
  const int64_t a_row = o.ta == GRAFT_N ? o.lda : 1, a_col = o.ta == GRAFT_N ? 1 : o.lda;
  const auto value_at = [&](int64_t i, int64_t p) {
    const int64_t at = i * a_row + p * a_col;
    if (o.a_type == GRAFT_BF16) return static_cast<const uint16_t*>(o.a)[at];
    return to_bf16_or_nan(static_cast<const float*>(o.a)[at]);
  };
  // Squares of 32: a transposed A is read and written in cache lines.
  constexpr int64_t kSquare = 32;
  for_pieces(o.m, kSquare, o.m * o.k, [&](int64_t begin, int64_t end) {
    for (int64_t p = 0; p < o.k; p += kSquare) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t q = p; q < std::min(p + kSquare, o.k); ++q) {
          values[i * row + q] = value_at(i, q);
        }
      }
    }
    for (int64_t i = begin; i < end && row > o.k; ++i) values[i * row + o.k] = 0;
  });
  return {values, row};
}

Bf16Cut bf16_cut(int64_t m, int64_t n, int64_t k, int64_t threads) {
  Bf16Cut cut{m, std::min(n, kBf16TaskColumns), 1, 0, 0, false};
  // Narrower tasks where there are more threads than tasks. A few columns are one task for each
  // share of the rows.
  const int64_t share = (n + 3 * threads - 1) / (3 * threads);
  if (threads > 1 && n <= kBf16FewColumns && m >= kBf16ShareRows * threads) {
    cut.rows = round_up(m / threads, kBf16ShareRows);
  } else if (threads > 1 && share < cut.columns) {
    cut.columns = round_up(share, kBf16PanelColumns);
  }
  cut.row_tasks = (m + cut.rows - 1) / cut.rows;
  cut.tasks = (n + cut.columns - 1) / cut.columns * cut.row_tasks;
  cut.panel_columns = round_up(cut.columns, kBf16PanelColumns);
  cut.packs_all = (k + 1) * cut.panel_columns <= kBf16WholeValues;
  return cut;
}

void bf16_product_of(const Bf16Operands& operands,
                     graft_transpose tb,
                     const uint16_t* b,
                     int64_t ldb) {
  if (swaps(operands)) return product_swapped(operands, tb, b, ldb);
  const int64_t b_row = tb == GRAFT_N ? ldb : 1, b_col = tb == GRAFT_N ? 1 : ldb;
  const WeightTable& isa = *table().weights;
  bf16_product(
      operands, 0,
      [&](int64_t j, int64_t width, int64_t p, int64_t depth, uint16_t*, uint16_t* panels) {
        isa.bf16_pack(b + p * b_row + j * b_col, b_row, b_col, depth, width, panels);
        return panels;
      });
}

int64_t PartlyPacked::first_row(const graft_decode_target& target) const {
  const std::ptrdiff_t at = static_cast<const uint16_t*>(target.out) - values;
  return at >= 0 && at % stride == 0 ? at / stride : -1;
}

void PartlyPacked::read(int64_t row, int64_t begin, int64_t end, uint16_t* out) const {
  int64_t column = begin;
  for (int64_t i = 0; i < count; ++i) {
    const graft_decode_target& target = targets[i];
    const int64_t inside = row - first_row(target);
    if (inside < 0 || inside * target.columns >= target.weight.count) continue;
    column = std::clamp(target.columns, begin, end);
    table().weights->quant4_decode_bf16(target.weight, inside * target.columns + begin,
                                        inside * target.columns + column, out, Stores::kCached);
    break;
  }
  if (column < end) std::copy_n(values + row * stride + column, end - column, out + column - begin);
}

void bf16_product_decoding(const Bf16Operands& operands,
                           graft_transpose tb,
                           const PartlyPacked& b) {
  constexpr int64_t kValues = kBf16TaskColumns * kBf16Depth;
  const bool rows_are_columns = tb == GRAFT_T;  // b's rows are those of op(B)^T
  bf16_product(
      operands, kValues / 2,
      [&](int64_t j, int64_t width, int64_t p, int64_t depth, uint16_t* piece, uint16_t* panels) {
        const int64_t row = rows_are_columns ? j : p, column = rows_are_columns ? p : j;
        const int64_t rows = rows_are_columns ? width : depth;
        const int64_t columns = rows_are_columns ? depth : width;
        for (int64_t r = 0; r < rows; ++r) {
          b.read(row + r, column, column + columns, piece + r * columns);
        }
        table().weights->bf16_pack(piece, rows_are_columns ? 1 : columns,
                                   rows_are_columns ? columns : 1, depth, width, panels);
        return panels;
      });
}

void bf16_scale_only(const Bf16Operands& o) {
  if (o.beta == 0.0f) {
    for (int64_t i = 0; i < o.m; ++i) {
      std::memset(static_cast<char*>(o.c) + i * o.ldc * size_of(o.c_type), 0,
                  static_cast<size_t>(o.n * size_of(o.c_type)));
    }
    return;
  }
  table().conversion({o.c, o.c, o.c_type, o.c_type, o.n, o.ldc, o.ldc, o.beta}, 0, o.m);
}

}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" int graft_gemm_bf16_native(void) {
  return instruction_set_available(InstructionSet::kAvx512Bf16) ? 1 : 0;
}

extern "C" graft_status graft_gemm_bf16(graft_transpose tb,
                                        int64_t m,
                                        int64_t n,
                                        int64_t k,
                                        const void* a,
                                        graft_float_type a_type,
                                        int64_t lda,
                                        const uint16_t* b,
                                        int64_t ldb,
                                        float beta,
                                        float* c,
                                        int64_t ldc) {
  constexpr const char* kName = "graft_gemm_bf16";
  const Bf16Operands operands{m, n, k, a, a_type, lda, beta, c, ldc};
  if (const graft_status status = check_bf16_operands(kName, operands)) return status;
  if (m == 0 || n == 0) return GRAFT_OK;
  if (k > 0) {
    if (const graft_status status = check_b(kName, tb, n, k, b, ldb)) return status;
  }
  bf16_product_of(operands, tb, b, ldb);
  return GRAFT_OK;
}

extern "C" int64_t graft_bf16_packed_values(int64_t n, int64_t k) {
  return n < 1 || k < 1 ? 0 : round_up(n, kBf16PanelColumns) * round_up(k, 2);
}

// Chains lie one after another, each with all of its columns' panels.
extern "C" graft_status graft_bf16_pack(
    graft_transpose tb, int64_t n, int64_t k, const uint16_t* b, int64_t ldb, uint16_t* packed) {
  constexpr const char* kName = "graft_bf16_pack";
  if (const graft_status status = check_counts(kName, {{"n", n}, {"k", k}})) return status;
  if (n == 0 || k == 0) return GRAFT_OK;
  if (const graft_status status = check_b(kName, tb, n, k, b, ldb)) return status;
  if (const graft_status status = check_pointers(kName, {{"packed", packed}})) return status;
  const int64_t b_row = tb == GRAFT_N ? ldb : 1, b_col = tb == GRAFT_N ? 1 : ldb;
  const int64_t columns = round_up(n, kBf16PanelColumns);
  const WeightTable& isa = *table().weights;
  for_pieces(k, kBf16Depth, n * k, [&](int64_t p, int64_t end) {
    isa.bf16_pack(b + p * b_row, b_row, b_col, end - p, n, packed + p * columns);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_gemm_bf16_packed(int64_t m,
                                               int64_t n,
                                               int64_t k,
                                               const void* a,
                                               graft_float_type a_type,
                                               int64_t lda,
                                               const uint16_t* packed,
                                               float beta,
                                               float* c,
                                               int64_t ldc) {
  constexpr const char* kName = "graft_gemm_bf16_packed";
  const Bf16Operands operands{m, n, k, a, a_type, lda, beta, c, ldc};
  if (const graft_status status = check_bf16_operands(kName, operands)) return status;
  if (m == 0 || n == 0) return GRAFT_OK;
  if (k > 0) {
    if (const graft_status status = check_pointers(kName, {{"packed", packed}})) return status;
  }
  const int64_t columns = round_up(n, kBf16PanelColumns);
  bf16_product(operands, 0,
               [&](int64_t j, int64_t, int64_t p, int64_t depth, uint16_t*, uint16_t*) {
                 return packed + p * columns + j * round_up(depth, 2);
               });
  return GRAFT_OK;
}
