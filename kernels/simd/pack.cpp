// Operands brought into the order in which the tiles read them.
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// transpose_square<rows> transposes `rows` x kSquare: to[j * to_row + i] = from[i * from_row + j].
// It may store kSquare floats for each j, in ascending order; those past the rows are zeros.

#if defined(__AVX512F__)

constexpr int64_t kSquare = 16;

// In registers: pairs, then fours, then 128-bit lanes.
template <int kRows>
void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    r[i] = i < kRows ? _mm512_loadu_ps(from + i * from_row) : _mm512_setzero_ps();
  }
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
    t[j] = _mm512_shuffle_f32x4(low, high, 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    t[j + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
    t[j + 12] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) _mm512_storeu_ps(to + j * to_row, t[j]);
}

#elif defined(__AVX2__)

constexpr int64_t kSquare = 8;

// In registers: pairs, then fours, then lanes of 128 bits.
template <int kRows>
void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = i < kRows ? _mm256_loadu_ps(from + i * from_row) : _mm256_setzero_ps();
  }
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
    t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) _mm256_storeu_ps(to + j * to_row, t[j]);
}

#else

constexpr int64_t kSquare = 16;

template <int kRows>
void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t j = 0; j < kSquare; ++j) {
    for (int64_t i = 0; i < kRows; ++i) to[j * to_row + i] = from[i * from_row + j];
  }
}

#endif

void transpose_edge(
    const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * to_row + i] = from[i * from_row + j];
  }
}

}  // namespace

void transpose(
    const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += kSquare) {
    for (int64_t j = 0; j < columns; j += kSquare) {
      const float* corner = from + i * from_row + j;
      float* target = to + j * to_row + i;
      const int64_t height = rows - i, width = columns - j;
      if (height >= kSquare && width >= kSquare) {
        transpose_square<kSquare>(corner, from_row, target, to_row);
      } else {
        transpose_edge(corner, from_row, height < kSquare ? height : kSquare,
                       width < kSquare ? width : kSquare, target, to_row);
      }
    }
  }
}

void pack_tile_rows(const float* a, int64_t a_row, int64_t depth, float* panel) {
  int64_t p = 0;
  for (; p + kSquare <= depth; p += kSquare) {
    transpose_square<kTileRows>(a + p, a_row, panel + p * kTileRows, kTileRows);
  }
  transpose_edge(a + p, a_row, kTileRows, depth - p, panel + p * kTileRows, kTileRows);
}

}  // namespace graft::kernels::GRAFT_ISA
