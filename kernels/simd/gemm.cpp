// One block of a product: op(B) is packed into panels of kTileColumns columns, so that the inner
// loop reads one stream; op(A) is read in place when its rows are contiguous and packed otherwise.
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Depth of one chain of sums before it meets C. Part of the result's definition: not to be tuned
// per machine. 256 x 32 floats of B are 32 KiB, two thirds of a 48 KiB first-level cache.
constexpr int64_t kDepth = 256;

// Rows of op(A) that stay in the second-level cache while every panel of B passes: 240 KiB.
constexpr int64_t kRowBlock = 240;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Columns j to j + kTileColumns of op(B) as [depth, kTileColumns], padded with zeros.
void pack_b_panel(const GemmBlock& block, int64_t p0, int64_t depth, int64_t j, float* panel) {
  const int64_t width = smaller_of(kTileColumns, block.n - j);
  if (width < kTileColumns) {
    for (int64_t i = 0; i < depth * kTileColumns; i += kLanes) store(panel + i, all(0.0f));
  }
  if (block.b_col != 1) {
    transpose(block.b + p0 + j * block.b_col, block.b_col, width, depth, panel, kTileColumns);
    return;
  }
  const float* const from = block.b + p0 * block.b_row + j;
  for (int64_t p = 0; p < depth; ++p) {
    for (int64_t x = 0; x < width; x += kLanes) {
      const int64_t lanes = smaller_of(kLanes, width - x);
      store(panel + p * kTileColumns + x, load_first(from + p * block.b_row + x, lanes));
    }
  }
}

// Panels of kTileRows rows, each [depth, kTileRows]; only for op(A) with contiguous columns.
void pack_a(
    const GemmBlock& block, int64_t i0, int64_t rows, int64_t p0, int64_t depth, float* panels) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t height = smaller_of(kTileRows, rows - i);
    const float* from = block.a + i0 + i + p0 * block.a_col;
    float* panel = panels + i * depth;
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t x = 0; x < height; ++x) panel[p * kTileRows + x] = from[p * block.a_col + x];
    }
  }
}

// Packing pays when an operand is read more than once.
bool packs_a(const GemmBlock& block) {
  return block.a_row == 1 && block.n > 2 * kTileColumns;
}
bool packs_b(const GemmBlock& block) {
  return block.b_col != 1 || block.m > 2 * kTileRows;
}

}  // namespace

int64_t gemm_scratch_floats(int64_t n) {
  return (kRowBlock + round_up(n, kTileColumns)) * kDepth;
}

void gemm_block(const GemmBlock& block, float* scratch) {
  const bool packed_a = packs_a(block), packed_b = packs_b(block);
  float* const b_panels = scratch;
  float* const a_panels = scratch + round_up(block.n, kTileColumns) * kDepth;
  for (int64_t p0 = 0; p0 < block.k; p0 += kDepth) {
    const int64_t depth = smaller_of(kDepth, block.k - p0);
    const float beta = p0 == 0 ? block.beta : 1.0f;
    for (int64_t i0 = 0; i0 < block.m; i0 += kRowBlock) {
      const int64_t rows = smaller_of(kRowBlock, block.m - i0);
      if (packed_a) pack_a(block, i0, rows, p0, depth, a_panels);
      const float* const a = block.a + i0 * block.a_row + p0 * block.a_col;
      for (int64_t j = 0; j < block.n; j += kTileColumns) {
        const int64_t width = smaller_of(kTileColumns, block.n - j);
        // Packed just before its first use, a panel is still in the first-level cache.
        if (packed_b && i0 == 0) pack_b_panel(block, p0, depth, j, b_panels + j * depth);
        for (int64_t i = 0; i < rows; i += kTileRows) {
          Tile tile;
          tile.k = depth;
          tile.a = packed_a ? a_panels + i * depth : a + i * block.a_row;
          tile.a_row = packed_a ? 1 : block.a_row;
          tile.a_col = packed_a ? kTileRows : block.a_col;
          tile.b = packed_b ? b_panels + j * depth : block.b + p0 * block.b_row + j;
          tile.b_row = packed_b ? kTileColumns : block.b_row;
          tile.c = block.c + (i0 + i) * block.ldc + j;
          tile.ldc = block.ldc;
          multiply_tile_scaled(smaller_of(kTileRows, rows - i), width, tile, block.alpha, beta);
        }
      }
    }
  }
}

}  // namespace graft::kernels::GRAFT_ISA
