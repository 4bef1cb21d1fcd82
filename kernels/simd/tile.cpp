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
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) accumulators.sum[i][v] = all(0.0f);
  }
  accumulators.run(tile, last);
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* c = tile.c + i * tile.ldc + v * kLanes;
      Lanes value = mul(accumulators.sum[i][v], all(alpha));
      if (beta != 0.0f) value = fma(all(beta), accumulators.read(c, v, last), value);
      accumulators.write(c, value, v, last);
    }
  }
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

#if defined(__AVX512F__)

// 16 x 16 in registers: pairs, then fours, then 128-bit lanes.
void transpose_full(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * from_row);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
    const __m512 high = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 low_odd = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
    const __m512 high_odd = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_f32x4(low, high, 0x88));
    _mm512_storeu_ps(to + (j + 8) * to_row, _mm512_shuffle_f32x4(low, high, 0xdd));
    _mm512_storeu_ps(to + (j + 4) * to_row, _mm512_shuffle_f32x4(low_odd, high_odd, 0x88));
    _mm512_storeu_ps(to + (j + 12) * to_row, _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd));
  }
}

#elif defined(__AVX2__)

// 8 x 8: pairs, then fours, then lanes of 128 bits.
void transpose_eight(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_row);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * to_row, _mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
    _mm256_storeu_ps(to + (j + 4) * to_row, _mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
  }
}

void transpose_full(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t j = 0; j < kLanes; j += 8) {
    for (int64_t i = 0; i < kLanes; i += 8) {
      transpose_eight(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
}

#else

void transpose_full(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t j = 0; j < kLanes; ++j) {
    for (int64_t i = 0; i < kLanes; ++i) to[j * to_row + i] = from[i * from_row + j];
  }
}

#endif

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

void transpose(
    const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const float* corner = from + i * from_row + j;
      float* target = to + j * to_row + i;
      if (i + kLanes <= rows && j + kLanes <= columns) {
        transpose_full(corner, from_row, target, to_row);
        continue;
      }
      const int64_t height = rows - i < kLanes ? rows - i : kLanes;
      const int64_t width = columns - j < kLanes ? columns - j : kLanes;
      for (int64_t y = 0; y < width; ++y) {
        for (int64_t x = 0; x < height; ++x) target[y * to_row + x] = corner[x * from_row + y];
      }
    }
  }
}

}  // namespace graft::kernels::GRAFT_ISA
