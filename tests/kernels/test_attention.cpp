#include <algorithm>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Problem {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, head_dim;
  float scale;
  float deviation = 1.0f;
  int64_t window = 0;
  float softcap = 0.0f;
};

struct Inputs {
  std::vector<int32_t> cu_seqlens;
  graft_attention_shape shape;
  std::vector<float> q, k, v, dout;
};

Inputs make_inputs(const Problem& p, uint32_t seed) {
  Inputs in;
  in.cu_seqlens.push_back(0);
  for (const int32_t length : p.lengths) in.cu_seqlens.push_back(in.cu_seqlens.back() + length);
  const int64_t tokens = in.cu_seqlens.back();
  in.q = random_floats(tokens * p.heads * p.head_dim, seed, p.deviation);
  in.k = random_floats(tokens * p.kv_heads * p.head_dim, seed + 1, p.deviation);
  in.v = random_floats(tokens * p.kv_heads * p.head_dim, seed + 2);
  in.dout = random_floats(tokens * p.heads * p.head_dim, seed + 3);
  in.shape = {static_cast<int64_t>(p.lengths.size()),
              in.cu_seqlens.data(),
              p.heads,
              p.kv_heads,
              p.head_dim,
              p.heads * p.head_dim,
              p.kv_heads * p.head_dim,
              p.kv_heads * p.head_dim,
              p.heads * p.head_dim,
              p.scale,
              p.window,
              p.softcap,
              tokens};
  return in;
}

struct Results {
  std::vector<float> out, lse, dq, dk, dv;
};

Results run(const Inputs& in) {
  const graft_attention_shape* shape = &in.shape;
  Guarded<float> out(in.q.size()), dq(in.q.size()), dk(in.k.size()), dv(in.v.size());
  Guarded<float> lse(at(in.cu_seqlens.back() * shape->heads));
  Guarded<float> workspace(graft_attention_workspace_bytes(shape) / sizeof(float), 0);
  REQUIRE(graft_attention_forward(shape, in.q.data(), in.k.data(), in.v.data(), out.data(),
                                  lse.data()) == GRAFT_OK);
  REQUIRE(graft_attention_backward(shape, in.q.data(), in.k.data(), in.v.data(), out.data(),
                                   lse.data(), in.dout.data(), dq.data(), dk.data(), dv.data(),
                                   workspace.data(), workspace.size() * sizeof(float)) == GRAFT_OK);
  REQUIRE((out.intact() && lse.intact() && dq.intact() && dk.intact() && dv.intact() &&
           workspace.intact()));
  return {out.values(), lse.values(), dq.values(), dk.values(), dv.values()};
}

std::vector<double> rows(const std::vector<float>& x, int64_t begin, int64_t end, int64_t width) {
  return std::vector<double>(x.begin() + begin * width, x.begin() + end * width);
}

double largest(const std::vector<double>& x) {
  double best = 0.0;
  for (const double value : x) best = std::max(best, std::fabs(value));
  return best;
}

// Root mean square error over that of the expected values; `floor` is the size of the terms whose
// sum it is, for gradients that cancel (to 0 in a document of one token).
double relative_rms(const std::vector<float>& got,
                    const std::vector<double>& expected,
                    int64_t begin,
                    double floor = 0.0) {
  double error = 0.0, size = floor * floor * static_cast<double>(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = static_cast<double>(got[at(begin) + i]) - expected[i];
    error += difference * difference;
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("attention: forward and backward are within rounding of the oracle",
          "[kernels][attention]") {
  const Problem p = GENERATE(Problem{{1}, 1, 1, 8, 0.3f}, Problem{{13, 1, 12}, 2, 1, 16, 0.25f},
                             Problem{{47, 0, 48, 49}, 4, 2, 32, 0.18f},
                             Problem{{97, 130}, 6, 2, 24, 0.2f}, Problem{{250}, 2, 2, 64, 0.125f},
                             Problem{{257}, 1, 1, 80, 0.11f}, Problem{{31}, 3, 3, 256, 0.0625f},
                             Problem{{511, 520}, 1, 1, 40, 0.15f}, Problem{{1030}, 2, 1, 8, 0.35f});
  const Inputs in = make_inputs(p, 11);
  Results got;
  same_everywhere([&] {
    got = run(in);
    return joined({got.out, got.lse, got.dq, got.dk, got.dv});
  });
  for (size_t document = 0; document < p.lengths.size(); ++document) {
    const int64_t begin = in.cu_seqlens[document], end = in.cu_seqlens[document + 1];
    if (begin == end) continue;
    const int64_t q_width = p.heads * p.head_dim, kv_width = p.kv_heads * p.head_dim;
    const oracle::AttentionShape shape{end - begin, p.heads, p.kv_heads, p.head_dim,
                                       static_cast<double>(p.scale)};
    const auto q = rows(in.q, begin, end, q_width), k = rows(in.k, begin, end, kv_width);
    const auto v = rows(in.v, begin, end, kv_width), dout = rows(in.dout, begin, end, q_width);
    const auto forward = oracle::attention(shape, q, k, v);
    const auto gradient = oracle::attention_gradient(shape, q, k, v, dout);
    // A score errs by head_dim roundings of its terms, at most largest^2 each; a probability by
    // that relatively, and the sums by one rounding a term. A random walk of the roundings gives
    // the mean square: the square root of their number.
    const double score_error = static_cast<double>(p.scale) * largest(q) * largest(k) *
                               std::sqrt(static_cast<double>(p.head_dim));
    const double terms = std::sqrt(static_cast<double>(end - begin + p.head_dim));
    const double bound = kUnit * (8.0 + 4.0 * score_error + 4.0 * terms);
    // dq and dk are sums of p * (dp - mean) * scale, dp a sum of head_dim products of unit
    // variance.
    const double floor =
        static_cast<double>(p.scale) * std::sqrt(static_cast<double>(p.head_dim)) / terms;
    INFO("document " << document << ", bound " << bound);
    CHECK(relative_rms(got.out, forward.out, begin * q_width) <= bound);
    CHECK(relative_rms(got.lse, forward.lse, begin * p.heads) <= bound);
    CHECK(relative_rms(got.dq, gradient.dq, begin * q_width, floor) <= 4.0 * bound);
    CHECK(relative_rms(got.dk, gradient.dk, begin * kv_width, floor) <= 4.0 * bound);
    CHECK(relative_rms(got.dv, gradient.dv, begin * kv_width) <= 4.0 * bound);
  }
}

TEST_CASE("attention: a packed document equals the document alone to the bit",
          "[kernels][attention]") {
  const Problem packed{{100, 1, 300, 57}, 4, 2, 32, 0.2f};
  const Inputs in = make_inputs(packed, 21);
  const Results together = run(in);
  const size_t document = GENERATE(size_t{0}, size_t{1}, size_t{2}, size_t{3});
  const int64_t begin = in.cu_seqlens[document], end = in.cu_seqlens[document + 1];
  const Problem single{{packed.lengths[document]}, 4, 2, 32, 0.2f};
  Inputs alone = make_inputs(single, 0);
  const auto cut = [&](const std::vector<float>& x, int64_t width) {
    return std::vector<float>(x.begin() + begin * width, x.begin() + end * width);
  };
  alone.q = cut(in.q, 128);
  alone.k = cut(in.k, 64);
  alone.v = cut(in.v, 64);
  alone.dout = cut(in.dout, 128);
  const Results got = run(alone);
  CHECK(same_bits(got.out, cut(together.out, 128)));
  CHECK(same_bits(got.lse, cut(together.lse, 4)));
  CHECK(same_bits(got.dq, cut(together.dq, 128)));
  CHECK(same_bits(got.dk, cut(together.dk, 64)));
  CHECK(same_bits(got.dv, cut(together.dv, 64)));
}

TEST_CASE("attention: q, k and v inside one buffer give the same bits and leave gaps alone",
          "[kernels][attention]") {
  const int64_t heads = 3, kv_heads = 1, d = 16, tokens = 70;
  const Problem p{{40, 30}, heads, kv_heads, d, 0.25f};
  const Inputs apart = make_inputs(p, 31);
  const Results expected = run(apart);
  const int64_t stride = (heads + 2 * kv_heads) * d + 5;
  Guarded<float> fused(random_floats(tokens * stride, 1)), gradient(at(tokens * stride));
  for (int64_t t = 0; t < tokens; ++t) {
    float* row = fused.data() + t * stride;
    std::copy_n(apart.q.begin() + t * heads * d, heads * d, row);
    std::copy_n(apart.k.begin() + t * d, d, row + heads * d);
    std::copy_n(apart.v.begin() + t * d, d, row + (heads + 1) * d);
  }
  std::fill_n(gradient.data(), tokens * stride, -7.0f);
  graft_attention_shape shape = apart.shape;
  shape.q_stride = shape.k_stride = shape.v_stride = stride;
  Guarded<float> out(expected.out.size()), lse(expected.lse.size());
  std::vector<float> workspace(graft_attention_workspace_bytes(&shape) / sizeof(float));
  const float *q = fused.data(), *k = q + heads * d, *v = k + d;
  REQUIRE(graft_attention_forward(&shape, q, k, v, out.data(), lse.data()) == GRAFT_OK);
  REQUIRE(graft_attention_backward(&shape, q, k, v, out.data(), lse.data(), apart.dout.data(),
                                   gradient.data(), gradient.data() + heads * d,
                                   gradient.data() + (heads + 1) * d, workspace.data(),
                                   workspace.size() * sizeof(float)) == GRAFT_OK);
  CHECK(same_bits(out.values(), expected.out));
  CHECK(gradient.intact());
  std::vector<float> dq, dk, dv, gaps;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = gradient.data() + t * stride;
    dq.insert(dq.end(), row, row + heads * d);
    dk.insert(dk.end(), row + heads * d, row + (heads + 1) * d);
    dv.insert(dv.end(), row + (heads + 1) * d, row + (heads + 2) * d);
    gaps.insert(gaps.end(), row + (heads + 2) * d, row + stride);
  }
  CHECK(same_bits(dq, expected.dq));
  CHECK(same_bits(dk, expected.dk));
  CHECK(same_bits(dv, expected.dv));
  CHECK(std::all_of(gaps.begin(), gaps.end(), [](float x) { return x == -7.0f; }));
}

TEST_CASE("attention: scores of ten thousand stay finite", "[kernels][attention]") {
  Problem p{{70, 600}, 2, 1, 16, 1.0f};
  p.deviation = 50.0f;
  p.scale = GENERATE(1.0f, -1.0f);
  const Results got = run(make_inputs(p, 41));
  for (const auto* array : {&got.out, &got.lse, &got.dq, &got.dk, &got.dv}) {
    CHECK(std::all_of(array->begin(), array->end(), [](float x) { return std::isfinite(x); }));
  }
}

TEST_CASE("attention: the first token of a document copies its value", "[kernels][attention]") {
  const Inputs in = make_inputs(Problem{{5, 3}, 2, 2, 8, 0.5f}, 51);
  const Results got = run(in);
  for (const int64_t token : {0, 5}) {
    const std::vector<float> out(got.out.begin() + token * 16, got.out.begin() + token * 16 + 16);
    const std::vector<float> v(in.v.begin() + token * 16, in.v.begin() + token * 16 + 16);
    CHECK(same_bits(out, v));
  }
}

TEST_CASE("attention: a decode step equals the last row of the forward pass",
          "[kernels][attention]") {
  const int64_t positions = GENERATE(1, 2, 17, 300, 700);
  const int64_t head_dim = GENERATE(8, 64, 72);
  const Problem p{{static_cast<int32_t>(positions)}, 4, 2, head_dim, 0.2f};
  const Inputs in = make_inputs(p, 61);
  const Results all_rows = run(in);
  const int64_t width = 4 * head_dim;
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> out(at(width));
    REQUIRE(graft_attention_decode(in.q.data() + (positions - 1) * width, in.k.data(), in.v.data(),
                                   positions, 4, 2, head_dim, p.scale, out.data()) == GRAFT_OK);
    REQUIRE(out.intact());
    return out.values();
  });
  const std::vector<double> last(all_rows.out.end() - width, all_rows.out.end());
  // Both are within the bound of the first test of the same numbers.
  const double bound = kUnit * 64.0 * std::sqrt(static_cast<double>(positions + head_dim));
  CHECK(relative_rms(got, last, 0) <= bound);
}

TEST_CASE("attention: wrong shapes are named", "[kernels][attention]") {
  Inputs in = make_inputs(Problem{{4}, 2, 1, 8, 1.0f}, 71);
  std::vector<float> out(in.q.size()), lse(8);
  const auto forward = [&] {
    return graft_attention_forward(&in.shape, in.q.data(), in.k.data(), in.v.data(), out.data(),
                                   lse.data());
  };
  REQUIRE(forward() == GRAFT_OK);
  SECTION("head_dim") {
    in.shape.head_dim = GENERATE(7, 257);
    in.shape.q_stride = in.shape.k_stride = in.shape.v_stride = in.shape.out_stride = 9999;
    CHECK(forward() == GRAFT_BAD_SHAPE);
    CHECK(graft_attention_workspace_bytes(&in.shape) == 0);
  }
  SECTION("heads that are no multiple") {
    in.shape.heads = 3;
    in.shape.kv_heads = 2;
    CHECK(forward() == GRAFT_BAD_SHAPE);
  }
  SECTION("cu_seqlens that fall") {
    const int32_t falling[] = {0, 4, 3};
    in.shape.cu_seqlens = falling;
    in.shape.documents = 2;
    CHECK(forward() == GRAFT_BAD_SHAPE);
    CHECK(std::string(graft_last_error()).find("cu_seqlens[2] is 3") != std::string::npos);
  }
  SECTION("a stride below the row") {
    in.shape.q_stride = 15;
    CHECK(forward() == GRAFT_BAD_SHAPE);
  }
  SECTION("a short workspace") {
    CHECK(graft_attention_backward(&in.shape, in.q.data(), in.k.data(), in.v.data(), out.data(),
                                   lse.data(), in.dout.data(), out.data(), out.data(), out.data(),
                                   nullptr, 0) == GRAFT_BAD_SHAPE);
    CHECK(std::string(graft_last_error()).find("workspace has 0 bytes") != std::string::npos);
  }
}
