#include "kernels/gemm.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/gemm_chain.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// Columns of op(B) that one task packs at most: 256 x 1024 floats. Fewer threads share the columns
// in wider pieces, so that op(A) is packed less often.
constexpr int64_t kWidths[] = {1024, 768, 512, 384, 256, 192, 128, 64};
// Packing an element takes as long as this many multiply-adds.
constexpr int64_t kPackCost = 16;
constexpr int64_t kLeastRows = 48;  // of a task

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
int64_t round_up(int64_t value, int64_t unit) {
  return ceil_div(value, unit) * unit;
}

void scale_only(int64_t m, int64_t n, float beta, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
  }
}

struct Grid {
  int64_t rows, columns;  // of a task
};

// Cuts C into the tasks that `threads` finish first, by the number of multiply-adds. The cut
// changes which thread computes an element, never its value.
Grid choose_grid(int64_t m, int64_t n, int64_t k, const Table& isa) {
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  if (m * n * k < (1 << 19)) return {m, std::min(n, kWidths[0])};
  Grid best{};
  int64_t least = std::numeric_limits<int64_t>::max();
  int64_t tried = 0;  // numbers of column tasks grow
  for (const int64_t width : kWidths) {
    const int64_t column_tasks = ceil_div(n, width);
    if (column_tasks == tried) continue;
    tried = column_tasks;
    const int64_t columns = round_up(ceil_div(n, column_tasks), isa.gemm_tile_columns);
    const int64_t most = std::min(ceil_div(m, kLeastRows), ceil_div(8 * threads, column_tasks));
    for (int64_t row_tasks = 1; row_tasks <= most; ++row_tasks) {
      const int64_t rows = round_up(ceil_div(m, row_tasks), isa.gemm_tile_rows);
      const int64_t task = rows * columns + kPackCost * (rows + columns);
      // A sixteenth of the last task: among equals the smaller ones, for a thread that is held up.
      const int64_t turns = ceil_div(ceil_div(m, rows) * ceil_div(n, columns), threads);
      const int64_t cost = turns * task + (threads > 1 ? task / 16 : 0);
      if (cost >= least) continue;
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

GemmBlock block_of(const graft_product& p, int64_t i, int64_t j, int64_t rows, int64_t columns) {
  GemmBlock block;
  block.m = rows;
  block.n = columns;
  block.k = p.k;
  block.a_row = p.ta == GRAFT_N ? p.lda : 1;
  block.a_col = p.ta == GRAFT_N ? 1 : p.lda;
  block.b_row = p.tb == GRAFT_N ? p.ldb : 1;
  block.b_col = p.tb == GRAFT_N ? 1 : p.ldb;
  block.a = static_cast<const float*>(p.a) + i * block.a_row;
  block.b = static_cast<const float*>(p.b) + j * block.b_col;
  block.c = static_cast<float*>(p.c) + i * p.ldc + j;
  block.ldc = p.ldc;
  block.alpha = p.alpha;
  block.beta = p.beta;
  return block;
}

}  // namespace

void gemm_f32_chain(const graft_product* products, int64_t count) {
  const int64_t m = products[0].m, n = products[0].n;
  int64_t depth = 0;
  for (int64_t i = 0; i < count; ++i) depth += products[i].k;
  const Table& isa = table();
  const Grid grid = choose_grid(m, n, depth, isa);
  const int64_t row_tasks = ceil_div(m, grid.rows);
  const int64_t tasks = row_tasks * ceil_div(n, grid.columns);
  for_tasks(tasks, omp_get_max_threads() > 1, [&](int64_t task) {
    const int64_t i = task % row_tasks * grid.rows, rows = std::min(grid.rows, m - i);
    const int64_t j = task / row_tasks * grid.columns, columns = std::min(grid.columns, n - j);
    float* const scratch = thread_scratch(isa.gemm_scratch_floats(columns));
    for (int64_t x = 0; x < count; ++x) {
      const graft_product& p = products[x];
      if (p.k == 0 || p.alpha == 0.0f) {
        scale_only(rows, columns, p.beta, static_cast<float*>(p.c) + i * p.ldc + j, p.ldc);
      } else {
        isa.gemm_block(block_of(p, i, j, rows, columns), scratch);
      }
    }
  });
}

}  // namespace graft::kernels

extern "C" graft_status graft_gemm_f32(graft_transpose ta,
                                       graft_transpose tb,
                                       int64_t m,
                                       int64_t n,
                                       int64_t k,
                                       float alpha,
                                       const float* a,
                                       int64_t lda,
                                       const float* b,
                                       int64_t ldb,
                                       float beta,
                                       float* c,
                                       int64_t ldc) {
  using namespace graft::kernels;
  constexpr const char* kName = "graft_gemm_f32";
  if ((ta != GRAFT_N && ta != GRAFT_T) || (tb != GRAFT_N && tb != GRAFT_T)) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "transpose is %d and %d, expected 0 or 1",
                static_cast<int>(ta), static_cast<int>(tb));
  }
  if (const graft_status status = check_counts(kName, {{"m", m}, {"n", n}, {"k", k}})) {
    return status;
  }
  if (m == 0 || n == 0) return GRAFT_OK;
  if (const graft_status status = check_counts(kName, {{"lda", lda, ta == GRAFT_N ? k : m},
                                                       {"ldb", ldb, tb == GRAFT_N ? n : k},
                                                       {"ldc", ldc, n}})) {
    return status;
  }
  if (const graft_status status = check_pointers(kName, {{"c", c}})) return status;
  if (k > 0 && alpha != 0.0f) {
    if (const graft_status status = check_pointers(kName, {{"a", a}, {"b", b}})) return status;
  }
  const graft_product product{ta,  tb, m,   n, k,   alpha,     beta,     a,
                              lda, b,  ldb, c, ldc, GRAFT_F32, GRAFT_F32};
  gemm_f32_chain(&product, 1);
  return GRAFT_OK;
}
