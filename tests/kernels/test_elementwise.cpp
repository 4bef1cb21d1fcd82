#include <limits>
#include <numeric>

#include "kernels/elementwise.h"
#include "kernels/optimizer.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

}  // namespace

TEST_CASE("exponential: within 1.02 units in the last place over its range",
          "[kernels][exponential]") {
  const Environment restore;
  const InstructionSet set = GENERATE(from_range(instruction_sets()));
  use_instruction_set(set);
  // Every 509th float32 from -104 to 89, by bits; both signs.
  double worst = 0.0;
  std::vector<float> x, out;
  for (uint32_t sign = 0; sign < 2; ++sign) {
    for (uint32_t bits = 0; bits < 0x42d00000u; bits += 509) {
      const uint32_t signed_bits = bits | sign << 31;
      float value;
      std::memcpy(&value, &signed_bits, sizeof value);
      if (value <= 88.72283f) x.push_back(value);
    }
  }
  out.resize(x.size());
  table().exponential(x.data(), static_cast<int64_t>(x.size()), out.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    int exponent;
    std::frexp(exact, &exponent);
    const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
    worst = std::max(worst, std::fabs(static_cast<double>(out[i]) - exact) / ulp);
  }
  INFO("worst error in units in the last place " << worst);
  CHECK(worst <= 1.02);
}

TEST_CASE("tanh and ln: within their stated errors over their range", "[kernels][exponential]") {
  const Environment restore;
  const InstructionSet set = GENERATE(from_range(instruction_sets()));
  use_instruction_set(set);
  struct Function {
    const char* name;
    void (*run)(const float*, int64_t, float*);
    double (*exact)(double);
    bool negative;
    double bound;  // units in the last place
  };
  const Function function =
      GENERATE(Function{"tanh", table().hyperbolic_tangent, [](double x) { return std::tanh(x); },
                        true, 1.5},
               Function{"ln", table().logarithm, [](double x) { return std::log(x); }, false, 1.0});
  CAPTURE(function.name);
  // Every 509th normal float32, by bits.
  std::vector<float> x;
  for (uint32_t sign = 0; sign < (function.negative ? 2u : 1u); ++sign) {
    for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 509) {
      const uint32_t signed_bits = bits | sign << 31;
      float value;
      std::memcpy(&value, &signed_bits, sizeof value);
      x.push_back(value);
    }
  }
  std::vector<float> out(x.size());
  function.run(x.data(), static_cast<int64_t>(x.size()), out.data());
  double worst = 0.0;
  float worst_at = 0.0f;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = function.exact(static_cast<double>(x[i]));
    int exponent;
    std::frexp(exact, &exponent);
    const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
    const double error = std::fabs(static_cast<double>(out[i]) - exact) / ulp;
    if (error > worst) worst_at = x[i];
    worst = std::max(worst, error);
  }
  INFO("worst error in units in the last place " << worst << " at " << worst_at);
  CHECK(worst <= function.bound);
}

TEST_CASE("exponential: the ends of the range", "[kernels][exponential]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  const float infinity = std::numeric_limits<float>::infinity();
  const float x[] = {0.0f, -0.0f, -infinity, infinity, -150.0f, 89.0f, NAN, -87.5f};
  float out[8];
  table().exponential(x, 8, out);
  CHECK((out[0] == 1.0f && out[1] == 1.0f));
  CHECK((out[2] == 0.0f && out[4] == 0.0f));
  CHECK((out[3] == infinity && out[5] == infinity));
  CHECK(std::isnan(out[6]));
  CHECK((out[7] > 0.0f && out[7] < std::numeric_limits<float>::min()));
}

TEST_CASE("exponential: all instruction sets agree to the bit", "[kernels][exponential]") {
  const std::vector<float> x = random_floats(100003, 1, 40.0f);
  same_everywhere([&] {
    std::vector<float> out(x.size());
    table().exponential(x.data(), static_cast<int64_t>(x.size()), out.data());
    return out;
  });
}

TEST_CASE("adamw: three steps stay within a few roundings a step of the oracle",
          "[kernels][adamw]") {
  const int64_t count = GENERATE(1, 16, 17, 16384, 16385, 70001);
  const float deviation = GENERATE(1.0f, 1e-6f);
  graft_adamw options{1e-3f, 0.9f, 0.999f, 1e-8f, 0.01f, 1, 0.5f};
  const std::vector<float> param = random_floats(count, 1);
  const auto gradient = [&](int64_t step) {
    return random_floats(count, 10 + static_cast<uint32_t>(step), deviation);
  };
  std::vector<float> p, m, v;
  same_everywhere([&] {
    Guarded<float> p_g(param), m_g(std::vector<float>(param.size())),
        v_g(std::vector<float>(param.size()));
    for (options.step = 1; options.step <= 3; ++options.step) {
      const std::vector<float> grad = gradient(options.step);
      REQUIRE(graft_adamw_step(p_g.data(), grad.data(), m_g.data(), v_g.data(), count, &options) ==
              GRAFT_OK);
    }
    REQUIRE((p_g.intact() && m_g.intact() && v_g.intact()));
    p = p_g.values();
    m = m_g.values();
    v = v_g.values();
    return joined({p, m, v});
  });
  oracle::AdamState state{widen(param), std::vector<double>(param.size()),
                          std::vector<double>(param.size())};
  std::vector<double> moved(param.size()), m_size(param.size()), v_size(param.size());
  for (int64_t step = 1; step <= 3; ++step) {
    const std::vector<float> grad = gradient(step);
    const std::vector<double> before = state.param;
    oracle::adamw(state, widen(grad),
                  {static_cast<double>(options.lr), static_cast<double>(options.beta1),
                   static_cast<double>(options.beta2), static_cast<double>(options.eps),
                   static_cast<double>(options.weight_decay), step, 0.5});
    for (size_t i = 0; i < moved.size(); ++i) {
      moved[i] += std::fabs(state.param[i] - before[i]) + 1e-3;
      m_size[i] += std::fabs(static_cast<double>(grad[i]));
      v_size[i] += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
    }
  }
  // Each step rounds a parameter twice, a moment three times, and its factors once.
  std::vector<double> p_bound(p.size()), m_bound(p.size()), v_bound(p.size());
  for (size_t i = 0; i < p.size(); ++i) {
    const double size = std::fabs(static_cast<double>(param[i])) + moved[i];
    p_bound[i] = kUnit * (3.0 * 3.0 * size + 64.0 * moved[i]);
    m_bound[i] = kUnit * 12.0 * m_size[i] + 1e-44;
    v_bound[i] = kUnit * 12.0 * v_size[i] + 1e-44;
  }
  CHECK(outside(p, state.param, p_bound) == "");
  CHECK(outside(m, state.m, m_bound) == "");
  CHECK(outside(v, state.v, v_bound) == "");
}

TEST_CASE("adamw: the first step moves by lr against the gradient's sign", "[kernels][adamw]") {
  // m_hat / sqrt(v_hat) = g / |g|.
  float p[2] = {1.0f, 1.0f}, m[2] = {}, v[2] = {};
  const float g[2] = {3.0f, -0.5f};
  const graft_adamw options{0.125f, 0.9f, 0.999f, 0.0f, 0.0f, 1, 1.0f};
  REQUIRE(graft_adamw_step(p, g, m, v, 2, &options) == GRAFT_OK);
  CHECK(p[0] == Approx(0.875).epsilon(1e-6));
  CHECK(p[1] == Approx(1.125).epsilon(1e-6));
}

TEST_CASE("adamw: options out of range are refused", "[kernels][adamw]") {
  float x[1] = {};
  graft_adamw options{1e-3f, 0.9f, 0.999f, 1e-8f, 0.0f, 1, 1.0f};
  SECTION("step 0") {
    options.step = 0;
  }
  SECTION("beta1 1") {
    options.beta1 = 1.0f;
  }
  SECTION("beta2 NaN") {
    options.beta2 = NAN;
  }
  SECTION("eps negative") {
    options.eps = -1.0f;
  }
  CHECK(graft_adamw_step(x, x, x, x, 1, &options) == GRAFT_BAD_ARGUMENT);
}

TEST_CASE("sums: squares and counts agree with plain loops for any threads", "[kernels][sums]") {
  const int64_t count = GENERATE(0, 1, 15, 16384, 16385, 1100007);
  std::vector<float> x = random_floats(count, 1);
  double expected = 0.0;
  for (const float value : x) expected += static_cast<double>(value) * static_cast<double>(value);
  same_everywhere([&] {
    double sum = -1.0;
    REQUIRE(graft_sum_squares(x.data(), count, &sum) == GRAFT_OK);
    // Doubles: at most `count` roundings of 2^-53.
    REQUIRE(std::fabs(sum - expected) <= 1.2e-16 * static_cast<double>(count) * expected);
    float halves[2];
    std::memcpy(halves, &sum, sizeof sum);
    return std::vector<float>(halves, halves + 2);
  });
  if (count < 3) return;
  x[1] = NAN;
  x.back() = -std::numeric_limits<float>::infinity();
  x[0] = std::numeric_limits<float>::max();
  int64_t found = -1;
  REQUIRE(graft_count_not_finite(x.data(), count, &found) == GRAFT_OK);
  CHECK(found == 2);
}

TEST_CASE("elementwise: add and scale are single roundings", "[kernels][elementwise]") {
  const int64_t count = GENERATE(1, 16, 31, 16385, 100001);
  const std::vector<float> x = random_floats(count, 1), y = random_floats(count, 2);
  std::vector<float> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const float sum = x[i] + y[i];
    expected[i] = sum * 0.3f;
  }
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> buffer(x);
    REQUIRE(graft_add(buffer.data(), y.data(), count) == GRAFT_OK);
    REQUIRE(graft_scale(buffer.data(), 0.3f, count) == GRAFT_OK);
    REQUIRE(buffer.intact());
    return buffer.values();
  });
  CHECK(same_bits(got, expected));
}

TEST_CASE("philox: the oracle gives the published words", "[kernels][dropout]") {
  // Known answers of Random123 (kat_vectors, philox4x32 10).
  const uint32_t zero[4] = {}, zero_key[2] = {};
  const auto a = oracle::philox(zero, zero_key);
  CHECK((a.word[0] == 0x6627e8d5 && a.word[1] == 0xe169c58d && a.word[2] == 0xbc57ac4c &&
         a.word[3] == 0x9b00dbd8));
  const uint32_t pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  const uint32_t pi_key[2] = {0xa4093822, 0x299f31d0};
  const auto b = oracle::philox(pi, pi_key);
  CHECK((b.word[0] == 0xd16cfe09 && b.word[1] == 0x94fdcceb && b.word[2] == 0x5001e420 &&
         b.word[3] == 0x24126ea1));
}

TEST_CASE("dropout: the mask is Philox of seed, stream, token and column", "[kernels][dropout]") {
  const int64_t rows = 5, dim = GENERATE(1, 4, 63, 64, 65, 300);
  const std::vector<int64_t> index = {0, 7, int64_t{5} << 32, 123456789, 1};
  const uint64_t seed = 0x0123456789abcdefu, stream = 0xfedcba9876543210u;
  const float p = GENERATE(0.1f, 0.5f, 0.9f);
  const std::vector<float> x = random_floats(rows * dim, 1);
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> buffer(x);
    REQUIRE(graft_dropout_mask_apply(buffer.data(), rows, dim, index.data(), seed, stream, p) ==
            GRAFT_OK);
    REQUIRE(buffer.intact());
    return buffer.values();
  });
  std::vector<float> expected(x.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < dim; ++column) {
      const uint64_t token = static_cast<uint64_t>(index[at(row)]);
      const uint32_t counter[4] = {
          static_cast<uint32_t>(column / 4),
          static_cast<uint32_t>(stream) ^ static_cast<uint32_t>(token >> 32),
          static_cast<uint32_t>(token), static_cast<uint32_t>(stream >> 32)};
      const uint32_t key[2] = {0x89abcdef, 0x01234567};
      const uint32_t word = oracle::philox(counter, key).word[column % 4];
      const bool kept =
          static_cast<double>(word) >= std::floor(static_cast<double>(p) * 4294967296.0);
      const float factor = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
      expected[at(row * dim + column)] = kept ? x[at(row * dim + column)] * factor : 0.0f;
    }
  }
  CHECK(same_bits(got, expected));
}

TEST_CASE("dropout: a mask follows its token and drops the share p", "[kernels][dropout]") {
  const int64_t rows = 400, dim = 256;
  std::vector<int64_t> index(at(rows));
  std::iota(index.begin(), index.end(), 1000);
  std::vector<float> x(at(rows * dim), 1.0f), tail(at(dim), 1.0f);
  REQUIRE(graft_dropout_mask_apply(x.data(), rows, dim, index.data(), 7, 3, 0.25f) == GRAFT_OK);
  REQUIRE(graft_dropout_mask_apply(tail.data(), 1, dim, &index.back(), 7, 3, 0.25f) == GRAFT_OK);
  CHECK(std::equal(tail.begin(), tail.end(), x.end() - dim));
  const auto dropped = static_cast<double>(std::count(x.begin(), x.end(), 0.0f));
  // Five standard deviations of a binomial of 102,400 draws.
  const double draws = static_cast<double>(rows * dim);
  CHECK(std::fabs(dropped - 0.25 * draws) <= 5.0 * std::sqrt(draws * 0.25 * 0.75));
  CHECK(graft_dropout_mask_apply(x.data(), rows, dim, index.data(), 7, 3, 1.0f) ==
        GRAFT_BAD_ARGUMENT);
}
