// Mixtures of experts, biases and DoRA's gain against their oracles.
#include <functional>
#include <numeric>
#include <set>

#include "kernels/bias.h"
#include "kernels/dora.h"
#include "kernels/moe.h"
#include "kernels/oracle/moe.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;
using oracle::Array;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Routed {
  std::vector<float> probabilities, weight;
  std::vector<int32_t> expert;
};

Routed route(const graft_moe_shape& shape, const std::vector<float>& logits) {
  Guarded<float> p(logits.size()), weight(at(shape.tokens * shape.top));
  Guarded<int32_t> expert(at(shape.tokens * shape.top));
  REQUIRE(graft_moe_route(&shape, logits.data(), p.data(), expert.data(), weight.data()) ==
          GRAFT_OK);
  REQUIRE((p.intact() && weight.intact() && expert.intact()));
  return {p.values(), weight.values(), expert.values()};
}

struct Sorted {
  std::vector<int32_t> offsets, row_pair, pair_row;
};

Sorted sort(const graft_moe_shape& shape, const std::vector<int32_t>& expert) {
  Guarded<int32_t> offsets(at(shape.experts + 1)), row_pair(expert.size()), pair_row(expert.size());
  REQUIRE(graft_moe_sort(&shape, expert.data(), offsets.data(), row_pair.data(), pair_row.data()) ==
          GRAFT_OK);
  REQUIRE((offsets.intact() && row_pair.intact() && pair_row.intact()));
  return {offsets.values(), row_pair.values(), pair_row.values()};
}

}  // namespace

TEST_CASE("oracle: the router's gradient is its finite difference", "[kernels][oracle][moe]") {
  const bool renormalise = GENERATE(false, true);
  const oracle::Router router{3, 5, 2, renormalise};
  Array logits = widen(random_floats(3 * 5, 1));
  const Array dweight = widen(random_floats(3 * 2, 2));
  const auto loss = [&] {
    const Array weight = oracle::moe_route(router, logits).weight;
    return std::inner_product(weight.begin(), weight.end(), dweight.begin(), 0.0);
  };
  const Array gradient = oracle::moe_route_gradient(router, logits, dweight);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double kept = logits[i];
    logits[i] = kept + 1e-5;
    const double above = loss();
    logits[i] = kept - 1e-5;
    const double below = loss();
    logits[i] = kept;
    // Truncation near 1e-10, rounding near 1e-11.
    CHECK(std::fabs((above - below) / 2e-5 - gradient[i]) < 1e-7);
  }
}

TEST_CASE("moe: routing equals the oracle's choice, weights and gradient", "[kernels][moe]") {
  const int renormalise = GENERATE(0, 1);
  const graft_moe_shape shape = GENERATE(
      graft_moe_shape{1, 1, 1, 0}, graft_moe_shape{5, 4, 2, 0}, graft_moe_shape{130, 8, 3, 0},
      graft_moe_shape{33, 128, 8, 0}, graft_moe_shape{3, 17, 17, 0});
  graft_moe_shape s = shape;
  s.renormalise = renormalise;
  const std::vector<float> logits = random_floats(s.tokens * s.experts, 1, 2.0f);
  const std::vector<float> dweight = random_floats(s.tokens * s.top, 2);
  std::vector<float> dlogits;
  Routed got;
  same_everywhere([&] {
    got = route(s, logits);
    Guarded<float> d(logits.size());
    REQUIRE(graft_moe_route_backward(&s, got.probabilities.data(), got.expert.data(),
                                     got.weight.data(), dweight.data(), d.data()) == GRAFT_OK);
    REQUIRE(d.intact());
    dlogits = d.values();
    return joined({got.probabilities, got.weight, dlogits});
  });
  const oracle::Router router{s.tokens, s.experts, s.top, renormalise != 0};
  const oracle::Routing expected = oracle::moe_route(router, widen(logits));
  CHECK(got.expert == expected.expert);
  // The exponential is within 2 units, the sum has a rounding for each expert, then one division
  // (two where renormalised, after a sum over the choices).
  const double roundings = 2.0 * static_cast<double>(s.experts) + static_cast<double>(s.top) + 8.0;
  const auto bounds = [&](const Array& values, double size) {
    Array bound;
    for (const double value : values) bound.push_back(kUnit * size * std::fabs(value) + 1e-37);
    return bound;
  };
  CHECK(outside(got.probabilities, expected.probabilities,
                bounds(expected.probabilities, roundings)) == "");
  CHECK(outside(got.weight, expected.weight, bounds(expected.weight, 2.0 * roundings)) == "");
  // A gradient is p times a difference of slopes, each a sum over the choices divided by the chosen
  // probability (renormalised): the errors of those sums are relative to their largest terms.
  const Array gradient = oracle::moe_route_gradient(router, widen(logits), widen(dweight));
  Array bound;
  for (int64_t token = 0; token < s.tokens; ++token) {
    double chosen = 0.0, largest = 0.0;
    for (int64_t j = 0; j < s.top; ++j) {
      const size_t pair = at(token * s.top + j);
      chosen += expected.probabilities[at(token * s.experts + expected.expert[pair])];
      largest = std::max(largest, std::fabs(static_cast<double>(dweight[pair])));
    }
    const double slope = 4.0 * largest / (renormalise != 0 ? chosen : 1.0);
    for (int64_t e = 0; e < s.experts; ++e) {
      const double p = expected.probabilities[at(token * s.experts + e)];
      bound.push_back(kUnit * 4.0 * roundings * slope * p + 1e-37);
    }
  }
  CHECK(outside(dlogits, gradient, bound) == "");
}

TEST_CASE("moe: ties go to the lower expert, and NaN chooses valid experts", "[kernels][moe]") {
  const graft_moe_shape shape{2, 4, 2, 1};
  const std::vector<float> logits = {1, 3, 3, 3, NAN, NAN, NAN, NAN};
  const Routed got = route(shape, logits);
  CHECK(got.expert == (std::vector<int32_t>{1, 2, 0, 1}));
  CHECK(got.weight[0] == 0.5f);
  CHECK(std::isnan(got.weight[2]));
}

TEST_CASE("moe: rows are sorted by expert, stable, each pair exactly once", "[kernels][moe]") {
  const graft_moe_shape shape{200, 7, 3, 0};
  std::vector<int32_t> expert = route(shape, random_floats(200 * 7, 5)).expert;
  // Expert 4 gets nothing: its tokens go to an expert that they did not choose.
  for (size_t pair = 0; pair < expert.size(); ++pair) {
    if (expert[pair] != 4) continue;
    const auto first = expert.begin() + static_cast<int64_t>(pair / 3 * 3);
    const std::set<int32_t> taken(first, first + 3);
    for (int32_t e = 0; e < 7 && expert[pair] == 4; ++e) {
      if (taken.count(e) == 0) expert[pair] = e;
    }
  }
  const Sorted sorted = sort(shape, expert);
  CHECK(sorted.offsets.front() == 0);
  CHECK(sorted.offsets.back() == 600);
  CHECK(sorted.offsets[4] == sorted.offsets[5]);
  for (int32_t e = 0; e < 7; ++e) {
    for (int32_t row = sorted.offsets[at(e)]; row < sorted.offsets[at(e) + 1]; ++row) {
      const int32_t pair = sorted.row_pair[at(row)];
      REQUIRE(expert[at(pair)] == e);
      REQUIRE(sorted.pair_row[at(pair)] == row);
      if (row > sorted.offsets[at(e)]) REQUIRE(sorted.row_pair[at(row) - 1] < pair);
    }
  }
}

TEST_CASE("moe: gather, weigh and combine are their sums, and their gradients agree",
          "[kernels][moe]") {
  const int64_t dim = GENERATE(1, 7, 128, 131);
  const graft_moe_shape shape{37, 5, 2, 1};
  const Routed routed = route(shape, random_floats(37 * 5, 3));
  const Sorted sorted = sort(shape, routed.expert);
  const int64_t rows = 74;
  const std::vector<float> x = random_floats(37 * dim, 4), dout = random_floats(rows * dim, 5);
  std::vector<float> gathered, weighed, combined, drows, dweight;
  same_everywhere([&] {
    Guarded<float> g(at(rows * dim)), w(at(rows * dim)), c(at(37 * dim)), d(at(rows * dim)), dw(74);
    REQUIRE(graft_moe_gather(&shape, x.data(), sorted.row_pair.data(), dim, g.data()) == GRAFT_OK);
    REQUIRE(graft_moe_weigh(&shape, g.data(), sorted.row_pair.data(), routed.weight.data(), dim,
                            w.data()) == GRAFT_OK);
    REQUIRE(graft_moe_combine(&shape, w.data(), sorted.pair_row.data(), dim, c.data()) == GRAFT_OK);
    REQUIRE(graft_moe_weigh_backward(&shape, dout.data(), g.data(), sorted.row_pair.data(),
                                     routed.weight.data(), dim, d.data(), dw.data()) == GRAFT_OK);
    REQUIRE((g.intact() && w.intact() && c.intact() && d.intact() && dw.intact()));
    gathered = g.values();
    weighed = w.values();
    combined = c.values();
    drows = d.values();
    dweight = dw.values();
    return joined({gathered, weighed, combined, drows, dweight});
  });
  for (int64_t row = 0; row < rows; ++row) {
    const auto pair = at(sorted.row_pair[at(row)]);
    double dot = 0.0, size = 0.0;
    for (int64_t i = 0; i < dim; ++i) {
      const size_t place = at(row * dim + i);
      REQUIRE(gathered[place] == x[pair / 2 * at(dim) + at(i)]);
      REQUIRE(weighed[place] == gathered[place] * routed.weight[pair]);
      REQUIRE(drows[place] == dout[place] * routed.weight[pair]);
      const double product =
          static_cast<double>(dout[place]) * static_cast<double>(gathered[place]);
      dot += product;
      size += std::fabs(product);
    }
    // A product, a chain of dim / 128 in each lane, seven pairwise additions.
    const double roundings = static_cast<double>(dim) / 128.0 + 9.0;
    CHECK(std::fabs(static_cast<double>(dweight[pair]) - dot) <= kUnit * roundings * size);
  }
  for (int64_t token = 0; token < 37; ++token) {
    for (int64_t i = 0; i < dim; ++i) {
      const float first = weighed[at(sorted.pair_row[at(2 * token)] * dim + i)];
      const float second = weighed[at(sorted.pair_row[at(2 * token + 1)] * dim + i)];
      REQUIRE(combined[at(token * dim + i)] == first + second);
    }
  }
}

TEST_CASE("moe: bad shapes and experts are refused by name", "[kernels][moe]") {
  graft_moe_shape shape{4, 4, 2, 0};
  std::vector<float> values(16);
  std::vector<int32_t> ids = {0, 1, 2, 3, 0, 1, 4, 2}, out(8), offsets(5);
  CHECK(graft_moe_sort(&shape, ids.data(), offsets.data(), out.data(), out.data()) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("expert[6] is 4, expected 0..3") != std::string::npos);
  shape.top = 5;
  CHECK(graft_moe_route(&shape, values.data(), values.data(), ids.data(), values.data()) ==
        GRAFT_BAD_SHAPE);
  shape = {int64_t{1} << 30, 4, 2, 0};
  CHECK(graft_moe_gather(&shape, values.data(), ids.data(), 4, values.data()) == GRAFT_BAD_SHAPE);
  shape = {4, 4, 2, 2};
  CHECK(graft_moe_weigh(&shape, values.data(), ids.data(), values.data(), 4, values.data()) ==
        GRAFT_BAD_ARGUMENT);
}

TEST_CASE("bias: forward is a sum, backward within the bound of its sums", "[kernels][bias]") {
  struct Shape {
    int64_t rows, dim;
  };
  const Shape s = GENERATE(Shape{1, 1}, Shape{65, 63}, Shape{64, 64}, Shape{700, 131});
  const std::vector<float> y0 = random_floats(s.rows * s.dim, 1), bias = random_floats(s.dim, 2);
  const std::vector<float> dbias0 = random_floats(s.dim, 3);
  std::vector<float> y, dbias;
  same_everywhere([&] {
    Guarded<float> y_g(y0), d_g(dbias0);
    REQUIRE(graft_bias_add(y_g.data(), bias.data(), s.rows, s.dim) == GRAFT_OK);
    REQUIRE(graft_bias_backward(y0.data(), s.rows, s.dim, d_g.data()) == GRAFT_OK);
    REQUIRE((y_g.intact() && d_g.intact()));
    y = y_g.values();
    dbias = d_g.values();
    return joined({y, dbias});
  });
  Array expected = widen(dbias0), bound(at(s.dim));
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t i = 0; i < s.dim; ++i) {
      const size_t place = at(row * s.dim + i);
      REQUIRE(y[place] == y0[place] + bias[at(i)]);
      expected[at(i)] += static_cast<double>(y0[place]);
      bound[at(i)] += std::fabs(static_cast<double>(y0[place]));
    }
  }
  // 64 additions to a tile, then one a tile.
  const double additions = 64.0 + static_cast<double>(s.rows) / 64.0 + 1.0;
  for (int64_t i = 0; i < s.dim; ++i) {
    bound[at(i)] =
        kUnit * additions * (bound[at(i)] + std::fabs(static_cast<double>(dbias0[at(i)])));
  }
  CHECK(outside(dbias, expected, bound) == "");
}

TEST_CASE("gain: products rounded once, the magnitude's gradient within the bound of its sums",
          "[kernels][dora]") {
  struct Shape {
    int64_t rows, dim;
  };
  const Shape s = GENERATE(Shape{1, 1}, Shape{65, 63}, Shape{64, 64}, Shape{700, 131});
  const int64_t count = s.rows * s.dim;
  const std::vector<float> h = random_floats(count, 1), dy = random_floats(count, 2);
  const std::vector<float> gain = random_floats(s.dim, 3), inverse = random_floats(s.dim, 4);
  const std::vector<float> y0 = random_floats(count, 5), dm0 = random_floats(s.dim, 6);
  std::vector<float> y, sum, dh, dm;
  same_everywhere([&] {
    Guarded<float> y_g(y0), sum_g(y0), dh_g(y0), dm_g(dm0);
    REQUIRE(graft_gain_forward(h.data(), gain.data(), s.rows, s.dim, 0, y_g.data()) == GRAFT_OK);
    REQUIRE(graft_gain_forward(h.data(), gain.data(), s.rows, s.dim, 1, sum_g.data()) == GRAFT_OK);
    REQUIRE(graft_gain_backward(dy.data(), h.data(), gain.data(), inverse.data(), s.rows, s.dim,
                                dh_g.data(), dm_g.data()) == GRAFT_OK);
    REQUIRE((y_g.intact() && sum_g.intact() && dh_g.intact() && dm_g.intact()));
    y = y_g.values();
    sum = sum_g.values();
    dh = dh_g.values();
    dm = dm_g.values();
    return joined({y, sum, dh, dm});
  });
  Array expected = widen(dm0), bound(at(s.dim));
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t i = 0; i < s.dim; ++i) {
      const size_t place = at(row * s.dim + i), column = at(i);
      REQUIRE(y[place] == gain[column] * h[place]);
      REQUIRE(sum[place] == y0[place] + y[place]);
      REQUIRE(dh[place] == gain[column] * dy[place]);
      const double term = static_cast<double>(inverse[column]) * static_cast<double>(dy[place]) *
                          static_cast<double>(h[place]);
      expected[column] += term;
      bound[column] += std::fabs(term);
    }
  }
  // A product, 64 additions to a tile, one a tile, a product and the last addition.
  const double roundings = 64.0 + static_cast<double>(s.rows) / 64.0 + 4.0;
  for (int64_t i = 0; i < s.dim; ++i) {
    bound[at(i)] = kUnit * roundings * (bound[at(i)] + std::fabs(static_cast<double>(dm0[at(i)])));
  }
  CHECK(outside(dm, expected, bound) == "");
}
