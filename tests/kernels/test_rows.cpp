#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/oracle/oracle.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

double magnitude(float x) {
  return std::fabs(static_cast<double>(x));
}

struct RowShape {
  int64_t rows, dim;
};

}  // namespace

TEST_CASE("rmsnorm: forward and backward are within the bound of their sums",
          "[kernels][rmsnorm]") {
  const RowShape s = GENERATE(RowShape{1, 1}, RowShape{3, 15}, RowShape{7, 16}, RowShape{65, 17},
                              RowShape{64, 128}, RowShape{130, 192}, RowShape{700, 131});
  const float eps = 1e-5f, deviation = GENERATE(1.0f, 1e-3f, 100.0f);
  const std::vector<float> x = random_floats(s.rows * s.dim, 1, deviation);
  const std::vector<float> weight = random_floats(s.dim, 2),
                           dout = random_floats(s.rows * s.dim, 3);
  const std::vector<float> dx0 = random_floats(s.rows * s.dim, 4), dw0 = random_floats(s.dim, 5);
  std::vector<float> out, inv_rms, dx, dweight;
  same_everywhere([&] {
    Guarded<float> out_g(x.size()), inv_g(at(s.rows)), dx_g(dx0), dw_g(dw0);
    REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), eps, s.rows, s.dim, out_g.data(),
                                  inv_g.data()) == GRAFT_OK);
    REQUIRE(graft_rmsnorm_backward(dout.data(), x.data(), weight.data(), inv_g.data(), s.rows,
                                   s.dim, dx_g.data(), dw_g.data()) == GRAFT_OK);
    REQUIRE((out_g.intact() && inv_g.intact() && dx_g.intact() && dw_g.intact()));
    out = out_g.values();
    inv_rms = inv_g.values();
    dx = dx_g.values();
    dweight = dw_g.values();
    return joined({out, inv_rms, dx, dweight});
  });
  const auto forward =
      oracle::rmsnorm(widen(x), widen(weight), static_cast<double>(eps), s.rows, s.dim);
  auto gradient = oracle::rmsnorm_gradient(widen(dout), widen(x), widen(weight),
                                           static_cast<double>(eps), s.rows, s.dim);
  // A sum of squares has dim / 16 + 5 roundings in a chain; root, quotient and products are six.
  const double chain = static_cast<double>(s.dim) / 16.0 + 11.0;
  std::vector<double> out_bound, inv_bound, dx_bound(x.size());
  for (const double value : forward.out) out_bound.push_back(kUnit * chain * std::fabs(value));
  for (const double value : forward.inv_rms) inv_bound.push_back(kUnit * chain * value);
  CHECK(outside(out, forward.out, out_bound) == "");
  CHECK(outside(inv_rms, forward.inv_rms, inv_bound) == "");
  std::vector<double> dweight_bound(at(s.dim));
  for (int64_t row = 0; row < s.rows; ++row) {
    const double inverse = forward.inv_rms[at(row)];
    double mean = 0.0;
    for (int64_t i = 0; i < s.dim; ++i) {
      const size_t j = at(row * s.dim + i);
      mean += magnitude(dout[j]) * magnitude(weight[at(i)]) * magnitude(x[j]) * inverse /
              static_cast<double>(s.dim);
    }
    for (int64_t i = 0; i < s.dim; ++i) {
      const size_t j = at(row * s.dim + i);
      const double terms = inverse * (magnitude(dout[j]) * magnitude(weight[at(i)]) +
                                      magnitude(x[j]) * inverse * mean);
      dx_bound[j] = kUnit * (3.0 * chain * terms + magnitude(dx0[j]) + std::fabs(gradient.dx[j]));
      gradient.dx[j] += static_cast<double>(dx0[j]);
      dweight_bound[at(i)] += magnitude(dout[j]) * magnitude(x[j]) * inverse;
    }
  }
  CHECK(outside(dx, gradient.dx, dx_bound) == "");
  // 64 products to a tile, then one addition a tile.
  const double additions = 64.0 + static_cast<double>(s.rows) / 64.0 + chain + 2.0;
  for (int64_t i = 0; i < s.dim; ++i) {
    gradient.dweight[at(i)] += static_cast<double>(dw0[at(i)]);
    dweight_bound[at(i)] = kUnit * additions * (dweight_bound[at(i)] + magnitude(dw0[at(i)]));
  }
  CHECK(outside(dweight, gradient.dweight, dweight_bound) == "");
}

TEST_CASE("rmsnorm: in place equals apart, and a frozen weight needs no gradient",
          "[kernels][rmsnorm]") {
  const std::vector<float> x = random_floats(5 * 33, 1), weight = random_floats(33, 2);
  std::vector<float> out(x.size()), in_place = x, inv_rms(5), dx(x.size()), dx_frozen(x.size());
  std::vector<float> dweight(33);
  REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, 5, 33, out.data(),
                                inv_rms.data()) == GRAFT_OK);
  REQUIRE(graft_rmsnorm_forward(in_place.data(), weight.data(), 1e-6f, 5, 33, in_place.data(),
                                inv_rms.data()) == GRAFT_OK);
  CHECK(same_bits(out, in_place));
  REQUIRE(graft_rmsnorm_backward(out.data(), x.data(), weight.data(), inv_rms.data(), 5, 33,
                                 dx.data(), dweight.data()) == GRAFT_OK);
  REQUIRE(graft_rmsnorm_backward(out.data(), x.data(), weight.data(), inv_rms.data(), 5, 33,
                                 dx_frozen.data(), nullptr) == GRAFT_OK);
  CHECK(same_bits(dx, dx_frozen));
}

TEST_CASE("rope: tables are the rounded functions of the float32 angle", "[kernels][rope]") {
  const std::vector<int32_t> positions = {0, 1, 7, 4095, 131071, -3, 2147483647};
  std::vector<float> inv_freq;
  for (int i = 0; i < 19; ++i) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / 19));
  const int64_t tokens = static_cast<int64_t>(positions.size());
  Guarded<float> cos(positions.size() * 19), sin(positions.size() * 19);
  REQUIRE(graft_rope_tables(positions.data(), tokens, inv_freq.data(), 19, 1.0f, cos.data(),
                            sin.data()) == GRAFT_OK);
  CHECK((cos.intact() && sin.intact()));
  int wrong = 0;
  for (size_t i = 0; i < cos.size(); ++i) {
    const float angle = static_cast<float>(positions[i / 19]) * inv_freq[i % 19];
    wrong += cos[i] != static_cast<float>(std::cos(static_cast<double>(angle)));
    wrong += sin[i] != static_cast<float>(std::sin(static_cast<double>(angle)));
  }
  CHECK(wrong == 0);
  SECTION("scaling multiplies both") {
    std::vector<float> cos2(cos.size()), sin2(cos.size());
    REQUIRE(graft_rope_tables(positions.data(), tokens, inv_freq.data(), 19, 2.0f, cos2.data(),
                              sin2.data()) == GRAFT_OK);
    CHECK(cos2[25] == 2.0f * cos[25]);
    CHECK(sin2[25] == 2.0f * sin[25]);
  }
}

TEST_CASE("rope: turns pairs half a head apart, with a stride, and back", "[kernels][rope]") {
  const int64_t head_dim = GENERATE(2, 8, 30, 64, 128), heads = GENERATE(1, 3), tokens = 37;
  const int64_t width = heads * head_dim, stride = width + 9;
  std::vector<int32_t> positions(at(tokens));
  std::iota(positions.begin(), positions.end(), 5);
  std::vector<float> inv_freq = random_floats(head_dim / 2, 1);
  std::vector<float> cos(at(tokens * head_dim / 2)), sin(cos.size());
  REQUIRE(graft_rope_tables(positions.data(), tokens, inv_freq.data(), head_dim / 2, 1.0f,
                            cos.data(), sin.data()) == GRAFT_OK);
  const std::vector<float> x = random_floats(tokens * stride, 2);
  const graft_rope_direction direction = GENERATE(GRAFT_ROPE_FORWARD, GRAFT_ROPE_INVERSE);
  const std::vector<float> turned = same_everywhere([&] {
    Guarded<float> buffer(x);
    REQUIRE(graft_rope_apply(buffer.data(), tokens, heads, head_dim, stride, cos.data(), sin.data(),
                             direction) == GRAFT_OK);
    REQUIRE(buffer.intact());
    return buffer.values();
  });
  std::vector<float> dense_in, dense_out;
  bool gaps_kept = true;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = x.begin() + t * stride;
    dense_in.insert(dense_in.end(), row, row + width);
    dense_out.insert(dense_out.end(), turned.begin() + t * stride,
                     turned.begin() + t * stride + width);
    gaps_kept =
        gaps_kept && std::equal(row + width, row + stride, turned.begin() + t * stride + width);
  }
  CHECK(gaps_kept);
  const auto expected = oracle::rope(widen(dense_in), tokens, heads, head_dim, widen(cos),
                                     widen(sin), direction == GRAFT_ROPE_FORWARD ? 1.0 : -1.0);
  // Two products and their sum: three roundings of terms no larger than |low| + |high|.
  std::vector<double> bound(expected.size());
  for (size_t i = 0; i < bound.size(); ++i) {
    const size_t head = i / at(head_dim) * at(head_dim), half = at(head_dim / 2);
    const size_t partner = head + (i - head + half) % at(head_dim);
    bound[i] = 2.0 * kUnit * (magnitude(dense_in[i]) + magnitude(dense_in[partner]));
  }
  CHECK(outside(dense_out, expected, bound) == "");
}

TEST_CASE("swiglu: forward and backward are within a few roundings", "[kernels][swiglu]") {
  const int64_t count = GENERATE(1, 15, 16, 17, 4096, 4097, 100003);
  const float deviation = GENERATE(1.0f, 30.0f);
  const std::vector<float> gate = random_floats(count, 1, deviation), up = random_floats(count, 2);
  const std::vector<float> dout = random_floats(count, 3);
  std::vector<float> out, dgate, dup;
  same_everywhere([&] {
    Guarded<float> out_g(gate.size()), dgate_g(gate.size()), dup_g(gate.size());
    REQUIRE(graft_swiglu_forward(gate.data(), up.data(), count, out_g.data()) == GRAFT_OK);
    REQUIRE(graft_swiglu_backward(dout.data(), gate.data(), up.data(), count, dgate_g.data(),
                                  dup_g.data()) == GRAFT_OK);
    REQUIRE((out_g.intact() && dgate_g.intact() && dup_g.intact()));
    out = out_g.values();
    dgate = dgate_g.values();
    dup = dup_g.values();
    return joined({out, dgate, dup});
  });
  const auto forward = oracle::swiglu(widen(gate), widen(up));
  const auto gradient = oracle::swiglu_gradient(widen(dout), widen(gate), widen(up));
  // sigmoid: exponential 2 units, sum 1, quotient 1 and so on: 4; each product one more. Below
  // -88 sigmoid is a denormal or zero, off by at most 2^-126.
  std::vector<double> out_bound(gate.size()), dgate_bound(gate.size()), dup_bound(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = magnitude(gate[i]), u = magnitude(up[i]), d = magnitude(dout[i]);
    const double s = 1.0 / (1.0 + std::exp(-static_cast<double>(gate[i])));
    const double tiny = 1.2e-38 * (1.0 + g) * (1.0 + u) * (1.0 + d);
    out_bound[i] = kUnit * 8.0 * std::fabs(forward[i]) + tiny;
    dup_bound[i] = kUnit * 8.0 * std::fabs(gradient.dup[i]) + tiny;
    dgate_bound[i] = kUnit * 12.0 * d * u * s * (1.0 + g) + tiny;
  }
  CHECK(outside(out, forward, out_bound) == "");
  CHECK(outside(dgate, gradient.dgate, dgate_bound) == "");
  CHECK(outside(dup, gradient.dup, dup_bound) == "");
}

TEST_CASE("swiglu: results may replace their inputs", "[kernels][swiglu]") {
  const int64_t count = 5003;
  const std::vector<float> gate = random_floats(count, 1), up = random_floats(count, 2);
  const std::vector<float> dout = random_floats(count, 3);
  std::vector<float> dgate(gate.size()), dup(gate.size()), gate2 = gate, up2 = up;
  REQUIRE(graft_swiglu_backward(dout.data(), gate.data(), up.data(), count, dgate.data(),
                                dup.data()) == GRAFT_OK);
  REQUIRE(graft_swiglu_backward(dout.data(), gate2.data(), up2.data(), count, gate2.data(),
                                up2.data()) == GRAFT_OK);
  CHECK(same_bits(dgate, gate2));
  CHECK(same_bits(dup, up2));
  CHECK(graft_swiglu_backward(dout.data(), gate.data(), up.data(), count, dgate.data(),
                              dgate.data()) == GRAFT_BAD_ARGUMENT);
}

TEST_CASE("cross entropy: loss and gradient are within the bound of their sums",
          "[kernels][cross_entropy]") {
  const int64_t vocab = GENERATE(1, 2, 15, 17, 512, 513, 3001), rows = GENERATE(1, 9);
  const float deviation = GENERATE(1.0f, 40.0f), scale = 0.125f;
  const std::vector<float> logits = random_floats(rows * vocab, 1, deviation);
  std::vector<float> weight = random_floats(rows, 2);
  weight[0] = 0.0f;
  std::vector<int32_t> labels(at(rows));
  for (int64_t i = 0; i < rows; ++i) labels[at(i)] = static_cast<int32_t>(i * 7919 % vocab);
  std::vector<float> gradient, loss;
  std::vector<uint8_t> correct;
  same_everywhere([&] {
    Guarded<float> logits_g(logits), loss_g(at(rows));
    Guarded<uint8_t> correct_g(at(rows));
    REQUIRE(graft_cross_entropy(logits_g.data(), labels.data(), weight.data(), rows, vocab, scale,
                                loss_g.data(), correct_g.data(), GRAFT_CE_LOSS_ONLY) == GRAFT_OK);
    REQUIRE(same_bits(logits_g.values(), logits));
    const std::vector<float> loss_only = loss_g.values();
    REQUIRE(graft_cross_entropy(logits_g.data(), labels.data(), weight.data(), rows, vocab, scale,
                                loss_g.data(), correct_g.data(),
                                GRAFT_CE_WITH_GRADIENT) == GRAFT_OK);
    REQUIRE((logits_g.intact() && loss_g.intact() && correct_g.intact()));
    gradient = logits_g.values();
    loss = loss_g.values();
    correct = correct_g.values();
    REQUIRE(same_bits(loss_only, loss));
    return joined({gradient, loss});
  });
  const auto expected = oracle::cross_entropy(widen(logits), labels, widen(weight),
                                              static_cast<double>(scale), vocab);
  std::vector<double> gradient_bound(gradient.size()), loss_bound(at(rows));
  for (int64_t row = 0; row < rows; ++row) {
    const float* x = logits.data() + row * vocab;
    const float top = *std::max_element(x, x + vocab);
    const int64_t first = std::max_element(x, x + vocab) - x;
    CHECK(correct[at(row)] == (first == labels[at(row)] ? 1 : 0));
    // An exponential's argument is rounded once: its error is that of a difference of logits. 36
    // additions make a tile's sum.
    const double range =
        static_cast<double>(top) - static_cast<double>(*std::min_element(x, x + vocab));
    const double relative = kUnit * (range + 45.0);
    loss_bound[at(row)] = relative + kUnit * std::fabs(expected.row_loss[at(row)]) + 1e-45;
    const double factor = magnitude(weight[at(row)]) * static_cast<double>(scale);
    for (int64_t i = 0; i < vocab; ++i) {
      const double p =
          std::fabs(expected.gradient[at(row * vocab + i)]) + (i == labels[at(row)] ? factor : 0.0);
      gradient_bound[at(row * vocab + i)] = 2.0 * relative * p + 1e-37 * factor;
    }
  }
  CHECK(outside(loss, expected.row_loss, loss_bound) == "");
  CHECK(outside(gradient, expected.gradient, gradient_bound) == "");
}

TEST_CASE("cross entropy: huge, equal and missing logits", "[kernels][cross_entropy]") {
  float loss;
  uint8_t correct;
  const int32_t label = 1;
  SECTION("1e4 apart is finite") {
    float x[3] = {1e4f, -1e4f, 0.0f};
    REQUIRE(graft_cross_entropy(x, &label, nullptr, 1, 3, 1.0f, &loss, &correct,
                                GRAFT_CE_WITH_GRADIENT) == GRAFT_OK);
    CHECK(loss == 2e4f);
    CHECK((x[0] == 1.0f && x[1] == -1.0f && x[2] == 0.0f));
    CHECK(correct == 0);
  }
  SECTION("of equal logits the first counts as the prediction") {
    float x[3] = {2.0f, 2.0f, 2.0f};
    REQUIRE(graft_cross_entropy(x, &label, nullptr, 1, 3, 1.0f, &loss, &correct,
                                GRAFT_CE_LOSS_ONLY) == GRAFT_OK);
    CHECK(loss == Approx(std::log(3.0)).epsilon(1e-7));
    CHECK(correct == 0);
  }
  SECTION("a masked logit of -inf has probability and gradient 0") {
    float x[3] = {-std::numeric_limits<float>::infinity(), 1.0f, 1.0f};
    REQUIRE(graft_cross_entropy(x, &label, nullptr, 1, 3, 1.0f, &loss, &correct,
                                GRAFT_CE_WITH_GRADIENT) == GRAFT_OK);
    CHECK(loss == Approx(std::log(2.0)).epsilon(1e-7));
    CHECK(x[0] == 0.0f);
    CHECK(correct == 1);
  }
  SECTION("NaN is not hidden") {
    float x[3] = {0.0f, 1.0f, std::numeric_limits<float>::quiet_NaN()};
    REQUIRE(graft_cross_entropy(x, &label, nullptr, 1, 3, 1.0f, &loss, nullptr,
                                GRAFT_CE_LOSS_ONLY) == GRAFT_OK);
    CHECK(std::isnan(loss));
  }
  SECTION("a label out of range changes nothing") {
    float x[3] = {1.0f, 2.0f, 3.0f};
    const int32_t wrong = GENERATE(-100, 3);
    CHECK(graft_cross_entropy(x, &wrong, nullptr, 1, 3, 1.0f, &loss, nullptr,
                              GRAFT_CE_WITH_GRADIENT) == GRAFT_BAD_ARGUMENT);
    CHECK(x[1] == 2.0f);
    CHECK(std::string(graft_last_error()).find("labels[0]") != std::string::npos);
  }
}

TEST_CASE("embedding: rows by id, and gradients added in token order", "[kernels][embedding]") {
  const int64_t vocab = 37, dim = GENERATE(1, 63, 64, 65, 130), tokens = 900;
  const std::vector<float> values = random_floats(vocab * dim, 1);
  std::vector<int32_t> ids(at(tokens));
  for (int64_t i = 0; i < tokens; ++i) ids[at(i)] = static_cast<int32_t>(i * i % vocab);
  const std::vector<float> out = same_everywhere([&] {
    Guarded<float> buffer(at(tokens * dim));
    REQUIRE(graft_embedding_forward(ids.data(), tokens, values.data(), vocab, dim, buffer.data()) ==
            GRAFT_OK);
    REQUIRE(buffer.intact());
    return buffer.values();
  });
  int64_t wrong = 0;
  for (int64_t i = 0; i < tokens * dim; ++i) {
    wrong += out[at(i)] != values[at(ids[at(i / dim)] * dim + i % dim)];
  }
  CHECK(wrong == 0);
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> buffer(values);
    REQUIRE(graft_embedding_backward(out.data(), ids.data(), tokens, vocab, dim, buffer.data()) ==
            GRAFT_OK);
    REQUIRE(buffer.intact());
    return buffer.values();
  });
  std::vector<float> expected = values;  // float additions in the documented order
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < dim; ++i) expected[at(ids[at(t)] * dim + i)] += out[at(t * dim + i)];
  }
  CHECK(same_bits(got, expected));
}

TEST_CASE("embedding: an id out of range is named and nothing is written", "[kernels][embedding]") {
  const int32_t ids[2] = {0, GENERATE(-1, 4)};
  float values[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[4] = {};
  CHECK(graft_embedding_forward(ids, 2, values, 4, 2, out) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("ids[1] is ") != std::string::npos);
  CHECK(out[0] == 0.0f);
  CHECK(graft_embedding_backward(values, ids, 2, 4, 2, out) == GRAFT_BAD_ARGUMENT);
  CHECK(out[0] == 0.0f);
}
