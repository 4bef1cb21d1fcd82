// AdamW, sums over arrays, additions and dropout.
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Philox4x32-10 on 16 counters that differ in their first word (Salmon et al., SC 2011, fig. 2).
struct Philox {
  uint32_t word[4][kLanes];
};

Philox philox(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  Philox x;
  for (uint32_t i = 0; i < kLanes; ++i) {
    x.word[0][i] = first + i;
    x.word[1][i] = c1;
    x.word[2][i] = c2;
    x.word[3][i] = c3;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const uint64_t product0 = kMultiplier0 * x.word[0][i];
      const uint64_t product1 = kMultiplier1 * x.word[2][i];
      const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
      const uint32_t high1 = static_cast<uint32_t>(product1 >> 32);
      x.word[0][i] = high1 ^ x.word[1][i] ^ key0;
      x.word[2][i] = high0 ^ x.word[3][i] ^ key1;
      x.word[1][i] = static_cast<uint32_t>(product1);
      x.word[3][i] = static_cast<uint32_t>(product0);
    }
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return x;
}

}  // namespace

void adamw(
    float* param, const float* grad, float* m, float* v, int64_t count, const AdamFactors& f) {
  for_lanes(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
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

void add_to(float* x, const float* y, int64_t count) {
  for_lanes(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        store_upto(x + i, add(load_upto(x + i, n), load_upto(y + i, n)), n);
      });
}

void scale_by(float* x, float s, int64_t count) {
  for_lanes(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        store_upto(x + i, mul(load_upto(x + i, n), all(s)), n);
      });
}

void dropout_row(float* x,
                 int64_t dim,
                 int64_t row_index,
                 uint64_t seed,
                 uint64_t stream,
                 uint32_t threshold,
                 float keep_scale) {
  const uint64_t row = static_cast<uint64_t>(row_index);
  const uint32_t c1 = static_cast<uint32_t>(stream) ^ static_cast<uint32_t>(row >> 32);
  const uint32_t c2 = static_cast<uint32_t>(row);
  const uint32_t c3 = static_cast<uint32_t>(stream >> 32);
  for (int64_t column = 0; column < dim; column += 4 * kLanes) {
    const Philox random = philox(static_cast<uint32_t>(column / 4), c1, c2, c3, seed);
    for (int64_t j = 0; j < 4 * kLanes && column + j < dim; ++j) {
      const bool kept = random.word[j % 4][j / 4] >= threshold;
      x[column + j] = kept ? x[column + j] * keep_scale : 0.0f;
    }
  }
}

void exponential_array(const float* x, int64_t count, float* out) {
  for_lanes(
      count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        store_upto(out + i, exponential(load_upto(x + i, n)), n);
      });
}

}  // namespace graft::kernels::GRAFT_ISA
