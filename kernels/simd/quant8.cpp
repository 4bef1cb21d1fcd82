// 8-bit blockwise types and the AdamW step on 8-bit state. The nearest code of a magnitude is found
// with one look-up: its bucket (weight_table.h) names the code and the one midpoint that may be
// passed inside it.
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/optimizer.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

constexpr uint32_t kOneBits = 0x3f800000u;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The nearest code to a value of magnitude at most about 1.
uint8_t code_of(const Map8& map, float x) {
  const uint32_t bits = bits_of(x), negative = bits >> 31;
  uint32_t magnitude = bits & 0x7fffffffu;
  magnitude = magnitude < map.least ? map.least : magnitude;
  magnitude = magnitude > kOneBits ? kOneBits : magnitude;
  const uint32_t entry =
      map.entry[(magnitude >> 16) - map.first_key + (negative != 0 ? map.keys : 0u)];
  const uint32_t passed = (magnitude & 0xffffu) > entry >> 8 ? 1u : 0u;
  return static_cast<uint8_t>((entry & 255u) + (negative != 0 ? 0u - passed : passed));
}

#if defined(__AVX512F__)

__m128i codes_of(const Map8& map, __m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 negative = _mm512_movepi32_mask(bits);
  __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  magnitude = _mm512_max_epu32(magnitude, _mm512_set1_epi32(static_cast<int>(map.least)));
  magnitude = _mm512_min_epu32(magnitude, _mm512_set1_epi32(static_cast<int>(kOneBits)));
  __m512i key = _mm512_sub_epi32(_mm512_srli_epi32(magnitude, 16),
                                 _mm512_set1_epi32(static_cast<int>(map.first_key)));
  key = _mm512_mask_add_epi32(key, negative, key, _mm512_set1_epi32(static_cast<int>(map.keys)));
  const __m512i entry = _mm512_i32gather_epi32(key, map.entry, 4);
  const __mmask16 passed = _mm512_cmpgt_epu32_mask(
      _mm512_and_si512(magnitude, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(entry, 8));
  __m512i code = entry;  // the low byte counts; a carry into the others is dropped
  const __m512i one = _mm512_set1_epi32(1);
  code = _mm512_mask_add_epi32(code, static_cast<__mmask16>(passed & ~negative), code, one);
  code = _mm512_mask_sub_epi32(code, static_cast<__mmask16>(passed & negative), code, one);
  return _mm512_cvtepi32_epi8(code);
}

#elif defined(__AVX2__)

// table[index[0]] .. table[index[7]] with plain loads: a gather of this instruction set takes
// longer.
template <class Value, class Index>
GRAFT_LANES_INLINE __m256i eight_of(const Value* table, const Index* index) {
  const auto word = [&](int64_t i) {
    int32_t bits;
    __builtin_memcpy(&bits, table + index[i], sizeof bits);
    return bits;
  };
  const auto four = [&](int64_t i) {
    __m128i words = _mm_cvtsi32_si128(word(i));
    words = _mm_insert_epi32(words, word(i + 1), 1);
    words = _mm_insert_epi32(words, word(i + 2), 2);
    return _mm_insert_epi32(words, word(i + 3), 3);
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
}

// In the low byte of each word.
GRAFT_LANES_INLINE __m256i eight_codes(const Map8& map, __m256 x) {
  const auto every = [](uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); };
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i negative = _mm256_srai_epi32(bits, 31);
  __m256i magnitude = _mm256_and_si256(bits, every(0x7fffffffu));
  magnitude = _mm256_max_epu32(magnitude, every(map.least));
  magnitude = _mm256_min_epu32(magnitude, every(kOneBits));
  alignas(32) uint32_t key[8];
  _mm256_store_si256(
      reinterpret_cast<__m256i*>(key),
      _mm256_add_epi32(_mm256_sub_epi32(_mm256_srli_epi32(magnitude, 16), every(map.first_key)),
                       _mm256_and_si256(negative, every(map.keys))));
  const __m256i entry = eight_of(map.entry, key);
  const __m256i passed =
      _mm256_cmpgt_epi32(_mm256_and_si256(magnitude, every(0xffffu)), _mm256_srli_epi32(entry, 8));
  // -1 where the midpoint is passed upwards, 1 where downwards.
  const __m256i step = _mm256_sub_epi32(_mm256_xor_si256(passed, negative), negative);
  return _mm256_and_si256(_mm256_sub_epi32(entry, step), every(255u));
}

GRAFT_LANES_INLINE __m128i codes_of(const Map8& map, Lanes x) {
  // Packing works in halves of 128 bits: words 0-3, 8-11, 4-7, 12-15.
  const __m256i halves = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(eight_codes(map, x.lo), eight_codes(map, x.hi)), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

#endif

void encode(const Map8& map, const float* x, int64_t count, float inverse, uint8_t* codes) {
  int64_t i = 0;
#if defined(__AVX512F__) || defined(__AVX2__)
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i sixteen = codes_of(map, mul(load(x + i), all(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), sixteen);
  }
#endif
  for (; i < count; ++i) codes[i] = code_of(map, x[i] * inverse);
}

GRAFT_LANES_INLINE Lanes values_of(const Map8& map, const uint8_t* codes, int64_t lanes) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(lanes), codes);
  return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(bytes), map.value, 4);
#else
#if defined(__AVX2__)
  if (lanes == kLanes) {
    return {_mm256_castsi256_ps(eight_of(map.value, codes)),
            _mm256_castsi256_ps(eight_of(map.value, codes + 8))};
  }
#endif
  float values[kLanes] = {};
  for (int64_t i = 0; i < lanes; ++i) values[i] = map.value[codes[i]];
  return load(values);
#endif
}

float inverse_of(float absmax) {
  return 1.0f / (absmax > kNf4SmallestAbsmax ? absmax : kNf4SmallestAbsmax);
}

// The largest |x|; NaN and infinity order above every finite value when compared as bits.
uint32_t largest_magnitude_bits(const float* x, int64_t count) {
  uint32_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    best = bits > best ? bits : best;
  }
  return best;
}

}  // namespace

bool quant8_quantize(
    const Map8& map, const float* x, int64_t count, int block_size, uint8_t* codes, float* absmax) {
  for (int64_t first = 0; first < count; first += block_size) {
    const int64_t length = smaller_of(block_size, count - first);
    const uint32_t magnitude = largest_magnitude_bits(x + first, length);
    if (magnitude >= 0x7f800000u) return false;
    absmax[first / block_size] = float_of(magnitude);
    encode(map, x + first, length, inverse_of(float_of(magnitude)), codes + first);
  }
  return true;
}

void quant8_decode(const Map8& map,
                   const uint8_t* codes,
                   const float* absmax,
                   int64_t count,
                   int block_size,
                   float* out) {
  for (int64_t first = 0; first < count; first += block_size) {
    const Lanes scale = all(absmax[first / block_size]);
    for_lanes(smaller_of(block_size, count - first), [&](int64_t i, int64_t lanes) {
      store_upto(out + first + i, mul(values_of(map, codes + first + i, lanes), scale), lanes);
    });
  }
}

void adamw8(const Adam8Run& run, const AdamFactors& f, const Map8& m_map, const Map8& v_map) {
  const float inverse_root = 1.0f / f.bias2_root;
  for (int64_t first = 0; first < run.count; first += GRAFT_ADAMW8_BLOCK) {
    const int64_t count = smaller_of(GRAFT_ADAMW8_BLOCK, run.count - first);
    const int64_t block = first / GRAFT_ADAMW8_BLOCK;
    uint8_t* const m_codes = run.m + first;
    uint8_t* const v_codes = run.v + first;
    const Lanes m_scale = all(run.m_absmax[block]), v_scale = all(run.v_absmax[block]);
    float m[GRAFT_ADAMW8_BLOCK], v[GRAFT_ADAMW8_BLOCK];
    Lanes m_largest = all(0.0f), v_largest = all(0.0f);
    for_lanes(count, [&](int64_t i, int64_t n) {
      const Lanes g = mul(load_upto(run.grad + first + i, n), all(f.grad_scale));
      const Lanes m_before = mul(values_of(m_map, m_codes + i, n), m_scale);
      const Lanes v_before = mul(values_of(v_map, v_codes + i, n), v_scale);
      const Lanes m_new = fma(g, all(f.one_minus_beta1), mul(m_before, all(f.beta1)));
      const Lanes v_new = fma(mul(g, g), all(f.one_minus_beta2), mul(v_before, all(f.beta2)));
      const Lanes divisor = fma(square_root(v_new), all(inverse_root), all(f.eps));
      const Lanes p = mul(load_upto(run.param + first + i, n), all(f.decay));
      store_upto(run.param + first + i, sub(p, div(mul(m_new, all(f.step_size)), divisor)), n);
      store_upto(m + i, m_new, n);
      store_upto(v + i, v_new, n);
      if (n < kLanes) return;
      m_largest = larger(m_largest, magnitude(m_new));
      v_largest = larger(v_largest, v_new);
    });
    float m_absmax = largest_lane(m_largest), v_absmax = largest_lane(v_largest);
    for (int64_t i = count / kLanes * kLanes; i < count; ++i) {
      m_absmax = __builtin_fmaxf(m_absmax, __builtin_fabsf(m[i]));
      v_absmax = __builtin_fmaxf(v_absmax, v[i]);
    }
    run.m_absmax[block] = m_absmax;
    run.v_absmax[block] = v_absmax;
    encode(m_map, m, count, inverse_of(m_absmax), m_codes);
    encode(v_map, v, count, inverse_of(v_absmax), v_codes);
    // A second moment above zero never becomes zero: the step would be m / eps.
    for (int64_t i = 0; i < count; ++i) {
      v_codes[i] = static_cast<uint8_t>(v_codes[i] | (v_codes[i] == 0 && v[i] > 0.0f ? 1 : 0));
    }
  }
}

}  // namespace graft::kernels::GRAFT_ISA
