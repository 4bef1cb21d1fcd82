// bfloat16 products with float32 sums. The instruction for a pair of products (vdpbf16ps) adds the
// odd one first, then the even one, each rounded; a product of two bfloat16 is exact in float32, so
// two fused multiply-adds in that order give the same bits without the instruction. Only where a
// product or sum is below 2^-126 do they differ: the instruction takes it as zero.
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

constexpr int64_t kColumns = kBf16PanelColumns;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
uint32_t word_at(const uint16_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

#if defined(__AVX512BF16__)

// 12 x 2 accumulators, two columns of B and one broadcast of A; one column where there are no more.
constexpr int kRows = 12;
constexpr int64_t kLinePairs = 16;  // of a cache line

struct PairTile {
  const uint16_t* a;
  int64_t a_row;
  const uint16_t* next_a;  // what is multiplied next: asked for ahead
  const uint16_t* b;
  int64_t pairs;
  float* c;
  int64_t ldc;
  float alpha, beta;
};

GRAFT_LANES_INLINE __m512bh load_pairs(const uint16_t* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}
GRAFT_LANES_INLINE __m512bh all_pairs(uint32_t pair) {
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
}

template <int kHeight, int kVectors>
void multiply(const PairTile& tile, int64_t columns) {
  Lanes sum[kHeight][kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kHeight; ++i) {
    for (Lanes& lanes : sum[i]) lanes = all(0.0f);
  }
  constexpr int kGroups = (kHeight + 3) / 4;  // rows in groups of four share their strides
  const uint16_t* group[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) group[g] = tile.a + 4 * g * tile.a_row;
  const int64_t stride[4] = {0, tile.a_row, 2 * tile.a_row, 3 * tile.a_row};
  const uint16_t* b = tile.b;
  const auto add = [&](int64_t p) __attribute__((always_inline)) {
    const __m512bh b0 = load_pairs(b), b1 = load_pairs(b + (kVectors - 1) * 2 * kLanes);
    b += 2 * kColumns;
#pragma GCC unroll 12
    for (int i = 0; i < kHeight; ++i) {
      const __m512bh row = all_pairs(word_at(group[i / 4] + stride[i % 4] + 2 * p));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], row, b0);
      if constexpr (kVectors > 1) sum[i][1] = _mm512_dpbf16_ps(sum[i][1], row, b1);
    }
  };
  // C's lines and those of the next rows of A, a few at a time: a miss waits for a free buffer, and
  // so do B's lines then.
  int64_t p = 0;
  for (int64_t row = 0; p + kLinePairs <= tile.pairs; p += kLinePairs, ++row) {
    if (row < kHeight) {
      __builtin_prefetch(tile.c + row * tile.ldc, 1);
      __builtin_prefetch(tile.c + row * tile.ldc + kLanes, 1);
    }
    for (int64_t q = 0; q < kLinePairs; q += kLinePairs / 4) {
#pragma GCC unroll 3
      for (int i = 0; i < (kHeight + 3) / 4; ++i) {
        __builtin_prefetch(tile.next_a + (group[i] - tile.a) + stride[q / (kLinePairs / 4)] + 2 * p,
                           0, 2);
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < kLinePairs / 4; ++r) add(p + q + r);
    }
  }
  for (; p < tile.pairs; ++p) add(p);
  const int64_t first = smaller_of(columns, kLanes), second = columns - first;
#pragma GCC unroll 12
  for (int i = 0; i < kHeight; ++i) {
    float* const c = tile.c + i * tile.ldc;
    const auto put = [&](float* to, Lanes value, int64_t lanes) {
      if (lanes <= 0) return;
      value = mul(value, all(tile.alpha));
      if (tile.beta != 0.0f) value = fma(all(tile.beta), load_upto(to, lanes), value);
      store_upto(to, value, lanes);
    };
    put(c, sum[i][0], first);
    if constexpr (kVectors > 1) put(c + kLanes, sum[i][1], second);
  }
}

using MultiplyFunction = void (*)(const PairTile&, int64_t);
struct Heights {
  MultiplyFunction multiply[2][kRows];  // [one vector of columns, two][height - 1]
};
template <int kHeight>
constexpr void fill(Heights& heights) {
  heights.multiply[0][kHeight - 1] = multiply<kHeight, 1>;
  heights.multiply[1][kHeight - 1] = multiply<kHeight, 2>;
  if constexpr (kHeight < kRows) fill<kHeight + 1>(heights);
}
constexpr Heights make_heights() {
  Heights heights{};
  fill<1>(heights);
  return heights;
}
constexpr Heights kHeights = make_heights();

#else

// Rows of A that are widened at once, 96 KiB of the second-level cache.
constexpr int64_t kRowBlock = 48;

// to[0], to[odd] = the second value of each pair, the first: in the order of the sum.
void widen_pairs(const uint16_t* from, int64_t pairs, float* to, int64_t step, int64_t odd) {
  for (int64_t p = 0; p < pairs; ++p) {
    const uint32_t pair = word_at(from + 2 * p);
    const uint32_t second = pair & 0xffff0000u, first = pair << 16;
    __builtin_memcpy(to + p * step, &second, sizeof second);
    __builtin_memcpy(to + p * step + odd, &first, sizeof first);
  }
}

#endif

#if defined(__AVX512F__)

constexpr int64_t kSquare = 16;  // words

// to[j * kColumns + i] = from[i * from_row / 2 + j] on 32-bit words, 16 x 16: pairs, fours, lanes.
void transpose_words(const uint16_t* from, int64_t from_row, uint16_t* to) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_row);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i high_odd = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    const auto put = [&](int row, __m512i value) {
      _mm512_storeu_si512(to + row * 2 * kColumns, value);
    };
    put(j, _mm512_shuffle_i32x4(low, high, 0x88));
    put(j + 8, _mm512_shuffle_i32x4(low, high, 0xdd));
    put(j + 4, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    put(j + 12, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}

#elif defined(__AVX2__)

constexpr int64_t kSquare = 8;

// The same, 8 x 8.
void transpose_words(const uint16_t* from, int64_t from_row, uint16_t* to) {
  __m256i r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * from_row));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto put = [&](int row, __m256i value) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * 2 * kColumns), value);
    };
    put(j, _mm256_permute2x128_si256(r[j], r[4 + j], 0x20));
    put(j + 4, _mm256_permute2x128_si256(r[j], r[4 + j], 0x31));
  }
}

#endif

// Columns are contiguous in p: pairs are words of a column.
void pack_columns(const uint16_t* b, int64_t b_col, int64_t depth, int64_t width, uint16_t* panel) {
  int64_t done_columns = 0, done_depth = 0;
#if defined(__AVX512F__) || defined(__AVX2__)
  done_columns = width / kSquare * kSquare;
  done_depth = depth / (2 * kSquare) * (2 * kSquare);
  for (int64_t j = 0; j < done_columns; j += kSquare) {
    for (int64_t p = 0; p < done_depth; p += 2 * kSquare) {
      const uint16_t* const next = b + (j + kSquare) * b_col + p;
      for (int64_t i = 0; i < kSquare; ++i) __builtin_prefetch(next + i * b_col, 0, 2);
      transpose_words(b + j * b_col + p, b_col, panel + p * kColumns + 2 * j);
    }
  }
#endif
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t p = j < done_columns ? done_depth : 0; p < depth; p += 2) {
      uint16_t* const to = panel + p * kColumns + 2 * j;
      to[0] = b[j * b_col + p];
      to[1] = p + 1 < depth ? b[j * b_col + p + 1] : uint16_t{0};
    }
  }
}

#if defined(__AVX512BW__)

// to[2 j] = even[j], to[2 j + 1] = odd[j], of a panel's columns.
void interleave(const uint16_t* even, const uint16_t* odd, uint16_t* to) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(to + kColumns, _mm512_permutex2var_epi16(a, high, b));
}

#endif

// Rows are contiguous in j: two rows interleave.
void pack_rows(const uint16_t* b, int64_t b_row, int64_t depth, int64_t width, uint16_t* panel) {
  static constexpr uint16_t kZeros[kColumns] = {};
  for (int64_t p = 0; p < depth; p += 2) {
    const uint16_t* const even = b + p * b_row;
    const uint16_t* const odd = p + 1 < depth ? even + b_row : kZeros;
    uint16_t* const to = panel + p * kColumns;
    __builtin_prefetch(even + kColumns, 0, 2);  // of the next panel
    __builtin_prefetch(odd + kColumns, 0, 2);
#if defined(__AVX512BW__)
    if (width == kColumns) {
      interleave(even, odd, to);
      continue;
    }
#endif
    for (int64_t j = 0; j < width; ++j) {
      const uint32_t pair = even[j] | static_cast<uint32_t>(odd[j]) << 16;
      __builtin_memcpy(to + 2 * j, &pair, sizeof pair);
    }
  }
}

}  // namespace

void bf16_pack(
    const uint16_t* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t n, uint16_t* panels) {
  const int64_t even_depth = depth + depth % 2;
  for (int64_t j = 0; j < n; j += kColumns) {
    const int64_t width = smaller_of(kColumns, n - j);
    uint16_t* const panel = panels + j * even_depth;
    if (width < kColumns) {
      __builtin_memset(panel, 0, static_cast<size_t>(kColumns * even_depth) * sizeof(uint16_t));
    }
    if (b_row == 1) {
      pack_columns(b + j * b_col, b_col, depth, width, panel);
    } else {
      pack_rows(b + j, b_row, depth, width, panel);
    }
  }
}

#if defined(__AVX512BF16__)

static_assert(kBf16BlockRows % kRows == 0);

void bf16_block(const Bf16Block& block) {
  const int64_t pairs = ceil_div(block.depth, 2);
  for (int64_t i0 = 0; i0 < block.m; i0 += kBf16BlockRows) {
    const int64_t end = smaller_of(block.m, i0 + kBf16BlockRows);
    for (int64_t j = 0; j < block.n; j += kColumns) {
      const int64_t width = smaller_of(kColumns, block.n - j);
      for (int64_t i = i0; i < end; i += kRows) {
        PairTile tile;
        tile.a = block.a + i * block.a_row;
        tile.a_row = block.a_row;
        tile.next_a = block.a + (i + kRows < end ? i + kRows : i0) * block.a_row;
        tile.b = block.panels + j * 2 * pairs;
        tile.pairs = pairs;
        tile.c = block.c + i * block.ldc + j;
        tile.ldc = block.ldc;
        tile.alpha = block.alpha;
        tile.beta = block.beta;
        kHeights.multiply[width > kLanes][smaller_of(kRows, end - i) - 1](tile, width);
      }
    }
  }
}

#else

// On the tile of float32, both operands widened.
void bf16_block(const Bf16Block& block) {
  const int64_t pairs = ceil_div(block.depth, 2), depth = 2 * pairs;
  float a[kRowBlock * kBf16Depth], b[kBf16Depth * kTileColumns];
  for (int64_t i0 = 0; i0 < block.m; i0 += kRowBlock) {
    const int64_t rows = smaller_of(kRowBlock, block.m - i0);
    for (int64_t i = 0; i < rows; ++i) {
      widen_pairs(block.a + (i0 + i) * block.a_row, pairs, a + i * depth, 2, 1);
    }
    for (int64_t j = 0; j < block.n; j += kTileColumns) {
      const int64_t width = smaller_of(kTileColumns, block.n - j), column = j % kColumns;
      const uint16_t* const panel = block.panels + (j - column) * depth + 2 * column;
      for (int64_t p = 0; p < pairs; ++p) {
        widen_pairs(panel + 2 * kColumns * p, kTileColumns, b + 2 * kTileColumns * p, 1,
                    kTileColumns);
      }
      for (int64_t i = 0; i < rows; i += kTileRows) {
        Tile tile;
        tile.k = depth;
        tile.a = a + i * depth;
        tile.a_row = depth;
        tile.a_col = 1;
        tile.b = b;
        tile.b_row = kTileColumns;
        tile.c = block.c + (i0 + i) * block.ldc + j;
        tile.ldc = block.ldc;
        multiply_tile_scaled(smaller_of(kTileRows, rows - i), width, tile, block.alpha, block.beta);
      }
    }
  }
}

#endif

}  // namespace graft::kernels::GRAFT_ISA
