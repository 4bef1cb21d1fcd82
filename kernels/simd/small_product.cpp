// Up to four rows of x times a packed 4-bit weight, from the packed bytes: the codes are looked up
// in float32 and multiplied as they lie, high and low nibbles apart, and the block's scale
// multiplies a sum of 32 or 64 products instead of each weight. A bfloat16 table split into two
// parts would need as many products and permutations for 16 bits of precision instead of 24.
#include "kernels/nf4_tables.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

struct Nibbles {
  Lanes high, low;
};

// The values of 32 codes in 16 bytes.
#if defined(__AVX512F__)

struct Lookup {
  __m512 values;
  explicit Lookup(const float* table) : values(_mm512_loadu_ps(table)) {}
  GRAFT_LANES_INLINE Nibbles values_of(const Lookup& table, const uint8_t* packed) {
    // The permutation uses the low four bits of an index only.
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table.values),
            _mm512_permutexvar_ps(bytes, table.values)};
  }
};

#elif defined(__AVX2__)

// The four bytes of a value are looked up apart, 32 codes at a time, and joined again.
struct Lookup {
  __m256i bytes[4];
  explicit Lookup(const float* table) {
    alignas(16) uint8_t planes[4][16];
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = bits_of(table[i]);
      for (int plane = 0; plane < 4; ++plane) {
        planes[plane][i] = static_cast<uint8_t>(bits >> 8 * plane);
      }
    }
    for (int plane = 0; plane < 4; ++plane) {
      bytes[plane] = _mm256_broadcastsi128_si256(
          _mm_load_si128(reinterpret_cast<const __m128i*>(planes[plane])));
    }
  }
  GRAFT_LANES_INLINE Nibbles values_of(const Lookup& table, const uint8_t* packed) {
    // Joining works in halves of 128 bits and gives fours of values: bytes 0-3 and 8-11 belong to
    // the lower half, 4-7 and 12-15 to the upper one; first for the high nibbles, then the low.
    const __m256i both =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
    const __m256i fours = _mm256_shuffle_epi8(
        both, _mm256_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12,
                               13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15));
    const __m256i codes = _mm256_and_si256(
        _mm256_srlv_epi32(fours, _mm256_setr_epi32(4, 4, 0, 0, 4, 4, 0, 0)), _mm256_set1_epi8(15));
    const __m256i b0 = _mm256_shuffle_epi8(table.bytes[0], codes);
    const __m256i b1 = _mm256_shuffle_epi8(table.bytes[1], codes);
    const __m256i b2 = _mm256_shuffle_epi8(table.bytes[2], codes);
    const __m256i b3 = _mm256_shuffle_epi8(table.bytes[3], codes);
    const __m256i high_01 = _mm256_unpacklo_epi8(b0, b1), low_01 = _mm256_unpackhi_epi8(b0, b1);
    const __m256i high_23 = _mm256_unpacklo_epi8(b2, b3), low_23 = _mm256_unpackhi_epi8(b2, b3);
    const auto joined = [](__m256i a, __m256i b) {
      return Lanes{_mm256_castsi256_ps(_mm256_unpacklo_epi16(a, b)),
                   _mm256_castsi256_ps(_mm256_unpackhi_epi16(a, b))};
    };
    return {joined(high_01, high_23), joined(low_01, low_23)};
  }
};

#else

struct Lookup {
  const float* values;
  explicit Lookup(const float* table) : values(table) {}
  GRAFT_LANES_INLINE Nibbles values_of(const Lookup& table, const uint8_t* packed) {
    float high[kLanes], low[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      high[i] = table.values[packed[i] >> 4];
      low[i] = table.values[packed[i] & 15];
    }
    return {load(high), load(low)};
  }
};

#endif

void restore_absmax(const graft_nf4_weight& weight, int64_t first, int64_t count, float* out) {
  if (weight.absmax != nullptr) {
    __builtin_memcpy(out, weight.absmax + first, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float nested = weight.nested_absmax[(first + i) / GRAFT_NF4_NESTED_BLOCK];
    out[i] = kDynamicMapSigned[weight.absmax8[first + i]] * nested + weight.offset;
  }
}

void put(const SmallProduct& product, int64_t row, int64_t column, float sum) {
  const int64_t at = row * product.ldy + column;
  for_element(product.y_type, [&](auto element) {
    auto* const y = static_cast<decltype(element)*>(product.y) + at;
    float before = 0.0f;
    if constexpr (sizeof(element) == sizeof(float)) {
      before = product.beta == 0.0f ? 0.0f : *y;
    } else {
      before = product.beta == 0.0f ? 0.0f : from_bf16(y->bits);
    }
    const float value = product.beta == 0.0f ? sum : __builtin_fmaf(product.beta, before, sum);
    if constexpr (sizeof(element) == sizeof(float)) {
      *y = value;
    } else {
      y->bits = to_bf16_or_nan(value);
    }
  });
}

// kColumns rows of the weight, of whole units. kHalves: units of 32 in a step, 1 or 2.
template <int kRows, int kHalves, int kColumns>
void whole_columns(const SmallProduct& product, const Lookup& lookup, int64_t n, float* absmax) {
  const graft_nf4_weight& weight = *product.weight;
  const int64_t half_k = product.k / 2, steps = product.k / (32 * kHalves);
  const int64_t steps_of_block = weight.block_size / (32 * kHalves);
  const uint8_t* packed = weight.packed + n * half_k;
  const float* scale[kColumns];
  int64_t place[kColumns];  // steps of the present block that are behind
  for (int c = 0; c < kColumns; ++c) {
    const int64_t first = (n + c) * product.k / weight.block_size;
    const int64_t last = ((n + c + 1) * product.k - 1) / weight.block_size;
    restore_absmax(weight, first, last - first + 1, absmax);
    scale[c] = absmax;
    absmax += last - first + 1;
    place[c] = (n + c) * product.k / (32 * kHalves) - first * steps_of_block;
  }
  Lanes total[kRows][kColumns];
  for (int m = 0; m < kRows; ++m) {
    for (int c = 0; c < kColumns; ++c) total[m][c] = all(0.0f);
  }
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 2
    for (int c = 0; c < kColumns; ++c) {
      Lanes sum[kRows];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const Nibbles codes = Lookup::values_of(lookup, packed + c * half_k + 16 * h);
        const int64_t at = (s * kHalves + h) * kLanes;
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const Lanes even = load(product.even + m * half_k + at);
          const Lanes odd = load(product.odd + m * half_k + at);
          sum[m] = h == 0 ? mul(codes.high, even) : fma(codes.high, even, sum[m]);
          sum[m] = fma(codes.low, odd, sum[m]);
        }
      }
      const Lanes absmax_lanes = all(*scale[c]);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) total[m][c] = fma(sum[m], absmax_lanes, total[m][c]);
      if (++place[c] == steps_of_block) {
        place[c] = 0;
        ++scale[c];
      }
    }
    // The rows of the next turn: they lie pages ahead, where the processor does not look by itself.
    for (int c = 0; c < kColumns; ++c) prefetch(packed, (kColumns + c) * half_k);
    packed += 16 * kHalves;
  }
  for (int m = 0; m < kRows; ++m) {
    for (int c = 0; c < kColumns; ++c) put(product, m, n + c, sum_lanes(total[m][c]));
  }
}

template <int kRows, int kHalves>
void whole_rows(const SmallProduct& product, int64_t begin, int64_t end, float* absmax) {
  const Lookup lookup(product.weight->type == GRAFT_FP4 ? kFp4Code : kNf4Code);
  // Two rows of the weight keep the processor busy where one of x has a single chain of sums.
  constexpr int kColumns = kRows == 1 ? kSmallColumns : 1;
  int64_t n = begin;
  for (; n + kColumns <= end; n += kColumns) {
    whole_columns<kRows, kHalves, kColumns>(product, lookup, n, absmax);
  }
  for (; n < end; ++n) whole_columns<kRows, kHalves, 1>(product, lookup, n, absmax);
}

// Rows that begin inside a block or a byte: decoded first, 512 weights at a time.
void any_rows(const SmallProduct& product, int64_t begin, int64_t end) {
  constexpr int64_t kPart = 512;
  float decoded[kPart];
  for (int64_t n = begin; n < end; ++n) {
    Lanes total[kSmallRows];
    for (Lanes& sum : total) sum = all(0.0f);
    for (int64_t p = 0; p < product.k; p += kPart) {
      const int64_t count = product.k - p < kPart ? product.k - p : kPart;
      const int64_t first = n * product.k + p;
      quant4_decode_f32(*product.weight, first, first + count, decoded, Stores::kCached);
      for (int64_t m = 0; m < product.m; ++m) {
        const float* const x = product.even + m * product.k + p;
        for_lanes(count, [&](int64_t i, int64_t lanes) {
          total[m] = fma(load_upto(decoded + i, lanes), load_upto(x + i, lanes), total[m]);
        });
      }
    }
    for (int64_t m = 0; m < product.m; ++m) put(product, m, n, sum_lanes(total[m]));
  }
}

template <int kHalves>
void whole_rows_of(const SmallProduct& product, int64_t begin, int64_t end, float* absmax) {
  if (product.m == 1) return whole_rows<1, kHalves>(product, begin, end, absmax);
  if (product.m == 2) return whole_rows<2, kHalves>(product, begin, end, absmax);
  if (product.m == 3) return whole_rows<3, kHalves>(product, begin, end, absmax);
  whole_rows<4, kHalves>(product, begin, end, absmax);
}

}  // namespace

void small_product(const SmallProduct& product, int64_t begin, int64_t end, float* absmax) {
  const int64_t unit = small_unit(product.k, product.weight->block_size);
  if (unit == 0) return any_rows(product, begin, end);
  if (unit == 64) return whole_rows_of<2>(product, begin, end, absmax);
  whole_rows_of<1>(product, begin, end, absmax);
}

}  // namespace graft::kernels::GRAFT_ISA
