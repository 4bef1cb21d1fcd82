// bfloat16 products and products with packed 4-bit weights.
#include <algorithm>
#include <numeric>

#include "kernels/float16.h"
#include "kernels/gemm_bf16.h"
#include "kernels/linear4.h"
#include "kernels/oracle/oracle.h"
#include "kernels/product_add.h"
#include "kernels/product_decode.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

struct Case {
  int64_t m, n, k;
};

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

std::vector<uint16_t> rounded(const std::vector<float>& x) {
  std::vector<uint16_t> result(x.size());
  std::transform(x.begin(), x.end(), result.begin(), [](float value) { return to_bf16(value); });
  return result;
}

std::vector<float> widened(const std::vector<uint16_t>& x) {
  std::vector<float> result(x.size());
  std::transform(x.begin(), x.end(), result.begin(),
                 [](uint16_t value) { return from_bf16(value); });
  return result;
}

// A packed weight of [out, in] with owned arrays.
struct Packed {
  std::vector<uint8_t> packed, absmax8;
  std::vector<float> absmax, nested;
  float offset = 0;
  graft_nf4_weight view{};
  std::vector<float> f32;
  std::vector<uint16_t> bf16;

  Packed(int64_t out, int64_t in, int block_size, graft_quant4_type type, bool double_quant)
      : packed(at(graft_nf4_packed_bytes(out * in))),
        absmax8(at(graft_nf4_block_count(out * in, block_size))),
        absmax(absmax8.size()),
        nested((absmax8.size() + 255) / 256),
        f32(at(out * in)),
        bf16(f32.size()) {
    const std::vector<float> weight = random_floats(out * in, 77, 0.02f);
    REQUIRE(graft_quant4_quantize(type, GRAFT_F32, weight.data(), out * in, block_size,
                                  packed.data(), absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    view = {packed.data(), absmax.data(), nullptr, nullptr, 0.0f, out * in, block_size, type};
    if (double_quant) {
      REQUIRE(graft_nf4_compress_absmax(absmax.data(), static_cast<int64_t>(absmax.size()),
                                        absmax8.data(), nested.data(), &offset, GRAFT_CPU,
                                        nullptr) == GRAFT_OK);
      view = {packed.data(), nullptr,  absmax8.data(), nested.data(),
              offset,        out * in, block_size,     type};
    }
    REQUIRE(graft_nf4_decode(&view, f32.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    REQUIRE(graft_nf4_decode_bf16(&view, bf16.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  }
  Packed(const Packed&) = delete;
};

}  // namespace

TEST_CASE("gemm bf16: equals the oracle's order of sums to the bit, dense and packed",
          "[kernels][gemm][bf16]") {
  const Case c = GENERATE(Case{1, 1, 1}, Case{13, 31, 17}, Case{12, 32, 512}, Case{25, 65, 513},
                          Case{3, 300, 1030}, Case{14, 33, 64});
  const graft_transpose tb = GENERATE(GRAFT_N, GRAFT_T);
  const graft_float_type a_type = GENERATE(GRAFT_F32, GRAFT_BF16);
  const std::vector<float> a = random_floats(c.m * c.k, 1);
  const std::vector<uint16_t> a16 = rounded(a), b = rounded(random_floats(c.k * c.n, 2));
  const void* const rows = a_type == GRAFT_F32 ? static_cast<const void*>(a.data()) : a16.data();
  const int64_t ldb = tb == GRAFT_N ? c.n : c.k;
  const auto expected =
      oracle::gemm_bf16({false, tb == GRAFT_T, c.m, c.n, c.k}, widened(a16), widened(b));
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> out(at(c.m * c.n), 3), again(at(c.m * c.n), 1);
    REQUIRE(graft_gemm_bf16(tb, c.m, c.n, c.k, rows, a_type, c.k, b.data(), ldb, 0.0f, out.data(),
                            c.n) == GRAFT_OK);
    Guarded<uint16_t> packed(at(graft_bf16_packed_values(c.n, c.k)), 0);
    REQUIRE(graft_bf16_pack(tb, c.n, c.k, b.data(), ldb, packed.data()) == GRAFT_OK);
    REQUIRE(graft_gemm_bf16_packed(c.m, c.n, c.k, rows, a_type, c.k, packed.data(), 0.0f,
                                   again.data(), c.n) == GRAFT_OK);
    REQUIRE((out.intact() && again.intact() && packed.intact()));
    REQUIRE(same_bits(out.values(), again.values()));
    return out.values();
  });
  CHECK(same_bits(got, expected));
}

TEST_CASE("gemm bf16: beta, strides and empty sums", "[kernels][gemm][bf16]") {
  const std::vector<uint16_t> a = rounded({1, 2, 9, 3, 4, 9}), b = rounded({1, 0, 0, 1});
  std::vector<float> c = {1, 1, 7, 1, 1, 7};
  REQUIRE(graft_gemm_bf16(GRAFT_N, 2, 2, 2, a.data(), GRAFT_BF16, 3, b.data(), 2, 0.5f, c.data(),
                          3) == GRAFT_OK);
  CHECK(c == std::vector<float>{1.5f, 2.5f, 7, 3.5f, 4.5f, 7});
  REQUIRE(graft_gemm_bf16(GRAFT_N, 2, 2, 0, nullptr, GRAFT_BF16, 0, nullptr, 2, 2.0f, c.data(),
                          3) == GRAFT_OK);
  CHECK(c == std::vector<float>{3, 5, 7, 7, 9, 7});
  CHECK(graft_gemm_bf16(GRAFT_N, 2, 2, 2, a.data(), GRAFT_F16, 3, b.data(), 2, 0, c.data(), 3) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(graft_gemm_bf16(GRAFT_T, 2, 2, 2, a.data(), GRAFT_BF16, 1, b.data(), 2, 0, c.data(), 3) ==
        GRAFT_BAD_SHAPE);
}

TEST_CASE("linear4: equals decoding all of the weight and multiplying, to the bit",
          "[kernels][linear4]") {
  struct Weight {
    int64_t out, in;
    int block_size;
  };
  const Weight w = GENERATE(Weight{64, 128, 64}, Weight{37, 53, 64}, Weight{300, 80, 32},
                            Weight{33, 600, 256}, Weight{1, 1, 64}, Weight{70, 1030, 4096});
  const int64_t m = GENERATE(5, 16, 29);
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const bool nested = GENERATE(false, true);
  const Packed weight(w.out, w.in, w.block_size, type, nested);
  const std::vector<float> x = random_floats(m * w.in, 3), dy = random_floats(m * w.out, 4);
  const std::vector<uint16_t> x16 = rounded(x), dy16 = rounded(dy);
  std::vector<float> y(at(m * w.out)), dx(at(m * w.in)), y16(y.size()), dx16(dx.size());
  REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_T, m, w.out, w.in, 1, x.data(), w.in, weight.f32.data(),
                         w.in, 0, y.data(), w.out) == GRAFT_OK);
  REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_N, m, w.in, w.out, 1, dy.data(), w.out, weight.f32.data(),
                         w.in, 0, dx.data(), w.in) == GRAFT_OK);
  REQUIRE(graft_gemm_bf16(GRAFT_T, m, w.out, w.in, x16.data(), GRAFT_BF16, w.in, weight.bf16.data(),
                          w.in, 0, y16.data(), w.out) == GRAFT_OK);
  REQUIRE(graft_gemm_bf16(GRAFT_N, m, w.in, w.out, dy16.data(), GRAFT_BF16, w.out,
                          weight.bf16.data(), w.in, 0, dx16.data(), w.in) == GRAFT_OK);
  same_everywhere([&] {
    Guarded<float> y_f32(y.size(), 1), dx_f32(dx.size(), 2), y_bf16(y.size(), 3),
        dx_bf16(dx.size());
    REQUIRE(graft_linear4_forward(&weight.view, w.out, w.in, m, x.data(), GRAFT_F32, w.in, 0,
                                  y_f32.data(), w.out) == GRAFT_OK);
    REQUIRE(graft_linear4_forward(&weight.view, w.out, w.in, m, x16.data(), GRAFT_BF16, w.in, 0,
                                  y_bf16.data(), w.out) == GRAFT_OK);
    REQUIRE(graft_linear4_backward(&weight.view, w.out, w.in, m, dy.data(), GRAFT_F32, w.out, 0,
                                   dx_f32.data(), w.in) == GRAFT_OK);
    REQUIRE(graft_linear4_backward(&weight.view, w.out, w.in, m, dy16.data(), GRAFT_BF16, w.out, 0,
                                   dx_bf16.data(), w.in) == GRAFT_OK);
    REQUIRE((y_f32.intact() && dx_f32.intact() && y_bf16.intact() && dx_bf16.intact()));
    REQUIRE(same_bits(y_f32.values(), y));
    REQUIRE(same_bits(dx_f32.values(), dx));
    REQUIRE(same_bits(y_bf16.values(), y16));
    REQUIRE(same_bits(dx_bf16.values(), dx16));
    return y_f32.values();
  });
}

TEST_CASE("linear4: products of few rows are within the bound of their sums",
          "[kernels][linear4]") {
  struct Weight {
    int64_t out, in;
    int block_size;
  };
  // Rows of whole units, of units inside larger blocks, of half units, and rows at any nibble.
  const Weight w = GENERATE(Weight{70, 128, 64}, Weight{33, 192, 4096}, Weight{65, 96, 32},
                            Weight{37, 53, 64}, Weight{3, 1200, 64}, Weight{130, 64, 128});
  const int64_t m = GENERATE(1, 2, 3, 4);
  const bool nested = GENERATE(false, true);
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const Packed weight(w.out, w.in, w.block_size, type, nested);
  const std::vector<float> x = random_floats(m * w.in, 3);
  const std::vector<uint16_t> x16 = rounded(x);
  const float beta = GENERATE(0.0f, 1.0f);
  const std::vector<float> before = random_floats(m * w.out, 6);
  const auto run = [&](const void* rows, graft_float_type rows_type) {
    return same_everywhere([&] {
      Guarded<float> y(before, 1);
      REQUIRE(graft_linear4_forward(&weight.view, w.out, w.in, m, rows, rows_type, w.in, beta,
                                    y.data(), w.out) == GRAFT_OK);
      REQUIRE(y.intact());
      return y.values();
    });
  };
  const auto check = [&](const std::vector<float>& got, const std::vector<float>& rows) {
    const oracle::GemmShape shape{false, true, m, w.out, w.in};
    const auto absolute = [](std::vector<double> values) {
      for (double& value : values) value = std::fabs(value);
      return values;
    };
    const auto expected = oracle::gemm(shape, 1, widen(rows), widen(weight.f32),
                                       static_cast<double>(beta), widen(before));
    auto bound = oracle::gemm(shape, 1, absolute(widen(rows)), absolute(widen(weight.f32)),
                              static_cast<double>(beta), absolute(widen(before)));
    // At most one fused addition for each 16 of k and four for the lanes; the decoded weight's
    // own rounding, the scale's product, and the last sum.
    for (double& value : bound) value *= kUnit * (static_cast<double>(w.in) / 16 + 12);
    CHECK(outside(got, expected, bound) == "");
  };
  check(run(x.data(), GRAFT_F32), x);
  check(run(x16.data(), GRAFT_BF16), widened(x16));
}

TEST_CASE("linear4: wrong arguments are named", "[kernels][linear4]") {
  const Packed weight(8, 64, 64, GRAFT_NF4, false);
  const std::vector<float> x(128);
  std::vector<float> y(16);
  CHECK(graft_linear4_forward(&weight.view, 8, 63, 2, x.data(), GRAFT_F32, 64, 0, y.data(), 8) ==
        GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("512 elements, expected 8 x 63") != std::string::npos);
  CHECK(graft_linear4_forward(&weight.view, 8, 64, 2, x.data(), GRAFT_F16, 64, 0, y.data(), 8) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(graft_linear4_forward(&weight.view, 8, 64, 2, x.data(), GRAFT_F32, 63, 0, y.data(), 8) ==
        GRAFT_BAD_SHAPE);
  CHECK(graft_linear4_backward(&weight.view, 8, 64, 2, nullptr, GRAFT_F32, 8, 0, y.data(), 64) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(graft_linear4_forward(nullptr, 8, 64, 2, x.data(), GRAFT_F32, 64, 0, y.data(), 8) ==
        GRAFT_BAD_ARGUMENT);
  graft_nf4_weight broken = weight.view;
  broken.absmax = nullptr;
  CHECK(graft_linear4_forward(&broken, 8, 64, 2, x.data(), GRAFT_F32, 64, 0, y.data(), 8) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(graft_linear4_forward(&weight.view, 8, 64, 0, nullptr, GRAFT_F32, 64, 0, nullptr, 8) ==
        GRAFT_OK);
}

TEST_CASE("linear4: bfloat16 results are float32's rounded once", "[kernels][linear4][bf16]") {
  const int64_t m = GENERATE(1, 4, 9);
  const Packed weight(70, 192, 64, GRAFT_NF4, true);
  const std::vector<uint16_t> x = rounded(random_floats(m * 192, 3));
  const std::vector<uint16_t> dy = rounded(random_floats(m * 70, 4));
  std::vector<float> y(at(m * 70)), dx(at(m * 192));
  std::vector<uint16_t> y16(y.size()), dx16(dx.size());
  REQUIRE(graft_linear4_forward(&weight.view, 70, 192, m, x.data(), GRAFT_BF16, 192, 0, y.data(),
                                70) == GRAFT_OK);
  REQUIRE(graft_linear4_forward(&weight.view, 70, 192, m, x.data(), GRAFT_BF16, 192, 0, y16.data(),
                                70, GRAFT_BF16) == GRAFT_OK);
  CHECK(y16 == rounded(y));
  REQUIRE(graft_linear4_backward(&weight.view, 70, 192, m, dy.data(), GRAFT_BF16, 70, 0, dx.data(),
                                 192) == GRAFT_OK);
  REQUIRE(graft_linear4_backward(&weight.view, 70, 192, m, dy.data(), GRAFT_BF16, 70, 0,
                                 dx16.data(), 192, GRAFT_BF16) == GRAFT_OK);
  CHECK(dx16 == rounded(dx));
}

TEST_CASE("linear4: a device takes few rows only, and says so", "[kernels][linear4][emu]") {
  const Packed weight(16, 64, 64, GRAFT_NF4, false);
  const std::vector<float> x(5 * 64);
  std::vector<float> y(5 * 16);
  CHECK(graft_linear4_forward(&weight.view, 16, 64, 5, x.data(), GRAFT_F32, 64, 0, y.data(), 16,
                              GRAFT_F32, GRAFT_EMU) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("m is 5, expected at most 4") != std::string::npos);
  CHECK(graft_linear4_forward(&weight.view, 16, 64, 1, x.data(), GRAFT_F32, 64, 0, y.data(), 16,
                              GRAFT_BF16) == GRAFT_BAD_ARGUMENT);
}

namespace {

// B [rows, stride] of a product: two weights in 4 bits with rows of others around them, and columns
// of others behind all.
struct PartlyPacked {
  static constexpr int64_t kBefore = 2, kBetween = 3, kAfter = 5, kBehind = 8;
  int64_t in;
  Packed first, second;
  int64_t rows, stride;
  std::vector<uint16_t> b;        // what lies where the weights belong is not to be read
  std::vector<uint16_t> decoded;  // with the weights in it
  std::vector<graft_decode_target> targets;

  PartlyPacked(int64_t columns, int64_t first_rows, int64_t second_rows, bool double_quant)
      : in(columns),
        first(first_rows, in, 64, GRAFT_NF4, double_quant),
        second(second_rows, in, 32, GRAFT_FP4, false),
        rows(kBefore + first_rows + kBetween + second_rows + kAfter),
        stride(in + kBehind),
        b(rounded(random_floats(rows * stride, 5))),
        decoded(b) {
    place(kBefore, first_rows, first);
    place(kBefore + first_rows + kBetween, second_rows, second);
  }
  void place(int64_t row, int64_t count, const Packed& weight) {
    graft_decode_target target{};
    target.weight = weight.view;
    target.columns = in;
    target.row_stride = stride;
    target.out = b.data() + row * stride;
    targets.push_back(target);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(weight.bf16.begin() + r * in, in, decoded.begin() + (row + r) * stride);
      std::fill_n(b.begin() + (row + r) * stride, in, uint16_t{0x7fff});
    }
  }
};

}  // namespace

TEST_CASE("multiply decoding: the bits of weights that were decoded before",
          "[kernels][linear4][bf16]") {
  const bool double_quant = GENERATE(false, true);
  const graft_transpose tb = GENERATE(GRAFT_N, GRAFT_T);
  const graft_float_type c_type = GENERATE(GRAFT_F32, GRAFT_BF16);
  const int64_t in = GENERATE(24, 600), m = GENERATE(1, 30, 250);
  const bool adds = GENERATE(false, true);
  PartlyPacked w(in, 40, 270, double_quant);
  CAPTURE(double_quant, tb, c_type, in, m, adds);
  graft_product p{};
  p.tb = tb;
  p.m = m;
  p.n = tb == GRAFT_T ? w.rows : w.stride;
  p.k = tb == GRAFT_T ? w.stride : w.rows;
  p.alpha = 1.5f;
  p.beta = adds ? 0.5f : 0.0f;
  p.lda = p.k;
  p.ldb = w.stride;
  p.ldc = p.n;
  p.type = GRAFT_BF16;
  p.c_type = c_type;
  const auto a = rounded(random_floats(m * p.k, 6));
  p.a = a.data();
  const std::vector<float> d = random_floats(m * p.n, 7);
  const auto product = [&](bool decodes) {
    return same_everywhere([&] {
      const auto before = w.b;
      Guarded<float> out(at(m * p.n), 0.0f);
      p.c = out.data();
      p.b = decodes ? w.b.data() : w.decoded.data();
      REQUIRE((decodes ? graft_multiply_decoding(&p, d.data(), p.n, w.targets.data(), 2)
                       : graft_multiply_add(&p, d.data(), p.n)) == GRAFT_OK);
      REQUIRE(out.intact());
      REQUIRE(w.b == before);
      return out.values();
    });
  };
  const std::vector<float> before = product(false);
  CHECK(same_bits(product(true), before));
}

TEST_CASE("multiply decoding: wrong arguments are named", "[kernels][linear4]") {
  PartlyPacked w(24, 40, 40, false);
  const auto a = rounded(random_floats(2 * w.stride, 6));
  std::vector<float> c(at(2 * w.rows));
  graft_product p{};
  p.tb = GRAFT_T;
  p.m = 2;
  p.n = w.rows;
  p.k = p.lda = p.ldb = w.stride;
  p.ldc = w.rows;
  p.alpha = 1;
  p.a = a.data();
  p.b = w.b.data();
  p.c = c.data();
  p.type = GRAFT_BF16;
  const auto refused = [&](graft_status status, const char* text) {
    CHECK(graft_multiply_decoding(&p, nullptr, 0, w.targets.data(), 2) == status);
    CHECK_THAT(graft_last_error(), Catch::Contains(text));
  };
  CHECK(graft_multiply_decoding(&p, nullptr, 0, w.targets.data(), 2) == GRAFT_OK);
  CHECK(graft_multiply_decoding(nullptr, nullptr, 0, w.targets.data(), 2) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_multiply_decoding(&p, c.data(), w.rows, w.targets.data(), 2) == GRAFT_BAD_ARGUMENT);
  const std::vector<graft_decode_target> good = w.targets;
  w.targets[1].out = w.b.data() + 1;
  refused(GRAFT_BAD_SHAPE, "target 1 does not lie in rows of b");
  w.targets = good;
  w.targets[0].row_stride += 1;
  refused(GRAFT_BAD_SHAPE, "target 0 does not lie in rows of b");
  w.targets = good;
  w.targets[1].out = w.b.data() + (w.rows - 39) * w.stride;
  refused(GRAFT_BAD_SHAPE, "target 1 ends behind b's 90 rows");
  w.targets = good;
  w.targets[0].weight.type = static_cast<graft_quant4_type>(7);
  refused(GRAFT_BAD_ARGUMENT, "targets[0].weight.type is 7");
  w.targets = good;
  p.type = GRAFT_F32;
  refused(GRAFT_BAD_ARGUMENT, "expected 1 (bfloat16)");
}
