#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

constexpr int64_t kMaxVectors = kTileColumns / kLanes;

// Sums rows x vectors accumulators in registers. kMasked: the last vector has `last` columns.
template <int kRows, int kVectors, bool kMasked>
struct Accumulators {
  Lanes sum[kRows][kVectors];

  GRAFT_LANES_INLINE Lanes read(const float* p, int vector, int64_t last) {
    return kMasked && vector == kVectors - 1 ? load_first(p, last) : load(p);
  }
  GRAFT_LANES_INLINE void write(float* p, Lanes value, int vector, int64_t last) {
    if (kMasked && vector == kVectors - 1) {
      store_first(p, value, last);
    } else {
      store(p, value);
    }
  }

  inline __attribute__((always_inline)) void clear() {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = all(0.0f);
    }
  }

  inline __attribute__((always_inline)) void write_scaled(const Tile& tile,
                                                          int64_t last,
                                                          float alpha,
                                                          float beta) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* c = tile.c + i * tile.ldc + v * kLanes;
        Lanes value = mul(sum[i][v], all(alpha));
        if (beta != 0.0f) value = fma(all(beta), read(c, v, last), value);
        write(c, value, v, last);
      }
    }
  }

  // One column of op(A) times one row of op(B).
  inline __attribute__((always_inline)) void add_packed(const float* a, const float* b) {
    Lanes column[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Lanes row = all(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(row, column[v], sum[i][v]);
    }
  }

  inline __attribute__((always_inline)) void run_packed(const Tile& tile) {
    constexpr int kUnroll = 4;
    // A panel of A is walked once for each panel of B, from the second-level cache: the lines of
    // the next 16 columns of A are asked for while these are summed.
    constexpr int64_t kAhead = 16 * kRows * sizeof(float);
    const float* a = tile.a;
    const float* b = tile.b;
    int64_t p = 0;
    for (; p + kUnroll <= tile.k; p += kUnroll) {
#pragma GCC unroll 4
      for (int64_t byte = 0; byte < kUnroll * kRows * 4; byte += 64) prefetch(a, kAhead + byte);
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) add_packed(a + u * kRows, b + u * kVectors * kLanes);
      a += kUnroll * kRows;
      b += kUnroll * kVectors * kLanes;
    }
    for (; p < tile.k; ++p, a += kRows, b += kVectors * kLanes) add_packed(a, b);
  }

  inline __attribute__((always_inline)) void run(const Tile& tile, int64_t last) {
    // Rows in groups of four share three strides, which leaves registers for the addresses.
    constexpr int kGroups = (kRows + 3) / 4;
    const int64_t stride[4] = {0, tile.a_row, 2 * tile.a_row, 3 * tile.a_row};
    const float* group[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) group[g] = tile.a + 4 * g * tile.a_row;
    const float* b = tile.b;
    const int64_t b_row = tile.b_row;
    const int64_t a_col = tile.a_col;
    for (int64_t p = 0; p < tile.k; ++p) {
      Lanes column[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) column[v] = read(b + v * kLanes, v, last);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const Lanes row = all(group[i / 4][stride[i % 4]]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(row, column[v], sum[i][v]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) group[g] += a_col;
      b += b_row;
    }
  }
};

template <int kRows, int kVectors, bool kMasked>
void multiply(const Tile& tile, int64_t last, TileStart start) {
  Accumulators<kRows, kVectors, kMasked> accumulators;
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      accumulators.sum[i][v] = start == TileStart::kZero
                                   ? all(0.0f)
                                   : accumulators.read(tile.c + i * tile.ldc + v * kLanes, v, last);
    }
  }
  accumulators.run(tile, last);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      accumulators.write(tile.c + i * tile.ldc + v * kLanes, accumulators.sum[i][v], v, last);
    }
  }
}

template <int kRows, int kVectors, bool kMasked>
void multiply_scaled(const Tile& tile, int64_t last, float alpha, float beta) {
  Accumulators<kRows, kVectors, kMasked> accumulators;
  accumulators.clear();
  accumulators.run(tile, last);
  accumulators.write_scaled(tile, last, alpha, beta);
}

using MultiplyFunction = void (*)(const Tile&, int64_t, TileStart);
using ScaledFunction = void (*)(const Tile&, int64_t, float, float);

struct Shapes {
  MultiplyFunction multiply[kTileRows][kMaxVectors][2];
  ScaledFunction scaled[kTileRows][kMaxVectors][2];
};

template <int kRows, int kVectors>
constexpr void fill(Shapes& shapes) {
  shapes.multiply[kRows - 1][kVectors - 1][0] = multiply<kRows, kVectors, false>;
  shapes.multiply[kRows - 1][kVectors - 1][1] = multiply<kRows, kVectors, true>;
  shapes.scaled[kRows - 1][kVectors - 1][0] = multiply_scaled<kRows, kVectors, false>;
  shapes.scaled[kRows - 1][kVectors - 1][1] = multiply_scaled<kRows, kVectors, true>;
  if constexpr (kVectors < kMaxVectors) fill<kRows, kVectors + 1>(shapes);
}

template <int kRows>
constexpr void fill_rows(Shapes& shapes) {
  fill<kRows, 1>(shapes);
  if constexpr (kRows < kTileRows) fill_rows<kRows + 1>(shapes);
}

constexpr Shapes make_shapes() {
  Shapes shapes{};
  fill_rows<1>(shapes);
  return shapes;
}

constexpr Shapes kShapes = make_shapes();

}  // namespace

void multiply_tile(int64_t rows, int64_t columns, const Tile& tile, TileStart start) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  const int64_t last = columns - (vectors - 1) * kLanes;
  kShapes.multiply[rows - 1][vectors - 1][last != kLanes](tile, last, start);
}

void multiply_tile_scaled(
    int64_t rows, int64_t columns, const Tile& tile, float alpha, float beta) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  const int64_t last = columns - (vectors - 1) * kLanes;
  kShapes.scaled[rows - 1][vectors - 1][last != kLanes](tile, last, alpha, beta);
}

void multiply_packed_tile(const Tile& tile, float alpha, float beta) {
  // C's rows lie in pages of their own: they are on their way while the sums are made.
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    const float* const row = tile.c + i * tile.ldc;
    prefetch(row, 0);
    prefetch(row, (kTileColumns - 1) * static_cast<int64_t>(sizeof(float)));
  }
  Accumulators<kTileRows, kMaxVectors, false> accumulators;
  accumulators.clear();
  accumulators.run_packed(tile);
  accumulators.write_scaled(tile, kLanes, alpha, beta);
}

}  // namespace graft::kernels::GRAFT_ISA
