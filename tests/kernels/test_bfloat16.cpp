// Operators on bfloat16 activations: what they define, from the float32 operators on the widened
// values, which have tests of their own, and one rounding of each result.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/json.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/float16.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

using Floats = std::vector<float>;
using Halves = std::vector<uint16_t>;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// The nearest bfloat16 by distance, in arithmetic that is exact in double; ties to the even one.
uint16_t nearest_bf16(float x) {
  if (std::isnan(x)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint16_t below = static_cast<uint16_t>(bits >> 16);
  if (std::isinf(x) || (bits & 0xffffu) == 0) return below;
  const uint16_t above = static_cast<uint16_t>(below + 1);
  // Past the largest finite one the next would be 2^128, which infinity stands for.
  const double up = (above & 0x7fff) == 0x7f80 ? std::copysign(0x1p128, static_cast<double>(x))
                                               : static_cast<double>(from_bf16(above));
  const double to_below = std::fabs(static_cast<double>(x) - static_cast<double>(from_bf16(below)));
  const double to_above = std::fabs(up - static_cast<double>(x));
  if (to_below == to_above) return below % 2 == 0 ? below : above;
  return to_below < to_above ? below : above;
}

Halves narrow(const Floats& x) {
  Halves out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), nearest_bf16);
  return out;
}
Floats widen16(const Halves& x) {
  Floats out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), [](uint16_t bits) { return from_bf16(bits); });
  return out;
}
// Random values that are bfloat16 already.
Floats random_bf16(int64_t count, uint32_t seed, float deviation = 1.0f) {
  return widen16(narrow(random_floats(count, seed, deviation)));
}

// compute(out) on bfloat16 outputs that start as `start`, the same in every environment.
template <class Compute>
Floats bf16_result(const Floats& start, const Compute& compute) {
  return same_everywhere([&] {
    Guarded<uint16_t> out(narrow(start));
    REQUIRE(compute(out.data()) == GRAFT_OK);
    REQUIRE(out.intact());
    return widen16(out.values());
  });
}

Floats rounded(const Floats& x) {
  return widen16(narrow(x));
}

}  // namespace

TEST_CASE("bfloat16: conversion rounds to nearest, ties to even, and NaN to one value",
          "[kernels][bf16]") {
  Floats values;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521 * 3) {
    values.push_back(float_of(static_cast<uint32_t>(bits)));
  }
  for (const uint32_t bits :
       {0x3f808000u, 0x3f818000u, 0x3f807fffu, 0x3f808001u, 0x7f7f8000u, 0x7f7f7fffu, 0xff7fffffu,
        0x00008000u, 0x00018000u, 0x7f800001u, 0xffffffffu, 0x7f800000u, 0x80000000u}) {
    values.push_back(float_of(bits));
  }
  const int64_t count = static_cast<int64_t>(values.size());
  const Halves expected = narrow(values);
  const Floats got = same_everywhere([&] {
    Guarded<uint16_t> out(values.size());
    REQUIRE(graft_convert(values.data(), GRAFT_F32, count, out.data(), GRAFT_BF16, count, 1, count,
                          1.0f) == GRAFT_OK);
    REQUIRE(out.intact());
    const Halves bits = out.values();
    return Floats(bits.begin(), bits.end());
  });
  CHECK(got == Floats(expected.begin(), expected.end()));
}

TEST_CASE("bfloat16: rows keep their gaps when they are converted and scaled", "[kernels][bf16]") {
  const Floats from = random_floats(5 * 23, 1);
  Floats expected(5 * 30, -7.0f);
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t i = 0; i < 19; ++i) expected[at(row * 30 + i)] = from[at(row * 23 + i)] * 0.3f;
  }
  const Floats got = bf16_result(Floats(5 * 30, -7.0f), [&](uint16_t* out) {
    return graft_convert(from.data(), GRAFT_F32, 23, out, GRAFT_BF16, 30, 5, 19, 0.3f);
  });
  CHECK(same_bits(got, rounded(expected)));
}

TEST_CASE("bfloat16: RMSNorm rounds where each family does", "[kernels][bf16]") {
  const int64_t dim = GENERATE(1, 16, 65, 300), rows = 7, stride = dim + 5;
  const Floats x = random_bf16(rows * dim, 1), weight = random_bf16(dim, 2);
  Floats inverse(at(rows)), plain(x.size());
  REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, rows, dim, plain.data(),
                                inverse.data()) == GRAFT_OK);
  const auto kind =
      GENERATE(GRAFT_RMSNORM_WEIGHT, GRAFT_RMSNORM_ONE_PLUS_WEIGHT, GRAFT_RMSNORM_WEIGHT_ONCE);
  Floats expected(at(rows * stride), 3.0f);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      const float normal = x[at(row * dim + i)] * inverse[at(row)], w = weight[at(i)];
      expected[at(row * stride + i)] = kind == GRAFT_RMSNORM_WEIGHT
                                           ? from_bf16(nearest_bf16(normal)) * w
                                       : kind == GRAFT_RMSNORM_ONE_PLUS_WEIGHT ? normal * (1.0f + w)
                                                                               : normal * w;
    }
  }
  const Halves x16 = narrow(x);
  Floats inverse16(inverse.size());
  const Floats got = bf16_result(Floats(expected.size(), 3.0f), [&](uint16_t* out) {
    return graft_rmsnorm_forward(x16.data(), weight.data(), 1e-6f, rows, dim, out, inverse16.data(),
                                 kind, GRAFT_BF16, stride);
  });
  CHECK(same_bits(got, rounded(expected)));
  CHECK(same_bits(inverse16, inverse));
}

TEST_CASE("bfloat16: RMSNorm of float32 is rounded once", "[kernels][bf16]") {
  const int64_t dim = GENERATE(1, 16, 65, 300), rows = 7, stride = dim + 5;
  const auto kind =
      GENERATE(GRAFT_RMSNORM_WEIGHT, GRAFT_RMSNORM_ONE_PLUS_WEIGHT, GRAFT_RMSNORM_WEIGHT_ONCE);
  const Floats x = random_floats(rows * dim, 1), weight = random_floats(dim, 2);
  Floats inverse(at(rows)), inverse16(at(rows)), expected(at(rows * stride), 3.0f);
  REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, rows, dim, expected.data(),
                                inverse.data(), kind, GRAFT_F32, stride) == GRAFT_OK);
  const Floats got = bf16_result(Floats(expected.size(), 3.0f), [&](uint16_t* out) {
    return graft_rmsnorm_forward_bf16(x.data(), weight.data(), 1e-6f, rows, dim, out,
                                      inverse16.data(), kind, stride);
  });
  CHECK(same_bits(got, rounded(expected)));
  CHECK(same_bits(inverse16, inverse));
}

TEST_CASE("bfloat16: RMSNorm of float32 does not fit in its own place", "[kernels][bf16]") {
  Floats x(16, 1.0f), weight(16, 1.0f), inverse(1);
  CHECK(graft_rmsnorm_forward_bf16(x.data(), weight.data(), 1e-6f, 1, 16,
                                   reinterpret_cast<uint16_t*>(x.data()),
                                   inverse.data()) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()) ==
        "graft_rmsnorm_forward_bf16: out and x are the same array");
}

TEST_CASE("bfloat16: a sum takes what is of the other type", "[kernels][bf16]") {
  const int64_t count = GENERATE(1, 31, 1025);
  const Floats x = random_floats(count, 1), y = random_floats(count, 2);
  const Halves x16 = narrow(x), y16 = narrow(y);
  // float32 += bfloat16: the float32 sum of the widened values.
  Floats expected = x;
  for (size_t i = 0; i < x.size(); ++i) expected[i] += from_bf16(y16[i]);
  CHECK(same_bits(same_everywhere([&] {
                    Guarded<float> out(x);
                    REQUIRE(graft_accumulate(out.data(), GRAFT_F32, y16.data(), GRAFT_BF16,
                                             count) == GRAFT_OK);
                    REQUIRE(out.intact());
                    return out.values();
                  }),
                  expected));
  // bfloat16 += float32: rounded once.
  for (size_t i = 0; i < x.size(); ++i) expected[i] = from_bf16(x16[i]) + y[i];
  const Floats got = bf16_result(widen16(x16), [&](uint16_t* out) {
    return graft_accumulate(out, GRAFT_BF16, y.data(), GRAFT_F32, count);
  });
  CHECK(same_bits(got, rounded(expected)));
  float sum = 0.0f;
  CHECK(graft_accumulate(&sum, GRAFT_F32, y.data(), GRAFT_F16, 1) == GRAFT_BAD_ARGUMENT);
}

TEST_CASE("bfloat16: the fused residual is the addition and the norm", "[kernels][bf16]") {
  const int64_t rows = 6, dim = 100;
  const Halves y = narrow(random_floats(rows * dim, 2));
  const Floats start = random_bf16(rows * dim, 1), weight = random_floats(dim, 3);
  Floats inverse(at(rows));
  const Floats sum = bf16_result(
      start, [&](uint16_t* x) { return graft_add(x, y.data(), rows * dim, GRAFT_BF16); });
  Floats expected_sum(start.size());
  for (size_t i = 0; i < start.size(); ++i) expected_sum[i] = start[i] + from_bf16(y[i]);
  CHECK(same_bits(sum, rounded(expected_sum)));
  const Halves sum16 = narrow(sum);
  Halves norm(sum16.size());
  REQUIRE(graft_rmsnorm_forward(sum16.data(), weight.data(), 1e-5f, rows, dim, norm.data(),
                                inverse.data(), GRAFT_RMSNORM_WEIGHT, GRAFT_BF16) == GRAFT_OK);
  Halves fused_sum = narrow(start), fused_norm(sum16.size());
  REQUIRE(graft_add_rmsnorm_forward(fused_sum.data(), y.data(), weight.data(), 1e-5f, rows, dim,
                                    fused_norm.data(), inverse.data(), GRAFT_RMSNORM_WEIGHT,
                                    GRAFT_BF16) == GRAFT_OK);
  CHECK(fused_sum == sum16);
  CHECK(fused_norm == norm);
}

TEST_CASE("bfloat16: gradients of RMSNorm are float32's on the widened values", "[kernels][bf16]") {
  const int64_t rows = 70, dim = 45, stride = 50;
  const Floats x = random_bf16(rows * dim, 1), dout = random_bf16(rows * stride, 2);
  const Floats weight = random_floats(dim, 3), start = random_bf16(rows * dim, 5);
  Floats inverse = random_floats(rows, 4), dweight(at(dim), 0.5f), dx = start;
  for (float& root : inverse) root = std::fabs(root) + 0.5f;
  REQUIRE(graft_rmsnorm_backward(dout.data(), x.data(), weight.data(), inverse.data(), rows, dim,
                                 dx.data(), dweight.data(), GRAFT_RMSNORM_ONE_PLUS_WEIGHT,
                                 GRAFT_F32, stride) == GRAFT_OK);
  const Halves x16 = narrow(x), dout16 = narrow(dout);
  Floats dweight16;
  const Floats got = bf16_result(start, [&](uint16_t* out) {
    dweight16.assign(at(dim), 0.5f);
    return graft_rmsnorm_backward(dout16.data(), x16.data(), weight.data(), inverse.data(), rows,
                                  dim, out, dweight16.data(), GRAFT_RMSNORM_ONE_PLUS_WEIGHT,
                                  GRAFT_BF16, stride);
  });
  CHECK(same_bits(got, rounded(dx)));
  CHECK(same_bits(dweight16, dweight));
}

TEST_CASE("bfloat16: RoPE, gates, soft caps and dropout round float32's results once",
          "[kernels][bf16]") {
  const int64_t count = 10 * 48;
  const Floats x = random_bf16(count, 1), y = random_bf16(count, 2), dout = random_bf16(count, 3);
  const Halves x16 = narrow(x), y16 = narrow(y), dout16 = narrow(dout);
  SECTION("rope") {
    Floats cos = random_floats(10 * 8, 4), sin = random_floats(10 * 8, 5), expected = x;
    REQUIRE(graft_rope_apply(expected.data(), 10, 2, 24, 48, cos.data(), sin.data(),
                             GRAFT_ROPE_INVERSE, 16) == GRAFT_OK);
    const Floats got = bf16_result(x, [&](uint16_t* out) {
      return graft_rope_apply(out, 10, 2, 24, 48, cos.data(), sin.data(), GRAFT_ROPE_INVERSE, 16,
                              GRAFT_BF16);
    });
    CHECK(same_bits(got, rounded(expected)));
  }
  SECTION("gates, as halves of one array") {
    const auto kind = GENERATE(GRAFT_SILU, GRAFT_GELU_TANH);
    Floats out(at(count)), dgate(at(count)), dup(at(count));
    REQUIRE(graft_gate_forward(kind, 10, 24, x.data(), x.data() + 24, 48, out.data(), 48, GRAFT_F32,
                               GRAFT_CPU, nullptr) == GRAFT_OK);
    REQUIRE(graft_gate_backward(kind, 10, 24, dout.data(), 48, x.data(), x.data() + 24, 48,
                                dgate.data(), dgate.data() + 24, GRAFT_F32, GRAFT_CPU,
                                nullptr) == GRAFT_OK);
    const Floats got = bf16_result(Floats(at(count)), [&](uint16_t* to) {
      return graft_gate_forward(kind, 10, 24, x16.data(), x16.data() + 24, 48, to, 48, GRAFT_BF16,
                                GRAFT_CPU, nullptr);
    });
    CHECK(same_bits(got, rounded(out)));
    // In place: the gradients take the place of gate and up.
    const Floats gradients = bf16_result(x, [&](uint16_t* both) {
      return graft_gate_backward(kind, 10, 24, dout16.data(), 48, both, both + 24, 48, both,
                                 both + 24, GRAFT_BF16, GRAFT_CPU, nullptr);
    });
    CHECK(same_bits(gradients, rounded(dgate)));
  }
  SECTION("soft cap") {
    Floats capped = x, gradient = dout;
    REQUIRE(graft_softcap_forward(capped.data(), 2.0f, count) == GRAFT_OK);
    CHECK(same_bits(
        bf16_result(
            x, [&](uint16_t* out) { return graft_softcap_forward(out, 2.0f, count, GRAFT_BF16); }),
        rounded(capped)));
    REQUIRE(graft_softcap_backward(y.data(), 5.0f, count, gradient.data()) == GRAFT_OK);
    CHECK(same_bits(bf16_result(dout,
                                [&](uint16_t* out) {
                                  return graft_softcap_backward(y16.data(), 5.0f, count, out,
                                                                GRAFT_BF16);
                                }),
                    rounded(gradient)));
  }
  SECTION("dropout") {
    const std::vector<int64_t> index = {5, 6, 7, 8, 9, 1, 2, 3, 4, 0};
    Floats expected = x;
    REQUIRE(graft_dropout_mask_apply(expected.data(), 10, 48, index.data(), 1, 2, 0.3f) ==
            GRAFT_OK);
    CHECK(same_bits(bf16_result(x,
                                [&](uint16_t* out) {
                                  return graft_dropout_mask_apply(out, 10, 48, index.data(), 1, 2,
                                                                  0.3f, GRAFT_BF16);
                                }),
                    rounded(expected)));
  }
  SECTION("scale") {
    Floats expected = x;
    for (float& value : expected) value *= 0.7f;
    CHECK(same_bits(
        bf16_result(x, [&](uint16_t* out) { return graft_scale(out, 0.7f, count, GRAFT_BF16); }),
        rounded(expected)));
  }
}

TEST_CASE("bfloat16: embedding rows are copied, their gradients added in float32",
          "[kernels][bf16]") {
  const std::vector<int32_t> ids = {2, 0, 2, 2, 1};
  const Floats table = random_bf16(3 * 33, 1), dout = random_bf16(5 * 33, 2);
  const Halves table16 = narrow(table), dout16 = narrow(dout);
  Floats out(5 * 33), dtable = random_floats(3 * 33, 3), dtable16 = dtable;
  REQUIRE(graft_embedding_forward(ids.data(), 5, table.data(), 3, 33, out.data()) == GRAFT_OK);
  CHECK(same_bits(bf16_result(Floats(5 * 33),
                              [&](uint16_t* to) {
                                return graft_embedding_forward(ids.data(), 5, table16.data(), 3, 33,
                                                               to, GRAFT_BF16);
                              }),
                  out));
  REQUIRE(graft_embedding_backward(dout.data(), ids.data(), 5, 3, 33, dtable.data()) == GRAFT_OK);
  REQUIRE(graft_embedding_backward(dout16.data(), ids.data(), 5, 3, 33, dtable16.data(),
                                   GRAFT_BF16) == GRAFT_OK);
  CHECK(same_bits(dtable16, dtable));
}

TEST_CASE("bfloat16: cross entropy has float32's loss and its gradient rounded once",
          "[kernels][bf16]") {
  const int64_t rows = 3, vocab = GENERATE(5, 512, 1300);
  const float cap = GENERATE(0.0f, 20.0f);
  const Floats logits = random_bf16(rows * vocab, 1, 6.0f), weight = {0.5f, 1.0f, 0.0f};
  const std::vector<int32_t> labels = {0, static_cast<int32_t>(vocab - 1), 3};
  Floats gradient = logits, loss(3), loss16(3);
  std::vector<uint8_t> correct(3), correct16(3);
  REQUIRE(graft_cross_entropy(gradient.data(), labels.data(), weight.data(), rows, vocab, 0.1f,
                              loss.data(), correct.data(), GRAFT_CE_WITH_GRADIENT, GRAFT_F32,
                              cap) == GRAFT_OK);
  const Floats got = bf16_result(logits, [&](uint16_t* out) {
    return graft_cross_entropy(out, labels.data(), weight.data(), rows, vocab, 0.1f, loss16.data(),
                               correct16.data(), GRAFT_CE_WITH_GRADIENT, GRAFT_BF16, cap);
  });
  CHECK(same_bits(got, rounded(gradient)));
  CHECK(same_bits(loss16, loss));
  CHECK(correct16 == correct);
}

TEST_CASE("cross entropy: a capped row is the soft cap, the loss and the cap's gradient",
          "[kernels][cross_entropy]") {
  const int64_t rows = 4, vocab = 700;
  const Floats logits = random_floats(rows * vocab, 1, 30.0f);
  const std::vector<int32_t> labels = {1, 699, 30, 5};
  Floats capped = logits, loss(4), expected_loss(4), got = logits;
  REQUIRE(graft_softcap_forward(capped.data(), 30.0f, rows * vocab) == GRAFT_OK);
  Floats expected = capped;
  REQUIRE(graft_cross_entropy(expected.data(), labels.data(), nullptr, rows, vocab, 0.3f,
                              expected_loss.data(), nullptr, GRAFT_CE_WITH_GRADIENT) == GRAFT_OK);
  REQUIRE(graft_softcap_backward(capped.data(), 30.0f, rows * vocab, expected.data()) == GRAFT_OK);
  REQUIRE(graft_cross_entropy(got.data(), labels.data(), nullptr, rows, vocab, 0.3f, loss.data(),
                              nullptr, GRAFT_CE_WITH_GRADIENT, GRAFT_F32, 30.0f) == GRAFT_OK);
  CHECK(same_bits(loss, expected_loss));
  CHECK(same_bits(got, expected));
}

TEST_CASE("bfloat16: attention is float32's on the widened values, rounded once",
          "[kernels][bf16][attention]") {
  struct Case {
    std::vector<int32_t> lengths;
    int64_t heads, kv_heads, head_dim, window;
    float softcap;
  };
  const Case c = GENERATE(Case{{1, 7}, 1, 1, 8, 0, 0.0f}, Case{{70, 300}, 4, 2, 24, 0, 10.0f},
                          Case{{600}, 2, 2, 16, 530, 0.0f}, Case{{40}, 3, 1, 13, 5, 0.0f});
  std::vector<int32_t> ends = {0};
  for (const int32_t length : c.lengths) ends.push_back(ends.back() + length);
  const int64_t tokens = ends.back(), width = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  graft_attention_shape shape{};
  shape.documents = static_cast<int64_t>(c.lengths.size());
  shape.cu_seqlens = ends.data();
  shape.heads = c.heads;
  shape.kv_heads = c.kv_heads;
  shape.head_dim = c.head_dim;
  shape.q_stride = width + 3;
  shape.k_stride = shape.v_stride = kv;
  shape.out_stride = width + 1;
  shape.scale = 0.3f;
  shape.window = c.window;
  shape.softcap = c.softcap;
  const Floats q = random_bf16(tokens * shape.q_stride, 1), k = random_bf16(tokens * kv, 2);
  const Floats v = random_bf16(tokens * kv, 3), dout = random_bf16(tokens * shape.out_stride, 4);
  const Halves q16 = narrow(q), k16 = narrow(k), v16 = narrow(v), dout16 = narrow(dout);
  Floats out(at(tokens * shape.out_stride), 2.0f), lse(at(tokens * c.heads)), lse16(lse.size());
  REQUIRE(graft_attention_forward(&shape, q.data(), k.data(), v.data(), out.data(), lse.data()) ==
          GRAFT_OK);
  graft_attention_shape half = shape;
  half.type = GRAFT_BF16;
  const Floats got = bf16_result(Floats(out.size(), 2.0f), [&](uint16_t* to) {
    return graft_attention_forward(&half, q16.data(), k16.data(), v16.data(), to, lse16.data());
  });
  CHECK(same_bits(got, rounded(out)));
  CHECK(same_bits(lse16, lse));
  // The backward pass starts from the rounded result.
  const Halves out16 = narrow(got);
  Floats dq(q.size(), 5.0f), dk(k.size()), dv(v.size());
  std::vector<float> room(graft_attention_workspace_bytes(&shape) / sizeof(float));
  std::vector<float> room16(graft_attention_workspace_bytes(&half) / sizeof(float));
  CHECK(room16.size() == at(3 * tokens * width));
  REQUIRE(graft_attention_backward(&shape, q.data(), k.data(), v.data(), got.data(), lse.data(),
                                   dout.data(), dq.data(), dk.data(), dv.data(), room.data(),
                                   room.size() * sizeof(float)) == GRAFT_OK);
  Halves dk16(k.size()), dv16(v.size());
  const Floats dq16 = bf16_result(Floats(q.size(), 5.0f), [&](uint16_t* to) {
    return graft_attention_backward(&half, q16.data(), k16.data(), v16.data(), out16.data(),
                                    lse.data(), dout16.data(), to, dk16.data(), dv16.data(),
                                    room16.data(), room16.size() * sizeof(float));
  });
  CHECK(same_bits(dq16, rounded(dq)));
  CHECK(same_bits(widen16(dk16), rounded(dk)));
  CHECK(same_bits(widen16(dv16), rounded(dv)));
}

TEST_CASE("bfloat16: a decode step rounds float32's once", "[kernels][bf16][attention]") {
  const int64_t positions = GENERATE(1, 513, 1100), d = GENERATE(8, 20);
  const Floats q = random_bf16(4 * d, 1), k = random_bf16(positions * 2 * d, 2);
  const Floats v = random_bf16(positions * 2 * d, 3);
  const Halves q16 = narrow(q), k16 = narrow(k), v16 = narrow(v);
  Floats out(at(4 * d));
  REQUIRE(graft_attention_decode(q.data(), k.data(), v.data(), positions, 4, 2, d, 0.2f, out.data(),
                                 600, 15.0f) == GRAFT_OK);
  CHECK(same_bits(bf16_result(Floats(out.size()),
                              [&](uint16_t* to) {
                                return graft_attention_decode(q16.data(), k16.data(), v16.data(),
                                                              positions, 4, 2, d, 0.2f, to, 600,
                                                              15.0f, GRAFT_BF16);
                              }),
                  rounded(out)));
}

TEST_CASE("bfloat16: float16 activations and short strides are refused by name",
          "[kernels][bf16]") {
  Floats x(64), weight(16), inverse(4);
  CHECK(graft_add(x.data(), x.data(), 4, GRAFT_F16) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("type is 2") != std::string::npos);
  CHECK(graft_rmsnorm_forward(x.data(), weight.data(), 1e-5f, 2, 16, x.data(), inverse.data(),
                              GRAFT_RMSNORM_WEIGHT, GRAFT_BF16, 15) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("stride is 15") != std::string::npos);
  CHECK(graft_rmsnorm_forward(x.data(), weight.data(), 1e-5f, 2, 16, x.data(), inverse.data(),
                              static_cast<graft_rmsnorm_kind>(3)) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_gate_forward(GRAFT_SILU, 2, 8, x.data(), x.data() + 8, 7, x.data(), 8, GRAFT_F32,
                           GRAFT_CPU, nullptr) == GRAFT_BAD_SHAPE);
  CHECK(graft_convert(x.data(), GRAFT_F32, 8, x.data() + 32, GRAFT_BF16, 7, 2, 8, 1.0f) ==
        GRAFT_BAD_SHAPE);
}

// tests/golden/rmsnorm_bf16.json: what transformers' own modules give in bfloat16
// (make_rmsnorm_bf16.py).
TEST_CASE("bfloat16: RMSNorm equals transformers' Llama, Gemma 2 and OLMo 2", "[kernels][bf16]") {
  const graft::Json golden =
      graft::read_json_file(graft::test::source_path("tests/golden/rmsnorm_bf16.json"));
  int compared = 0;
  for (const graft::Json& one : golden.at("cases").as_array()) {
    const auto numbers = [&](const char* key) {
      Halves bits;
      for (const graft::Json& value : one.at(key).as_array()) {
        bits.push_back(static_cast<uint16_t>(value.as_int()));
      }
      return bits;
    };
    const Halves x = numbers("x"), weight16 = numbers("weight"), expected = numbers("out");
    const Floats weight = widen16(weight16);
    const int64_t dim = static_cast<int64_t>(weight.size());
    const int64_t rows = static_cast<int64_t>(x.size()) / dim;
    const std::string family = one.at("family").as_string();
    const auto kind = family == "llama"    ? GRAFT_RMSNORM_WEIGHT
                      : family == "gemma2" ? GRAFT_RMSNORM_ONE_PLUS_WEIGHT
                                           : GRAFT_RMSNORM_WEIGHT_ONCE;
    Halves out(x.size());
    Floats inverse(at(rows));
    REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, rows, dim, out.data(),
                                  inverse.data(), kind, GRAFT_BF16) == GRAFT_OK);
    INFO(family << ", dim " << dim);
    CHECK(out == expected);
    // The rounding matters for these values: another family's differ.
    REQUIRE(graft_rmsnorm_forward(x.data(), weight.data(), 1e-6f, rows, dim, out.data(),
                                  inverse.data(),
                                  kind == GRAFT_RMSNORM_WEIGHT_ONCE ? GRAFT_RMSNORM_WEIGHT
                                                                    : GRAFT_RMSNORM_WEIGHT_ONCE,
                                  GRAFT_BF16) == GRAFT_OK);
    CHECK(out != expected);
    ++compared;
  }
  CHECK(compared == 12);
}
