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

// Rows of whole units. kHalves: units of 32 in a step, 1 or 2.
template <int kRows, int kHalves>
void whole_rows(const SmallProduct& product, int64_t begin, int64_t end, float* absmax) {
  const graft_nf4_weight& weight = *product.weight;
  const Lookup lookup(weight.type == GRAFT_FP4 ? kFp4Code : kNf4Code);
  const int64_t half_k = product.k / 2, steps = product.k / (32 * kHalves);
  const int64_t steps_of_block = weight.block_size / (32 * kHalves);
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* packed = weight.packed + n * half_k;
    const int64_t first = n * product.k / weight.block_size;
    const int64_t last = ((n + 1) * product.k - 1) / weight.block_size;
    restore_absmax(weight, first, last - first + 1, absmax);
    Lanes total[kRows];
    for (int m = 0; m < kRows; ++m) total[m] = all(0.0f);
    // Steps of the first block that belong to the row before.
    int64_t place = n * product.k / (32 * kHalves) - first * steps_of_block;
    const float* scale = absmax;
    for (int64_t s = 0; s < steps; ++s) {
      Lanes sum[kRows];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const Nibbles codes = Lookup::values_of(lookup, packed + 16 * h);
        const int64_t at = (s * kHalves + h) * kLanes;
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const Lanes even = load(product.even + m * half_k + at);
          const Lanes odd = load(product.odd + m * half_k + at);
          sum[m] = h == 0 ? mul(codes.high, even) : fma(codes.high, even, sum[m]);
          sum[m] = fma(codes.low, odd, sum[m]);
        }
      }
      const Lanes absmax_lanes = all(*scale);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) total[m] = fma(sum[m], absmax_lanes, total[m]);
      packed += 16 * kHalves;
      if (++place == steps_of_block) {
        place = 0;
        ++scale;
      }
    }
    for (int m = 0; m < kRows; ++m) put(product, m, n, sum_lanes(total[m]));
  }
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
      quant4_decode_f32(*product.weight, first, first + count, decoded);
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
