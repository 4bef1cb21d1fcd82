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

struct Bf16Operands {
  int64_t m, n, k;
  const void* a;
  graft_float_type a_type;
  int64_t lda;
  float beta;
  float* c;
  int64_t ldc;
};

graft_status check_bf16_operands(const char* function, const Bf16Operands& o);

// A as bfloat16 with rows of an even length: itself, or a copy in this thread's buffer that lasts
// until the thread's next call.
struct Bf16Rows {
  const uint16_t* values;
  int64_t row;
};
Bf16Rows bf16_rows(const Bf16Operands& o);

// panels_of(j, width, p, depth, scratch) gives op(B)'s rows p.. and columns j.. as bf16_pack does,
// in `scratch` (panel_values floats of it) or elsewhere. op(B) of width 0 never comes.
template <class PanelsOf>
void bf16_product(const Bf16Operands& o, int64_t scratch_floats, const PanelsOf& panels_of) {
  const WeightTable& isa = *table().weights;
  if (o.k == 0) {
    for (int64_t i = 0; i < o.m; ++i) {
      for (int64_t j = 0; j < o.n; ++j) {
        float& c = o.c[i * o.ldc + j];
        c = o.beta == 0.0f ? 0.0f : o.beta * c;
      }
    }
    return;
  }
  const Bf16Rows a = bf16_rows(o);
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  // Narrower tasks where there are more threads than tasks; a column's value does not change.
  int64_t columns = std::min(o.n, kBf16TaskColumns);
  const int64_t share = (o.n + 3 * threads - 1) / (3 * threads);
  if (threads > 1 && share < columns) {
    columns = (share + kBf16PanelColumns - 1) / kBf16PanelColumns * kBf16PanelColumns;
  }
  const int64_t tasks = (o.n + columns - 1) / columns;
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1 && threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t j = task * columns, width = std::min(columns, o.n - j);
    float* const scratch = scratch_floats > 0 ? thread_scratch(scratch_floats) : nullptr;
    for (int64_t p = 0; p < o.k; p += kBf16Depth) {
      const int64_t depth = std::min(kBf16Depth, o.k - p);
      Bf16Block block;
      block.a = a.values + p;
      block.a_row = a.row;
      block.panels = panels_of(j, width, p, depth, reinterpret_cast<uint16_t*>(scratch));
      block.m = o.m;
      block.n = width;
      block.depth = depth;
      block.c = o.c + j;
      block.ldc = o.ldc;
      block.beta = p == 0 ? o.beta : 1.0f;
      isa.bf16_block(block);
    }
  }
}

}  // namespace graft::kernels
