// The walk over a bfloat16 product whose B comes from anywhere (internal).
#pragma once

#include <algorithm>

#include "kernels/check.h"
#include "kernels/float16.h"
#include "kernels/gemm_bf16.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {

// Columns of one task: 256 x 512 decoded and as many packed values are half of a 1 MiB second-level
// cache.
constexpr int64_t kBf16TaskColumns = 256;

// So few columns that they are one task, and the least rows that are worth packing them for.
constexpr int64_t kBf16FewColumns = 64;
constexpr int64_t kBf16ShareRows = 96;

struct Bf16Operands {
  int64_t m, n, k;
  const void* a;
  graft_float_type a_type;
  int64_t lda;
  float beta;
  void* c;
  int64_t ldc;
  graft_float_type c_type = GRAFT_F32;
  graft_transpose ta = GRAFT_N;  // GRAFT_T: a is stored [k, m]
  float alpha = 1.0f;
};

graft_status check_bf16_operands(const char* function, const Bf16Operands& o);

// A as bfloat16 with rows of an even length: itself, or a copy in this thread's buffer that lasts
// until the thread's next call.
struct Bf16Rows {
  const uint16_t* values;
  int64_t row;
};
Bf16Rows bf16_rows(const Bf16Operands& o);

// The product with a plain B, packed piece by piece; operands are checked.
void bf16_product_of(const Bf16Operands& operands,
                     graft_transpose tb,
                     const uint16_t* b,
                     int64_t ldb);

// The same where A is stored [k, m] and has many more columns than B, with the operands in each
// other's place: no column of A is read alone, and no lane is idle. Float32 C, beta 0 or 1.
bool bf16_swaps(const Bf16Operands& operands);
void bf16_product_swapped(const Bf16Operands& operands,
                          graft_transpose tb,
                          const uint16_t* b,
                          int64_t ldb);

// C = beta C.
void bf16_scale_only(const Bf16Operands& o);

// panels_of(j, width, p, depth, scratch) gives op(B)'s rows p.. and columns j.. as bf16_pack does,
// in `scratch` (scratch_floats of it) or elsewhere. op(B) of width 0 never comes.
template <class PanelsOf>
void bf16_product(const Bf16Operands& o, int64_t scratch_floats, const PanelsOf& panels_of) {
  const Table& isa = table();
  if (o.k == 0 || o.alpha == 0.0f) return bf16_scale_only(o);
  const Bf16Rows a = bf16_rows(o);
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  // Narrower tasks where there are more threads than tasks; a column's value does not change. A few
  // columns are one task for each share of the rows.
  int64_t columns = std::min(o.n, kBf16TaskColumns), rows = o.m;
  const int64_t share = (o.n + 3 * threads - 1) / (3 * threads);
  if (threads > 1 && o.n <= kBf16FewColumns && o.m >= kBf16ShareRows * threads) {
    rows = (o.m / threads + kBf16ShareRows - 1) / kBf16ShareRows * kBf16ShareRows;
  } else if (threads > 1 && share < columns) {
    columns = (share + kBf16PanelColumns - 1) / kBf16PanelColumns * kBf16PanelColumns;
  }
  const int64_t row_tasks = (o.m + rows - 1) / rows;
  const int64_t tasks = (o.n + columns - 1) / columns * row_tasks;
  // A bfloat16 C is summed in float32 and rounded once at the end.
  const bool rounds = o.c_type == GRAFT_BF16;
  for_tasks(tasks, threads > 1, [&](int64_t task) {
    const int64_t j = task / row_tasks * columns, width = std::min(columns, o.n - j);
    const int64_t i = task % row_tasks * rows, height = std::min(rows, o.m - i);
    const int64_t sum_floats = rounds ? height * width : 0;
    float* const scratch = thread_scratch(scratch_floats + sum_floats);
    void* const c = static_cast<char*>(o.c) + (i * o.ldc + j) * size_of(o.c_type);
    Bf16Block block;
    block.c = rounds ? scratch + scratch_floats : static_cast<float*>(c);
    block.ldc = rounds ? width : o.ldc;
    if (rounds && o.beta != 0.0f) {
      isa.conversion({c, block.c, GRAFT_BF16, GRAFT_F32, width, o.ldc, width, 1.0f}, 0, height);
    }
    for (int64_t p = 0; p < o.k; p += kBf16Depth) {
      const int64_t depth = std::min(kBf16Depth, o.k - p);
      block.a = a.values + i * a.row + p;
      block.a_row = a.row;
      block.panels = panels_of(j, width, p, depth, reinterpret_cast<uint16_t*>(scratch));
      block.m = height;
      block.n = width;
      block.depth = depth;
      block.alpha = o.alpha;
      block.beta = p == 0 ? o.beta : 1.0f;
      isa.weights->bf16_block(block);
    }
    if (rounds) {
      isa.conversion({block.c, c, GRAFT_F32, GRAFT_BF16, width, width, o.ldc, 1.0f}, 0, height);
    }
  });
}

}  // namespace graft::kernels
