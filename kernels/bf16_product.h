// The walk over a bfloat16 product whose B comes from anywhere (internal).
#pragma once

#include <algorithm>

#include "kernels/check.h"
#include "kernels/decode_rows.h"
#include "kernels/float16.h"
#include "kernels/gemm_bf16.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {

// Columns of one task: 256 x 512 decoded and as many packed values are half of a 1 MiB second-level
// cache.
constexpr int64_t kBf16TaskColumns = 256;
// Packed values of a whole task that leave room for kBf16BlockRows of A and of C beside them.
constexpr int64_t kBf16WholeValues = 256 * 1024;

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

// Rows of B of which parts are in 4 bits, where the targets say (product_decode.h).
struct PartlyPacked {
  const uint16_t* values;
  int64_t stride;
  const graft_decode_target* targets;
  int64_t count;

  // The first row of a target; negative where it is not a row's beginning.
  int64_t first_row(const graft_decode_target& target) const;
  // Columns [begin, end) of a row.
  void read(int64_t row, int64_t begin, int64_t end, uint16_t* out) const;
};

// The product with such a B, decoded and packed piece by piece; operands and targets are checked.
void bf16_product_decoding(const Bf16Operands& operands, graft_transpose tb, const PartlyPacked& b);

// C = beta C.
void bf16_scale_only(const Bf16Operands& o);

// How C is cut into tasks. No cut changes a value.
struct Bf16Cut {
  int64_t rows, columns;  // of a task, the last ones shorter
  int64_t row_tasks, tasks;
  int64_t panel_columns;  // columns in whole panels
  // Whether all chains of a task are packed before its first row, so that rows of C are in the
  // caches until they are done.
  bool packs_all;
};
Bf16Cut bf16_cut(int64_t m, int64_t n, int64_t k, int64_t threads);

// panels_of(j, width, p, depth, piece, panels) gives op(B)'s rows p.. and columns j.. as bf16_pack
// does: in `panels`, which has room for them, or elsewhere. `piece` is scratch of piece_floats.
// op(B) of width 0 never comes.
template <class PanelsOf>
void bf16_product(const Bf16Operands& o, int64_t piece_floats, const PanelsOf& panels_of) {
  const Table& isa = table();
  if (o.k == 0 || o.alpha == 0.0f) return bf16_scale_only(o);
  const Bf16Rows a = bf16_rows(o);
  const int64_t threads = omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
  const Bf16Cut cut = bf16_cut(o.m, o.n, o.k, threads);
  const int64_t panel_floats = (cut.packs_all ? o.k + 1 : kBf16Depth) * cut.panel_columns / 2;
  // A bfloat16 C is summed in float32 and rounded once at the end.
  const bool rounds = o.c_type == GRAFT_BF16;
  for_tasks(cut.tasks, threads > 1, [&](int64_t task) {
    const int64_t j = task / cut.row_tasks * cut.columns, width = std::min(cut.columns, o.n - j);
    const int64_t begin = task % cut.row_tasks * cut.rows, end = std::min(begin + cut.rows, o.m);
    const int64_t rows = cut.packs_all ? std::min(kBf16BlockRows, end - begin) : end - begin;
    float* const scratch =
        thread_scratch(piece_floats + panel_floats + (rounds ? rows * width : 0));
    float* const sums = scratch + piece_floats + panel_floats;
    const auto panels_at = [&](int64_t p) {
      auto* const panels = reinterpret_cast<uint16_t*>(scratch + piece_floats);
      return panels_of(j, width, p, std::min(kBf16Depth, o.k - p),
                       reinterpret_cast<uint16_t*>(scratch),
                       panels + (cut.packs_all ? p * cut.panel_columns : 0));
    };
    const uint16_t* packed[kBf16WholeValues / (kBf16PanelColumns * kBf16Depth) + 1];
    for (int64_t p = 0; cut.packs_all && p < o.k; p += kBf16Depth) {
      packed[p / kBf16Depth] = panels_at(p);
    }
    Bf16Block block;
    block.n = width;
    block.alpha = o.alpha;
    block.a_row = a.row;
    for (int64_t i = begin; i < end; i += rows) {
      block.m = std::min(rows, end - i);
      void* const c = static_cast<char*>(o.c) + (i * o.ldc + j) * size_of(o.c_type);
      block.c = rounds ? sums : static_cast<float*>(c);
      block.ldc = rounds ? width : o.ldc;
      if (rounds && o.beta != 0.0f) {
        isa.conversion({c, sums, GRAFT_BF16, GRAFT_F32, width, o.ldc, width, 1.0f}, 0, block.m);
      }
      for (int64_t p = 0; p < o.k; p += kBf16Depth) {
        block.a = a.values + i * a.row + p;
        block.panels = cut.packs_all ? packed[p / kBf16Depth] : panels_at(p);
        block.depth = std::min(kBf16Depth, o.k - p);
        block.beta = p == 0 ? o.beta : 1.0f;
        isa.weights->bf16_block(block);
      }
      if (rounds) {
        isa.conversion({sums, c, GRAFT_F32, GRAFT_BF16, width, width, o.ldc, 1.0f}, 0, block.m);
      }
    }
  });
}

}  // namespace graft::kernels
