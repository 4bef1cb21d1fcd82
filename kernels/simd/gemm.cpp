// One block of a product: op(A) and op(B) are packed into panels of kTileRows rows and kTileColumns
// columns, so that the inner loop reads two streams whose lines never share a set of the cache.
#include <cstring>

#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Depth of one chain of sums before it meets C. Part of the result's definition: not to be tuned
// per machine. 256 x 32 floats of B are 32 KiB, two thirds of a 48 KiB first-level cache.
constexpr int64_t kDepth = 256;

// Rows of op(A) that stay in the second-level cache while every panel of B passes: 120 KiB.
constexpr int64_t kRowBlock = 120;

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

// Rows i0 to i0 + rows of op(A) as panels of kTileRows rows, each [depth, kTileRows].
void pack_a(
    const GemmBlock& block, int64_t i0, int64_t rows, int64_t p0, int64_t depth, float* panels) {
  const float* const from = block.a + i0 * block.a_row + p0 * block.a_col;
  const int64_t full = rows / kTileRows * kTileRows;
  if (block.a_col == 1) {
    for (int64_t i = 0; i < full; i += kTileRows) {
      pack_tile_rows(from + i * block.a_row, block.a_row, depth, panels + i * depth);
    }
  } else {
    // Along the rows of what is stored: a line of it is read once.
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t i = 0; i < full; i += kTileRows) {
        std::memcpy(panels + i * depth + p * kTileRows, from + p * block.a_col + i,
                    kTileRows * sizeof(float));
      }
    }
  }
  for (int64_t i = full; i < rows; ++i) {
    for (int64_t p = 0; p < depth; ++p) {
      panels[full * depth + p * kTileRows + i - full] = from[i * block.a_row + p * block.a_col];
    }
  }
}

// A rectangle of floats that will be packed next. Its lines are asked for between tiles, a few at a
// time: the rows are short and lie in pages of their own, so that the processor does not see them
// coming.
class Upcoming {
 public:
  Upcoming() = default;
  // rows x columns of an operand, of whose strides one is 1, before the next `tiles` tiles.
  Upcoming(const float* from,
           int64_t rows,
           int64_t row_stride,
           int64_t columns,
           int64_t column_stride,
           int64_t tiles)
      : row_(from), stride_(row_stride), rows_(rows), columns_(columns) {
    if (column_stride != 1) {  // along what is stored
      stride_ = column_stride;
      rows_ = columns;
      columns_ = rows;
    }
    const int64_t lines = rows_ * ((columns_ + kLineFloats - 1) / kLineFloats);
    each_ = (lines + tiles - 1) / tiles;
  }
  void ask() {
    for (int64_t line = 0; line < each_ && rows_ > 0; ++line) {
      __builtin_prefetch(row_ + column_, 0, 2);
      column_ += kLineFloats;
      if (column_ < columns_) continue;
      column_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLineFloats = 16;
  const float* row_ = nullptr;
  int64_t stride_ = 0, rows_ = 0, columns_ = 0, column_ = 0, each_ = 0;
};

// What pack_a and pack_b_panel will read next. After the last row comes the next depth's first one;
// after the last column nothing, as other panels follow before that.
Upcoming upcoming_a(const GemmBlock& block, int64_t i0, int64_t p0, int64_t tiles) {
  if (i0 >= block.m) {
    i0 = 0;
    p0 += kDepth;
  }
  if (p0 >= block.k) return {};
  const int64_t rows = smaller_of(kRowBlock, block.m - i0);
  const int64_t depth = smaller_of(kDepth, block.k - p0);
  return {
      block.a + i0 * block.a_row + p0 * block.a_col, rows, block.a_row, depth, block.a_col, tiles};
}
Upcoming upcoming_b(const GemmBlock& block, int64_t p0, int64_t j, int64_t tiles) {
  if (j >= block.n) return {};
  const int64_t depth = smaller_of(kDepth, block.k - p0);
  const int64_t width = smaller_of(kTileColumns, block.n - j);
  return {
      block.b + p0 * block.b_row + j * block.b_col, depth, block.b_row, width, block.b_col, tiles};
}

// Packing pays when an operand is read more than once.
bool packs_a(const GemmBlock& block) {
  return block.n > 2 * kTileColumns;
}
bool packs_b(const GemmBlock& block) {
  return block.b_col != 1 || block.m > 2 * kTileRows;
}

}  // namespace

int64_t gemm_scratch_floats(int64_t n) {
  return (kRowBlock + round_up(n, kTileColumns)) * kDepth + kPanelSlack;
}

void gemm_block(const GemmBlock& block, float* scratch) {
  const bool packed_a = packs_a(block), packed_b = packs_b(block);
  float* const b_panels = scratch;
  float* const a_panels = scratch + round_up(block.n, kTileColumns) * kDepth;
  const int64_t column_tiles = round_up(block.n, kTileColumns) / kTileColumns;
  for (int64_t p0 = 0; p0 < block.k; p0 += kDepth) {
    const int64_t depth = smaller_of(kDepth, block.k - p0);
    const float beta = p0 == 0 ? block.beta : 1.0f;
    for (int64_t i0 = 0; i0 < block.m; i0 += kRowBlock) {
      const int64_t rows = smaller_of(kRowBlock, block.m - i0);
      if (packed_a) pack_a(block, i0, rows, p0, depth, a_panels);
      const float* const a = block.a + i0 * block.a_row + p0 * block.a_col;
      const int64_t row_tiles = round_up(rows, kTileRows) / kTileRows;
      Upcoming next_a, next_b;
      if (packed_a) {
        next_a = upcoming_a(block, i0 + kRowBlock, p0, row_tiles * column_tiles);
      }
      for (int64_t j = 0; j < block.n; j += kTileColumns) {
        const int64_t width = smaller_of(kTileColumns, block.n - j);
        // Packed just before its first use, a panel is still in the first-level cache.
        if (packed_b && i0 == 0) {
          pack_b_panel(block, p0, depth, j, b_panels + j * depth);
          next_b = upcoming_b(block, p0, j + kTileColumns, row_tiles);
        }
        for (int64_t i = 0; i < rows; i += kTileRows) {
          next_a.ask();
          next_b.ask();
          Tile tile;
          tile.k = depth;
          tile.a = packed_a ? a_panels + i * depth : a + i * block.a_row;
          tile.a_row = packed_a ? 1 : block.a_row;
          tile.a_col = packed_a ? kTileRows : block.a_col;
          tile.b = packed_b ? b_panels + j * depth : block.b + p0 * block.b_row + j;
          tile.b_row = packed_b ? kTileColumns : block.b_row;
          tile.c = block.c + (i0 + i) * block.ldc + j;
          tile.ldc = block.ldc;
          const int64_t height = smaller_of(kTileRows, rows - i);
          if (packed_a && packed_b && height == kTileRows && width == kTileColumns) {
            multiply_packed_tile(tile, block.alpha, beta);
          } else {
            multiply_tile_scaled(height, width, tile, block.alpha, beta);
          }
        }
      }
    }
  }
}

}  // namespace graft::kernels::GRAFT_ISA
