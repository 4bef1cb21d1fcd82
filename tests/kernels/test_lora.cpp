// LoRA layers in both layouts against float64, and what must not depend on the layout.
#include <algorithm>

#include "kernels/float16.h"
#include "kernels/lora.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

using Floats = std::vector<float>;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Layer {
  int64_t tokens, in, out, rank;
  float scale;
  Floats w, a, b, x, dy;
  Layer(int64_t tokens_, int64_t in_, int64_t out_, int64_t rank_, float scale_)
      : tokens(tokens_),
        in(in_),
        out(out_),
        rank(rank_),
        scale(scale_),
        w(random_floats(out * in, 1, 0.2f)),
        a(random_floats(rank * in, 2, 0.2f)),
        b(random_floats(out * rank, 3, 0.2f)),
        x(random_floats(tokens * in, 4)),
        dy(random_floats(tokens * out, 5)) {}
};

struct Outcome {
  Floats y, dx, da, db;
};

// [rows, columns] with `behind` of [rows, more] after each row; NULL: zeros.
Floats widened_rows(
    const Floats& from, int64_t rows, int64_t columns, const Floats* behind, int64_t more) {
  Floats to(at(rows * (columns + more)));
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(from.begin() + row * columns, columns, to.begin() + row * (columns + more));
    if (behind == nullptr) continue;
    std::copy_n(behind->begin() + row * more, more, to.begin() + row * (columns + more) + columns);
  }
  return to;
}
Floats narrowed_rows(const Floats& from, int64_t rows, int64_t columns, int64_t more) {
  Floats to(at(rows * columns));
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(from.begin() + row * (columns + more), columns, to.begin() + row * columns);
  }
  return to;
}

Outcome run(const Layer& l, graft_lora_layout layout, graft_device device = GRAFT_CPU) {
  const bool extended = layout == GRAFT_LORA_EXTENDED;
  const int64_t tail = extended ? l.rank : 0, width = l.in + tail;
  Floats scaled = l.b;
  for (float& value : scaled) value *= l.scale;
  const Floats w = widened_rows(l.w, l.out, l.in, &scaled, tail);
  Floats x = widened_rows(l.x, l.tokens, l.in, nullptr, tail), dx(x.size());
  Floats u(at(l.tokens * l.rank)), du(u.size());
  Outcome outcome{Floats(at(l.tokens * l.out)), {}, Floats(l.a.size()), Floats(l.b.size())};
  const graft_lora layer{layout, l.in,       l.out,      l.rank,  w.data(),
                         width,  l.a.data(), l.b.data(), l.scale, GRAFT_F32};
  REQUIRE(graft_lora_forward(&layer, l.tokens, x.data(), width, extended ? nullptr : u.data(),
                             l.rank, outcome.y.data(), l.out, device) == GRAFT_OK);
  REQUIRE(graft_lora_backward(&layer, l.tokens, l.dy.data(), l.out, dx.data(), width,
                              extended ? nullptr : du.data(), l.rank, device) == GRAFT_OK);
  REQUIRE(graft_lora_gradients(&layer, l.tokens, x.data(), width, extended ? nullptr : u.data(),
                               l.rank, l.dy.data(), l.out, extended ? dx.data() : du.data(),
                               extended ? width : l.rank, outcome.da.data(), outcome.db.data(),
                               device) == GRAFT_OK);
  outcome.dx = narrowed_rows(dx, l.tokens, l.in, tail);
  return outcome;
}

oracle::Array product(const oracle::GemmShape& shape,
                      const oracle::Array& a,
                      const oracle::Array& b) {
  return oracle::gemm(shape, 1.0, a, b, 0.0, oracle::Array(at(shape.m * shape.n)));
}
void add(oracle::Array& to, const oracle::Array& from, double scale) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += scale * from[i];
}

}  // namespace

TEST_CASE("lora: forward, backward and gradients equal float64 in both layouts",
          "[kernels][lora]") {
  const Layer l =
      GENERATE(Layer(1, 8, 8, 2, 2.0f), Layer(13, 40, 24, 8, 0.5f), Layer(70, 33, 65, 5, 1.5f));
  const auto layout = GENERATE(GRAFT_LORA_EXTENDED, GRAFT_LORA_SEPARATE);
  const Outcome got = run(l, layout);
  const auto w = widen(l.w), a = widen(l.a), b = widen(l.b), x = widen(l.x), dy = widen(l.dy);
  const double s = static_cast<double>(l.scale);
  const auto u = product({false, true, l.tokens, l.rank, l.in}, x, a);
  auto y = product({false, true, l.tokens, l.out, l.in}, x, w);
  add(y, product({false, true, l.tokens, l.out, l.rank}, u, b), s);
  oracle::Array du(u.size());
  add(du, product({false, false, l.tokens, l.rank, l.out}, dy, b), s);
  auto dx = product({false, false, l.tokens, l.in, l.out}, dy, w);
  add(dx, product({false, false, l.tokens, l.in, l.rank}, du, a), 1.0);
  const auto da = product({true, false, l.rank, l.in, l.tokens}, du, x);
  oracle::Array db(l.b.size());
  add(db, product({true, false, l.out, l.rank, l.tokens}, dy, u), s);
  // Sums of up to 110 products of unit size, through at most three products in a row: 1e-5 of the
  // largest is 100 times what their roundings add up to at random.
  const auto close = [](const Floats& got_values, const oracle::Array& expected) {
    double largest = 0.0;
    for (const double value : expected) largest = std::max(largest, std::fabs(value));
    return outside(got_values, expected, oracle::Array(expected.size(), 1e-5 * largest));
  };
  CHECK(close(got.y, y) == "");
  CHECK(close(got.dx, dx) == "");
  CHECK(close(got.da, da) == "");
  CHECK(close(got.db, db) == "");
}

TEST_CASE("lora: no rank, or a scale of zero, is the base alone to the bit", "[kernels][lora]") {
  const auto layout = GENERATE(GRAFT_LORA_EXTENDED, GRAFT_LORA_SEPARATE);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const Outcome base = run(Layer(9, 40, 24, 0, 1.0f), layout, device);
  const Outcome silent = run(Layer(9, 40, 24, 8, 0.0f), layout, device);
  CHECK(same_bits(base.y, silent.y));
  CHECK(same_bits(base.dx, silent.dx));
}

TEST_CASE("lora: rows of A and columns of B in another order give the same layer",
          "[kernels][lora]") {
  Layer one(9, 40, 24, 6, 0.7f), other = one;
  for (int64_t r = 0; r < 6; ++r) {
    std::copy_n(one.a.begin() + r * 40, 40, other.a.begin() + (5 - r) * 40);
    for (int64_t o = 0; o < 24; ++o) other.b[at(o * 6 + 5 - r)] = one.b[at(o * 6 + r)];
  }
  const Outcome got = run(one, GRAFT_LORA_EXTENDED), turned = run(other, GRAFT_LORA_EXTENDED);
  for (int64_t r = 0; r < 6; ++r) {
    // A row of dA is a sum over tokens of its own.
    for (int64_t i = 0; i < 40; ++i) {
      CHECK(static_cast<double>(turned.da[at((5 - r) * 40 + i)]) ==
            Approx(static_cast<double>(got.da[at(r * 40 + i)])).margin(1e-4));
    }
  }
  for (size_t i = 0; i < got.y.size(); ++i) {
    CHECK(static_cast<double>(turned.y[i]) == Approx(static_cast<double>(got.y[i])).margin(1e-4));
  }
}

TEST_CASE("lora: gradients do not depend on how the tokens are split at a tile's boundary",
          "[kernels][lora]") {
  const Layer l(2 * GRAFT_LORA_TOKENS + 77, 24, 16, 4, 0.5f);
  const Outcome whole = run(l, GRAFT_LORA_SEPARATE);
  const graft_lora layer{GRAFT_LORA_SEPARATE, l.in,       l.out,   l.rank,   l.w.data(), l.in,
                         l.a.data(),          l.b.data(), l.scale, GRAFT_F32};
  Floats u(at(l.tokens * l.rank)), du(u.size()), y(at(l.tokens * l.out)), x = l.x;
  Floats da(l.a.size()), db(l.b.size());
  REQUIRE(graft_lora_forward(&layer, l.tokens, x.data(), l.in, u.data(), l.rank, y.data(), l.out) ==
          GRAFT_OK);
  // Without dx only du is computed.
  REQUIRE(graft_lora_backward(&layer, l.tokens, l.dy.data(), l.out, nullptr, 0, du.data(),
                              l.rank) == GRAFT_OK);
  for (int64_t first = 0; first < l.tokens; first += GRAFT_LORA_TOKENS) {
    const int64_t count = std::min<int64_t>(GRAFT_LORA_TOKENS, l.tokens - first);
    REQUIRE(graft_lora_gradients(&layer, count, x.data() + first * l.in, l.in,
                                 u.data() + first * l.rank, l.rank, l.dy.data() + first * l.out,
                                 l.out, du.data() + first * l.rank, l.rank, da.data(),
                                 db.data()) == GRAFT_OK);
  }
  CHECK(same_bits(da, whole.da));
  CHECK(same_bits(db, whole.db));
}

TEST_CASE("lora: pairs lie around their weight, B on the diagonal between zeros",
          "[kernels][lora]") {
  constexpr int64_t kIn = 5, kRank = 2 + 3, kOut = 4 + 1 + 2, kStride = kIn + kRank + 1;
  const Floats a0 = random_floats(2 * kIn, 1), b0 = random_floats(4 * 2, 2);
  const Floats a2 = random_floats(3 * kIn, 3), b2 = random_floats(2 * 3, 4);
  const graft_lora_pair pairs[] = {{a0.data(), b0.data(), 4, 2, 0.5f},
                                   {nullptr, nullptr, 1, 0, 1.0f},
                                   {a2.data(), b2.data(), 2, 3, 3.0f}};
  constexpr uint16_t kBefore = 0x4321;
  std::vector<uint16_t> expected(at((kOut + kRank) * kStride), kBefore);
  for (int64_t row = 0; row < kOut; ++row) {
    for (int64_t column = 0; column < kRank; ++column) {
      float value = 0.0f;
      if (row < 4 && column < 2) value = 0.5f * b0[at(row * 2 + column)];
      if (row >= 5 && column >= 2) value = 3.0f * b2[at((row - 5) * 3 + column - 2)];
      expected[at(row * kStride + kIn + column)] = to_bf16(value);
    }
  }
  for (int64_t row = 0; row < kRank; ++row) {
    for (int64_t i = 0; i < kIn; ++i) {
      const float value = row < 2 ? a0[at(row * kIn + i)] : a2[at((row - 2) * kIn + i)];
      expected[at((kOut + row) * kStride + i)] = to_bf16(value);
    }
  }
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  std::vector<uint16_t> to(expected.size(), kBefore);
  REQUIRE(graft_lora_place_pairs(pairs, 3, kIn, to.data(), kStride, device) == GRAFT_OK);
  CHECK(to == expected);
  // Without a pair nothing is written.
  to.assign(to.size(), kBefore);
  REQUIRE(graft_lora_place_pairs(pairs + 1, 1, kIn, to.data(), kIn, device) == GRAFT_OK);
  CHECK(to == std::vector<uint16_t>(to.size(), kBefore));
}

TEST_CASE("lora: pairs that do not fit are named", "[kernels][lora]") {
  const Floats values(64);
  std::vector<uint16_t> to(64);
  graft_lora_pair pair{values.data(), values.data(), 3, 2, 1.0f};
  const auto place = [&](int64_t count, int64_t in, int64_t stride) {
    return graft_lora_place_pairs(&pair, count, in, to.data(), stride);
  };
  CHECK(place(1, 4, 6) == GRAFT_OK);
  CHECK(place(0, 4, 6) == GRAFT_BAD_SHAPE);
  CHECK(place(GRAFT_LORA_PAIRS + 1, 4, 6) == GRAFT_BAD_SHAPE);
  CHECK(place(1, 0, 6) == GRAFT_BAD_SHAPE);
  CHECK(place(1, 4, 5) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("to_stride is 5, expected at least 6") !=
        std::string::npos);
  CHECK(graft_lora_place_pairs(&pair, 1, 4, nullptr, 6) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_lora_place_pairs(nullptr, 1, 4, to.data(), 6) == GRAFT_BAD_ARGUMENT);
  pair.b = nullptr;
  CHECK(place(1, 4, 6) == GRAFT_BAD_ARGUMENT);
  pair.rank = -1;
  CHECK(place(1, 4, 6) == GRAFT_BAD_SHAPE);
}

TEST_CASE("lora: wrong layouts are named", "[kernels][lora]") {
  Floats x(64);
  graft_lora layer{GRAFT_LORA_EXTENDED, 4, 4, 2, x.data(), 6, x.data(), x.data(), 1.0f, GRAFT_F32};
  CHECK(graft_lora_forward(&layer, 2, x.data(), 5, nullptr, 0, x.data(), 4) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("x_stride is 5, expected at least 6") !=
        std::string::npos);
  CHECK(graft_lora_forward(&layer, 2, x.data(), 6, x.data(), 2, x.data(), 4) == GRAFT_BAD_ARGUMENT);
  layer.w_stride = 5;
  CHECK(graft_lora_forward(&layer, 2, x.data(), 6, nullptr, 0, x.data(), 4) == GRAFT_BAD_SHAPE);
  layer.layout = static_cast<graft_lora_layout>(2);
  CHECK(graft_lora_forward(&layer, 2, x.data(), 6, nullptr, 0, x.data(), 4) == GRAFT_BAD_ARGUMENT);
}
