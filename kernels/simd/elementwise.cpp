// AdamW, sums over arrays, additions and dropout.
#include "kernels/scalar.h"
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Philox4x32-10 (Salmon et al., SC 2011, fig. 2) on 16 counters that differ in their first word.
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

struct PhiloxCounter {
  uint32_t first, c1, c2, c3;
};

#if defined(__AVX512F__)

struct Product {
  __m512i low, high;
};

GRAFT_LANES_INLINE Product product_of(__m512i a, uint32_t multiplier) {
  const __m512i m = _mm512_set1_epi64(multiplier);
  const __m512i even = _mm512_mul_epu32(a, m);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  return {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)),
          _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)};
}

// words[4 * i + j] = word j of counter first + i.
void philox(const PhiloxCounter& counter, uint64_t seed, uint32_t (&words)[4 * kLanes]) {
  const auto all_words = [](uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); };
  __m512i x0 =
      _mm512_add_epi32(all_words(counter.first),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  __m512i x1 = all_words(counter.c1), x2 = all_words(counter.c2), x3 = all_words(counter.c3);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product p0 = product_of(x0, kMultiplier0), p1 = product_of(x2, kMultiplier1);
    x0 = _mm512_xor_si512(_mm512_xor_si512(p1.high, x1), all_words(key0));
    x2 = _mm512_xor_si512(_mm512_xor_si512(p0.high, x3), all_words(key1));
    x1 = p1.low;
    x3 = p0.low;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  const __m512i low01 = _mm512_unpacklo_epi32(x0, x1), high01 = _mm512_unpackhi_epi32(x0, x1);
  const __m512i low23 = _mm512_unpacklo_epi32(x2, x3), high23 = _mm512_unpackhi_epi32(x2, x3);
  // 128-bit lane l of group g holds the four words of counter 4 l + g.
  const __m512i group[4] = {
      _mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
      _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
  for (int g = 0; g < 4; ++g) {
    const auto put = [&](int lane, __m128i four) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(words + 4 * (4 * lane + g)), four);
    };
    put(0, _mm512_extracti32x4_epi32(group[g], 0));
    put(1, _mm512_extracti32x4_epi32(group[g], 1));
    put(2, _mm512_extracti32x4_epi32(group[g], 2));
    put(3, _mm512_extracti32x4_epi32(group[g], 3));
  }
}

#else

// words[4 * i + j] = word j of counter first + i.
void philox(const PhiloxCounter& counter, uint64_t seed, uint32_t (&words)[4 * kLanes]) {
  uint32_t x[4][kLanes];
  for (uint32_t i = 0; i < kLanes; ++i) {
    x[0][i] = counter.first + i;
    x[1][i] = counter.c1;
    x[2][i] = counter.c2;
    x[3][i] = counter.c3;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{kMultiplier0} * x[0][i];
      const uint64_t product1 = uint64_t{kMultiplier1} * x[2][i];
      x[0][i] = static_cast<uint32_t>(product1 >> 32) ^ x[1][i] ^ key0;
      x[2][i] = static_cast<uint32_t>(product0 >> 32) ^ x[3][i] ^ key1;
      x[1][i] = static_cast<uint32_t>(product1);
      x[3][i] = static_cast<uint32_t>(product0);
    }
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  for (int64_t i = 0; i < kLanes; ++i) {
    for (int64_t j = 0; j < 4; ++j) words[4 * i + j] = x[j][i];
  }
}

#endif

template <class Element>
void dropout_of(const DropoutRows& call, int64_t begin, int64_t end) {
  uint32_t words[4 * kLanes];
  for (int64_t index = begin; index < end; ++index) {
    const uint64_t row = static_cast<uint64_t>(call.row_index[index]);
    PhiloxCounter counter;
    counter.c1 = static_cast<uint32_t>(call.stream) ^ static_cast<uint32_t>(row >> 32);
    counter.c2 = static_cast<uint32_t>(row);
    counter.c3 = static_cast<uint32_t>(call.stream >> 32);
    for (int64_t column = 0; column < call.dim; column += 4 * kLanes) {
      counter.first = static_cast<uint32_t>(column / 4);
      philox(counter, call.seed, words);
      const int64_t count = call.dim - column < 4 * kLanes ? call.dim - column : 4 * kLanes;
      Element* const to = static_cast<Element*>(call.x) + index * call.dim + column;
      for_lanes(count, [&](int64_t i, int64_t n) {
        float factor[kLanes];  // 0 where the element is dropped
        for (int64_t j = 0; j < kLanes; ++j) {
          factor[j] = words[i + j] >= call.threshold ? call.keep_scale : 0.0f;
        }
        const Lanes keep = load(factor), zero = all(0.0f);
        const Lanes kept = mul(load_upto(to + i, n), keep);
        store_upto(to + i, below(zero, keep, kept, zero), n);
      });
    }
  }
}

}  // namespace

void adamw(
    float* param, const float* grad, float* m, float* v, int64_t count, const AdamFactors& f) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const Lanes g = mul(load_upto(grad + i, n), all(f.grad_scale));
    const Lanes p = mul(load_upto(param + i, n), all(f.decay));
    const Lanes first = fma(g, all(f.one_minus_beta1), mul(load_upto(m + i, n), all(f.beta1)));
    const Lanes second =
        fma(mul(g, g), all(f.one_minus_beta2), mul(load_upto(v + i, n), all(f.beta2)));
    const Lanes divisor = add(div(square_root(second), all(f.bias2_root)), all(f.eps));
    store_upto(m + i, first, n);
    store_upto(v + i, second, n);
    store_upto(param + i, sub(p, div(mul(first, all(f.step_size)), divisor)), n);
  });
}

double sum_squares(const float* x, int64_t count) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const double value = static_cast<double>(x[i + j]);
      lane[j] += value * value;
    }
  }
  for (int64_t j = 0; i + j < count; ++j) {
    const double value = static_cast<double>(x[i + j]);
    lane[j] += value * value;
  }
  double total = 0.0;
  for (int64_t j = 0; j < kLanes; ++j) total += lane[j];
  return total;
}

int64_t count_not_finite(const float* x, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    found += (bits & 0x7f800000u) == 0x7f800000u;
  }
  return found;
}

void addition(const Addition& call, int64_t begin, int64_t end) {
  for_element(call.x_type, [&](auto x_element) {
    for_element(call.y_type, [&](auto y_element) {
      auto* const x = static_cast<decltype(x_element)*>(call.x) + begin;
      const auto* const y = static_cast<const decltype(y_element)*>(call.y) + begin;
      for_lanes(end - begin, [&](int64_t i, int64_t n) {
        store_upto(x + i, add(load_upto(x + i, n), load_upto(y + i, n)), n);
      });
    });
  });
}

void conversion(const Conversion& call, int64_t begin, int64_t end) {
  for_element(call.from_type, [&](auto from_element) {
    for_element(call.to_type, [&](auto to_element) {
      for (int64_t row = begin; row < end; ++row) {
        const auto* const from =
            static_cast<const decltype(from_element)*>(call.from) + row * call.from_stride;
        auto* const to = static_cast<decltype(to_element)*>(call.to) + row * call.to_stride;
        for_lanes(call.columns, [&](int64_t i, int64_t n) {
          store_upto(to + i, mul(load_upto(from + i, n), all(call.scale)), n);
        });
      }
    });
  });
}

void dropout(const DropoutRows& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto element) { dropout_of<decltype(element)>(call, begin, end); });
}

void exponential_array(const float* x, int64_t count, float* out) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_upto(out + i, exponential(load_upto(x + i, n)), n);
  });
}

void hyperbolic_tangent_array(const float* x, int64_t count, float* out) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_upto(out + i, hyperbolic_tangent(load_upto(x + i, n)), n);
  });
}

void reciprocal_root_array(const float* x, int64_t count, float* out) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_upto(out + i, reciprocal_root(load_upto(x + i, n)), n);
  });
}

void logarithm_array(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = logarithm(x[i]);
}

}  // namespace graft::kernels::GRAFT_ISA
