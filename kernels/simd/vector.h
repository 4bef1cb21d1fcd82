// Sixteen float lanes on every machine (internal): one AVX-512 register, two AVX2 registers, or an
// array. Files that include this are compiled once per instruction set (kernels/CMakeLists.txt).
//
// Every operation rounds alike in the three versions and sums over lanes go through one tree, so
// that the instruction set does not change a result. Nothing here may have linkage outside the
// file: an inline function compiled for AVX-512 must not be picked by the linker for all.
#pragma once

#include <stdint.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/float16.h"

// Sanitizers make each lane's checks code of its own: inlined by force, a file takes minutes.
#if defined(__SANITIZE_ADDRESS__)
#define GRAFT_LANES_INLINE [[maybe_unused]] static inline
#else
#define GRAFT_LANES_INLINE static inline __attribute__((always_inline))
#endif

namespace graft::kernels {
namespace {

constexpr int64_t kLanes = 16;

// Asks for the cache line `bytes` past `from`; outside memory nothing happens, so that loops need
// not know where their array ends.
GRAFT_LANES_INLINE void prefetch(const void* from, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) +
                                                   static_cast<uintptr_t>(bytes)));
}

#if defined(__AVX512F__)

using Lanes = __m512;

GRAFT_LANES_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}
GRAFT_LANES_INLINE Lanes load(const float* p) {
  return _mm512_loadu_ps(p);
}
GRAFT_LANES_INLINE void store(float* p, Lanes v) {
  _mm512_storeu_ps(p, v);
}
GRAFT_LANES_INLINE Lanes load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
GRAFT_LANES_INLINE void store_first(float* p, Lanes v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
GRAFT_LANES_INLINE Lanes widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
GRAFT_LANES_INLINE __m256i narrowed(Lanes v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i words =
      _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                            _mm512_set1_epi32(kBf16NaN));
  return _mm512_cvtepi32_epi16(words);
}
GRAFT_LANES_INLINE Lanes load(const Bf16* p) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GRAFT_LANES_INLINE void store(Bf16* p, Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(v));
}
GRAFT_LANES_INLINE Lanes load_first(const Bf16* p, int64_t n) {
  return widened(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
GRAFT_LANES_INLINE void store_first(Bf16* p, Lanes v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrowed(v));
}
GRAFT_LANES_INLINE Lanes all(float x) {
  return _mm512_set1_ps(x);
}
GRAFT_LANES_INLINE Lanes add(Lanes a, Lanes b) {
  return _mm512_add_ps(a, b);
}
GRAFT_LANES_INLINE Lanes sub(Lanes a, Lanes b) {
  return _mm512_sub_ps(a, b);
}
GRAFT_LANES_INLINE Lanes mul(Lanes a, Lanes b) {
  return _mm512_mul_ps(a, b);
}
GRAFT_LANES_INLINE Lanes div(Lanes a, Lanes b) {
  return _mm512_div_ps(a, b);
}
GRAFT_LANES_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  return _mm512_fmadd_ps(a, b, c);
}
GRAFT_LANES_INLINE Lanes square_root(Lanes a) {
  return _mm512_sqrt_ps(a);
}
// a > b ? a : b, so that a NaN in b is kept.
GRAFT_LANES_INLINE Lanes larger(Lanes a, Lanes b) {
  return _mm512_max_ps(a, b);
}
GRAFT_LANES_INLINE Lanes smaller(Lanes a, Lanes b) {
  return _mm512_min_ps(a, b);
}
GRAFT_LANES_INLINE Lanes magnitude(Lanes a) {
  return _mm512_castsi512_ps(
      _mm512_and_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
}
// a < b ? yes : no, lane by lane; no where one is NaN.
GRAFT_LANES_INLINE Lanes below(Lanes a, Lanes b, Lanes yes, Lanes no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
// |a| with the sign of b.
GRAFT_LANES_INLINE Lanes with_sign_of(Lanes a, Lanes b) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_set1_epi32(0x7fffffff), _mm512_castps_si512(a), _mm512_castps_si512(b), 0xca));
}
// a * 2^n, rounded once, n a whole number in -150..128.
GRAFT_LANES_INLINE Lanes scale_by_power(Lanes a, Lanes n) {
  return _mm512_scalef_ps(a, n);
}
GRAFT_LANES_INLINE float sum_lanes(Lanes v) {
  const __m256 eight = _mm256_add_ps(
      _mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
GRAFT_LANES_INLINE float largest_lane(Lanes v) {
  const __m256 eight = _mm256_max_ps(
      _mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 lo, hi;
};

GRAFT_LANES_INLINE __m256i first_eight(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GRAFT_LANES_INLINE Lanes load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
GRAFT_LANES_INLINE void store(float* p, Lanes v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
GRAFT_LANES_INLINE Lanes load_first(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_eight(n)), _mm256_maskload_ps(p + 8, first_eight(n - 8))};
}
GRAFT_LANES_INLINE void store_first(float* p, Lanes v, int64_t n) {
  _mm256_maskstore_ps(p, first_eight(n), v.lo);
  _mm256_maskstore_ps(p + 8, first_eight(n - 8), v.hi);
}
GRAFT_LANES_INLINE __m256 widened(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
GRAFT_LANES_INLINE __m256i narrowed_words(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(kBf16NaN),
                            _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
GRAFT_LANES_INLINE Lanes load(const Bf16* p) {
  return {widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
GRAFT_LANES_INLINE void store(Bf16* p, Lanes v) {
  // Packing works in halves of 128 bits: words 0-3, 8-11, 4-7, 12-15.
  const __m256i words = _mm256_packus_epi32(narrowed_words(v.lo), narrowed_words(v.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
GRAFT_LANES_INLINE Lanes load_first(const Bf16* p, int64_t n) {
  Bf16 part[kLanes] = {};
  for (int64_t i = 0; i < n && i < kLanes; ++i) part[i] = p[i];
  return load(part);
}
GRAFT_LANES_INLINE void store_first(Bf16* p, Lanes v, int64_t n) {
  Bf16 part[kLanes];
  store(part, v);
  for (int64_t i = 0; i < n && i < kLanes; ++i) p[i] = part[i];
}
GRAFT_LANES_INLINE Lanes all(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
GRAFT_LANES_INLINE Lanes add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes sub(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes mul(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes div(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
GRAFT_LANES_INLINE Lanes square_root(Lanes a) {
  return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
GRAFT_LANES_INLINE Lanes larger(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes smaller(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
GRAFT_LANES_INLINE Lanes magnitude(Lanes a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
GRAFT_LANES_INLINE Lanes below(Lanes a, Lanes b, Lanes yes, Lanes no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
GRAFT_LANES_INLINE Lanes with_sign_of(Lanes a, Lanes b) {
  const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0x80000000u)));
  return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
          _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi))};
}
GRAFT_LANES_INLINE __m256 scale_eight(__m256 a, __m256 n) {
  // Two factors: each power is a normal number, and only the second product can round.
  const __m256i power = _mm256_cvtps_epi32(n);
  const __m256i first = _mm256_srai_epi32(power, 1);
  const __m256i second = _mm256_sub_epi32(power, first);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
  const __m256 s = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(a, f), s);
}
GRAFT_LANES_INLINE Lanes scale_by_power(Lanes a, Lanes n) {
  return {scale_eight(a.lo, n.lo), scale_eight(a.hi, n.hi)};
}
GRAFT_LANES_INLINE float sum_lanes(Lanes v) {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
GRAFT_LANES_INLINE float largest_lane(Lanes v) {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#else

struct Lanes {
  float x[16];
};

template <class Operation>
GRAFT_LANES_INLINE Lanes each(Operation operation) {
  Lanes r;
  for (int i = 0; i < 16; ++i) r.x[i] = operation(i);
  return r;
}
GRAFT_LANES_INLINE Lanes load(const float* p) {
  return each([&](int i) { return p[i]; });
}
GRAFT_LANES_INLINE void store(float* p, Lanes v) {
  for (int i = 0; i < 16; ++i) p[i] = v.x[i];
}
GRAFT_LANES_INLINE Lanes load_first(const float* p, int64_t n) {
  return each([&](int i) { return i < n ? p[i] : 0.0f; });
}
GRAFT_LANES_INLINE void store_first(float* p, Lanes v, int64_t n) {
  for (int i = 0; i < n && i < 16; ++i) p[i] = v.x[i];
}
GRAFT_LANES_INLINE Lanes load(const Bf16* p) {
  return each([&](int i) { return from_bf16(p[i].bits); });
}
GRAFT_LANES_INLINE void store(Bf16* p, Lanes v) {
  for (int i = 0; i < 16; ++i) p[i].bits = to_bf16_or_nan(v.x[i]);
}
GRAFT_LANES_INLINE Lanes load_first(const Bf16* p, int64_t n) {
  return each([&](int i) { return i < n ? from_bf16(p[i].bits) : 0.0f; });
}
GRAFT_LANES_INLINE void store_first(Bf16* p, Lanes v, int64_t n) {
  for (int i = 0; i < n && i < 16; ++i) p[i].bits = to_bf16_or_nan(v.x[i]);
}
GRAFT_LANES_INLINE Lanes all(float x) {
  return each([&](int) { return x; });
}
GRAFT_LANES_INLINE Lanes add(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] + b.x[i]; });
}
GRAFT_LANES_INLINE Lanes sub(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] - b.x[i]; });
}
GRAFT_LANES_INLINE Lanes mul(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] * b.x[i]; });
}
GRAFT_LANES_INLINE Lanes div(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] / b.x[i]; });
}
GRAFT_LANES_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  return each([&](int i) { return __builtin_fmaf(a.x[i], b.x[i], c.x[i]); });
}
GRAFT_LANES_INLINE Lanes square_root(Lanes a) {
  return each([&](int i) { return __builtin_sqrtf(a.x[i]); });
}
GRAFT_LANES_INLINE Lanes larger(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
GRAFT_LANES_INLINE Lanes smaller(Lanes a, Lanes b) {
  return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
GRAFT_LANES_INLINE Lanes magnitude(Lanes a) {
  return each([&](int i) { return __builtin_fabsf(a.x[i]); });
}
GRAFT_LANES_INLINE Lanes below(Lanes a, Lanes b, Lanes yes, Lanes no) {
  return each([&](int i) { return a.x[i] < b.x[i] ? yes.x[i] : no.x[i]; });
}
GRAFT_LANES_INLINE Lanes with_sign_of(Lanes a, Lanes b) {
  return each([&](int i) { return __builtin_copysignf(a.x[i], b.x[i]); });
}
GRAFT_LANES_INLINE Lanes scale_by_power(Lanes a, Lanes n) {
  return each([&](int i) {
    return n.x[i] == n.x[i] ? __builtin_ldexpf(a.x[i], static_cast<int>(n.x[i])) : n.x[i];
  });
}
GRAFT_LANES_INLINE float sum_lanes(Lanes v) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v.x[i] = v.x[i] + v.x[i + width];
  }
  return v.x[0];
}
GRAFT_LANES_INLINE float largest_lane(Lanes v) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v.x[i] = v.x[i] > v.x[i + width] ? v.x[i] : v.x[i + width];
  }
  return v.x[0];
}

#endif

// e^x within 1.02 units in the last place (measured over every float32, -104 to 88.72): 0 below
// -103.98, inf above 88.73, NaN for NaN. Cody-Waite reduction by ln 2 in two parts and Cephes'
// polynomial.
GRAFT_LANES_INLINE Lanes exponential(Lanes x) {
  x = larger(all(-104.0f), x);
  x = smaller(all(89.0f), x);
  // Adding 1.5 * 2^23 rounds to the nearest whole number in every instruction set alike.
  const Lanes shift = all(12582912.0f);
  const Lanes n = sub(add(mul(x, all(1.44269504088896341f)), shift), shift);
  Lanes r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Lanes p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return scale_by_power(p, n);
}

// 1 / (1 + e^-x): a sum and a quotient rounded once each.
GRAFT_LANES_INLINE Lanes sigmoid(Lanes x) {
  return div(all(1.0f), add(all(1.0f), exponential(sub(all(0.0f), x))));
}

// tanh(x) within 1.5 units in the last place (tested at every 509th float32): Cephes' odd
// polynomial below 0.625, 1 - 2 / (e^(2|x|) + 1) above, where nothing cancels. NaN for NaN.
GRAFT_LANES_INLINE Lanes hyperbolic_tangent(Lanes x) {
  const Lanes size = magnitude(x);
  const Lanes square = mul(x, x);
  Lanes p = all(-5.70498872745e-3f);
  p = fma(p, square, all(2.06390887954e-2f));
  p = fma(p, square, all(-5.37397155531e-2f));
  p = fma(p, square, all(1.33314422036e-1f));
  p = fma(p, square, all(-3.33332819422e-1f));
  const Lanes near = fma(mul(p, square), x, x);
  const Lanes tail = div(all(2.0f), add(exponential(add(size, size)), all(1.0f)));
  return below(size, all(0.625f), near, with_sign_of(sub(all(1.0f), tail), x));
}

// 1 / sqrt(x) as a root and a quotient, each rounded: within 1 unit in the last place.
GRAFT_LANES_INLINE Lanes reciprocal_root(Lanes x) {
  return div(all(1.0f), square_root(x));
}

// v as it would be read after it was written to an array of Element.
template <class Element>
GRAFT_LANES_INLINE Lanes rounded_to(Lanes v) {
  if constexpr (sizeof(Element) == sizeof(float)) return v;
  Element part[kLanes];
  store(part, v);
  return load(part);
}

// Calls body(i, lanes) for vectors of [0, count); only the last has fewer than kLanes lanes.
template <class Body>
GRAFT_LANES_INLINE void for_lanes(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, count - i);
}
template <class Element>
GRAFT_LANES_INLINE Lanes load_upto(const Element* p, int64_t lanes) {
  return lanes == kLanes ? load(p) : load_first(p, lanes);
}
template <class Element>
GRAFT_LANES_INLINE void store_upto(Element* p, Lanes v, int64_t lanes) {
  if (lanes == kLanes) {
    store(p, v);
  } else {
    store_first(p, v, lanes);
  }
}

}  // namespace
}  // namespace graft::kernels
