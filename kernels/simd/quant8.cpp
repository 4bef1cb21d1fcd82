// 8-bit blockwise types and the AdamW step on 8-bit state. The nearest code of a magnitude is found
// with one look-up: its bucket (weight_table.h) names the code and the one midpoint that may be
// passed inside it. With AVX2 alone, arithmetic finds most codes faster.
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/optimizer.h"
#include "kernels/simd/vector.h"
#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

constexpr uint32_t kOneBits = 0x3f800000u;
// Values that are encoded together; a part of the optimizer's blocks.
constexpr int64_t kStep = 32;
// 2^-41, the midpoint of 0 and the least value of the log2 map.
[[maybe_unused]] constexpr int kLeastRatioBits = (127 - 41) << 23;

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

// Sixteen words of -32768..32767 to bytes, those outside 0..255 to the nearer end.
GRAFT_LANES_INLINE __m128i packed_codes(__m256i lo, __m256i hi) {
  // Packing works in halves of 128 bits: words 0-3, 8-11, 4-7, 12-15.
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

__m128i codes_of(const Map8& map, Lanes x) {
  return packed_codes(eight_codes(map, x.lo), eight_codes(map, x.hi));
}

#endif

#if defined(__AVX2__) && !defined(__AVX512F__)

// Codes by arithmetic: a value's place among the codes, in 65536ths of the distance of two codes
// and whole at a midpoint. Where it is so near to a midpoint that the arithmetic may be wrong, the
// buckets decide. Four vectors go side by side: each is one long chain of operations.
constexpr int kSide = kStep / 8;
constexpr float kPlace = 65536.0f;
// Places are off by less: with it the codes of all 3.6e8 float32 of 2^-43..1 are those of the
// buckets.
constexpr int kDoubt = 20;

struct Side {
  __m256 x[kSide];
};
struct Places {
  __m256i at[kSide];
};

template <class Body>
GRAFT_LANES_INLINE void each(Body body) {
#pragma GCC unroll 4
  for (int i = 0; i < kSide; ++i) body(i);
}

// The map of equal ratios, for x >= 0; 1 at least. A place is 253 / 40 log2(x) and a constant: the
// bits as a number are 2^23 (127 + log2(x)) but for a function of the fraction, which a minimax
// polynomial gives within 8e-5 of a code.
GRAFT_LANES_INLINE Places places_by_ratio(const Side& side) {
  // The constant: 254.4863 at x = 1, as a midpoint, (1 + 2^(40/253)) / 2 of a value, is 0.5137 of
  // the way to the next.
  constexpr float kPolynomial[6] = {0.2838255851f * kPlace,  -2.6347653221f * kPlace,
                                    10.3170159445f * kPlace, -22.4587652714f * kPlace,
                                    25.8800708953f * kPlace, -560.1759942355f * kPlace};
  __m256 place[kSide], fraction[kSide];
  each([&](int i) {
    fraction[i] =
        _mm256_or_ps(_mm256_and_ps(side.x[i], _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffff))),
                     _mm256_set1_ps(1.0f));
  });
  each([&](int i) { place[i] = _mm256_set1_ps(kPolynomial[0]); });
#pragma GCC unroll 5
  for (int term = 1; term < 6; ++term) {
    each([&](int i) {
      place[i] = _mm256_fmadd_ps(place[i], fraction[i], _mm256_set1_ps(kPolynomial[term]));
    });
  }
  Places places;
  each([&](int i) {
    place[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_castps_si256(side.x[i])),
                               _mm256_set1_ps(6.325f * kPlace * 0x1p-23f), place[i]);
    place[i] = _mm256_max_ps(place[i], _mm256_set1_ps(1.25f * kPlace));
    place[i] = _mm256_min_ps(place[i], _mm256_set1_ps(254.25f * kPlace));
    places.at[i] = _mm256_cvtps_epi32(place[i]);
  });
  return places;
}

// The map of runs of equal steps, by magnitude: the run is guessed from the logarithm to base ten
// (the bits as a number, up to 0.026 too small), one too high at most.
GRAFT_LANES_INLINE Places places_by_runs(const Map8& map, const Side& side) {
  const Map8Runs& runs = *map.runs;
  const auto of_run = [](const float* values, __m256i run) {
    return _mm256_permutevar8x32_ps(_mm256_load_ps(values), run);
  };
  __m256 magnitude[kSide], above[kSide], place[kSide];
  __m256i run[kSide];
  each([&](int i) {
    magnitude[i] = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), side.x[i]);
    // Compared as bits: NaN counts as 1.
    magnitude[i] = _mm256_castsi256_ps(
        _mm256_min_epu32(_mm256_max_epu32(_mm256_castps_si256(magnitude[i]),
                                          _mm256_set1_epi32(static_cast<int>(map.least))),
                         _mm256_set1_epi32(static_cast<int>(kOneBits))));
  });
  each([&](int i) {
    // log10(2) 2^-23, and 7 runs below 1 with 0.03 more than the logarithm may lack.
    run[i] = _mm256_cvttps_epi32(_mm256_fmadd_ps(
        _mm256_cvtepi32_ps(_mm256_castps_si256(magnitude[i])), _mm256_set1_ps(0.30103f * 0x1p-23f),
        _mm256_set1_ps(7.03f - 127.0f * 0.30103f)));
  });
  each([&](int i) {
    above[i] = of_run(runs.above, run[i]);
    const __m256 too_high = _mm256_cmp_ps(magnitude[i], above[i], _CMP_LE_OQ);
    run[i] = _mm256_add_epi32(run[i], _mm256_castps_si256(too_high));
  });
  each([&](int i) {
    place[i] =
        _mm256_fmadd_ps(magnitude[i], of_run(runs.scale, run[i]), of_run(runs.offset, run[i]));
  });
  Places places;
  each([&](int i) {
    const __m256i at = _mm256_cvtps_epi32(_mm256_min_ps(place[i], of_run(runs.last, run[i])));
    // Where two runs meet the side of zero decides, which is left to the buckets.
    const __m256 meets = _mm256_cmp_ps(magnitude[i], above[i], _CMP_EQ_OQ);
    places.at[i] = _mm256_andnot_si256(_mm256_castps_si256(meets), at);
  });
  return places;
}

// All bits of some lane where a place is near a midpoint.
GRAFT_LANES_INLINE bool doubtful(const Places& places) {
  __m256i nearest = _mm256_set1_epi32(-1);
  each([&](int i) {
    nearest = _mm256_min_epu32(nearest, _mm256_abs_epi32(_mm256_slli_epi32(places.at[i], 16)));
  });
  const __m256i near = _mm256_cmpgt_epi32(_mm256_set1_epi32(kDoubt << 16), nearest);
  return _mm256_movemask_ps(_mm256_castsi256_ps(near)) != 0;
}

// Words to bytes, outside 0..255 the nearer end; packing works in halves of 128 bits.
GRAFT_LANES_INLINE void store_words(__m256i first, __m256i second, uint8_t* codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second),
                                                  _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

GRAFT_LANES_INLINE void store_ratio_codes(const Places& places,
                                          const __m256i* seen,
                                          uint8_t* codes) {
  __m256i code[kSide];
  each([&](int i) { code[i] = _mm256_and_si256(_mm256_srli_epi32(places.at[i], 16), seen[i]); });
  store_words(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]), codes);
}

GRAFT_LANES_INLINE void store_run_codes(const Places& places, const Side& side, uint8_t* codes) {
  __m256i word[kSide / 2];
#pragma GCC unroll 2
  for (int pair = 0; pair < kSide / 2; ++pair) {
    const int i = 2 * pair;
    const __m256i steps = _mm256_packs_epi32(_mm256_srli_epi32(places.at[i], 16),
                                             _mm256_srli_epi32(places.at[i + 1], 16));
    const __m256i signs =
        _mm256_packs_epi32(_mm256_castps_si256(side.x[i]), _mm256_castps_si256(side.x[i + 1]));
    // Outwards from zero; -1, beyond the least value, is packed to 0.
    word[pair] = _mm256_add_epi16(_mm256_sign_epi16(steps, signs), _mm256_set1_epi16(127));
  }
  store_words(word[0], word[1], codes);
}

#endif

// Which values have the code of zero: those nearest to it, or none above it.
enum class Zero { kNearest, kItself };

// The codes of x * inverse by the buckets.
template <Zero kZero>
__attribute__((noinline)) void encode_by_buckets(
    const Map8& map, const float* x, int64_t count, float inverse, uint8_t* codes) {
#if defined(__AVX512F__) || defined(__AVX2__)
  const int64_t vectors = count / kLanes * kLanes;
  for (int64_t i = 0; i < vectors; i += kLanes) {
    const __m128i sixteen = codes_of(map, mul(load(x + i), all(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), sixteen);
  }
#else
  const int64_t vectors = 0;
#endif
  for (int64_t i = vectors; i < count; ++i) codes[i] = code_of(map, x[i] * inverse);
  if constexpr (kZero == Zero::kItself) {
    for (int64_t i = 0; i < count; ++i) {
      codes[i] = static_cast<uint8_t>(codes[i] | (codes[i] == 0 && x[i] > 0.0f ? 1 : 0));
    }
  }
}

// kStep nearest codes.
template <Zero kZero>
void encode_step(const Map8& map, const float* x, float inverse, uint8_t* codes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (map.rule != Map8Rule::kBuckets) {
    Side side;
    for (int i = 0; i < kSide; ++i) {
      side.x[i] = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
    }
    Places places;
    if (map.rule == Map8Rule::kRuns) {
      places = places_by_runs(map, side);
      store_run_codes(places, side, codes);
    } else {
      __m256i seen[kSide];
      for (int i = 0; i < kSide; ++i) {
        const __m256i raw = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
        seen[i] = kZero == Zero::kItself ? _mm256_cmpgt_epi32(raw, _mm256_setzero_si256())
                                         : _mm256_cmpgt_epi32(_mm256_castps_si256(side.x[i]),
                                                              _mm256_set1_epi32(kLeastRatioBits));
      }
      places = places_by_ratio(side);
      store_ratio_codes(places, seen, codes);
    }
    if (!doubtful(places)) [[likely]]
      return;
  }
#endif
  encode_by_buckets<kZero>(map, x, kStep, inverse, codes);
}

template <Zero kZero>
void encode(const Map8& map, const float* x, int64_t count, float inverse, uint8_t* codes) {
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) encode_step<kZero>(map, x + i, inverse, codes + i);
  if (i < count) encode_by_buckets<kZero>(map, x + i, count - i, inverse, codes + i);
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
    encode<Zero::kNearest>(map, x + first, length, inverse_of(float_of(magnitude)), codes + first);
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
    float* const param = run.param + first;
    uint8_t* const m_codes = run.m + first;
    uint8_t* const v_codes = run.v + first;
    const Lanes m_scale = all(run.m_absmax[block]), v_scale = all(run.v_absmax[block]);
    alignas(64) float m[GRAFT_ADAMW8_BLOCK], v[GRAFT_ADAMW8_BLOCK];
    Lanes m_largest = all(0.0f), v_largest = all(0.0f);
    for_lanes(count, [&](int64_t i, int64_t n) {
      const Lanes g = mul(load_upto(run.grad + first + i, n), all(f.grad_scale));
      const Lanes m_before = mul(values_of(m_map, m_codes + i, n), m_scale);
      const Lanes v_before = mul(values_of(v_map, v_codes + i, n), v_scale);
      const Lanes m_new = fma(g, all(f.one_minus_beta1), mul(m_before, all(f.beta1)));
      const Lanes v_new = fma(mul(g, g), all(f.one_minus_beta2), mul(v_before, all(f.beta2)));
      store(m + i, m_new);
      store(v + i, v_new);
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
    // The root and the quotient keep the divider busy and little else: the codes are found beside.
    const float m_inverse = inverse_of(m_absmax), v_inverse = inverse_of(v_absmax);
    for (int64_t step = 0; step < count; step += kStep) {
      const int64_t length = smaller_of(kStep, count - step);
      for_lanes(length, [&](int64_t lane, int64_t n) {
        const int64_t i = step + lane;
        const Lanes divisor = fma(square_root(load(v + i)), all(inverse_root), all(f.eps));
        const Lanes p = mul(load_upto(param + i, n), all(f.decay));
        const Lanes change = div(mul(load(m + i), all(f.step_size)), divisor);
        store_upto(param + i, sub(p, change), n);
      });
      encode<Zero::kNearest>(m_map, m + step, length, m_inverse, m_codes + step);
      // A second moment above zero never becomes zero: the step would be m / eps.
      encode<Zero::kItself>(v_map, v + step, length, v_inverse, v_codes + step);
    }
  }
}

}  // namespace graft::kernels::GRAFT_ISA
