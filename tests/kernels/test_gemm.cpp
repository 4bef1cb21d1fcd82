#include <algorithm>

#include "kernels/gemm.h"
#include "kernels/oracle/oracle.h"
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

std::vector<double> magnitudes(const std::vector<float>& x) {
  std::vector<double> result(x.size());
  std::transform(x.begin(), x.end(), result.begin(),
                 [](float value) { return std::fabs(static_cast<double>(value)); });
  return result;
}

std::vector<float> product(graft_transpose ta,
                           graft_transpose tb,
                           const Case& c,
                           const std::vector<float>& a,
                           const std::vector<float>& b) {
  std::vector<float> out(at(c.m * c.n));
  REQUIRE(graft_gemm_f32(ta, tb, c.m, c.n, c.k, 1.0f, a.data(), ta == GRAFT_N ? c.k : c.m, b.data(),
                         tb == GRAFT_N ? c.n : c.k, 0.0f, out.data(), c.n) == GRAFT_OK);
  return out;
}

}  // namespace

TEST_CASE("gemm: every layout and odd shape is within the bound of its sums", "[kernels][gemm]") {
  const Case c = GENERATE(Case{1, 1, 1}, Case{13, 31, 17}, Case{12, 32, 256}, Case{11, 33, 257},
                          Case{25, 65, 255}, Case{241, 48, 31}, Case{3, 515, 40},
                          Case{16, 130, 700}, Case{1, 200, 300});
  const graft_transpose ta = GENERATE(GRAFT_N, GRAFT_T);
  const graft_transpose tb = GENERATE(GRAFT_N, GRAFT_T);
  const float alpha = GENERATE(1.0f, -0.75f);
  const float beta = GENERATE(0.0f, 1.0f, 0.5f);
  const std::vector<float> a = random_floats(c.m * c.k, 1), b = random_floats(c.k * c.n, 2);
  const std::vector<float> c0 = random_floats(c.m * c.n, 3);
  const std::vector<float> got = same_everywhere([&] {
    Guarded<float> out(c0, 3);
    REQUIRE(graft_gemm_f32(ta, tb, c.m, c.n, c.k, alpha, a.data(), ta == GRAFT_N ? c.k : c.m,
                           b.data(), tb == GRAFT_N ? c.n : c.k, beta, out.data(), c.n) == GRAFT_OK);
    REQUIRE(out.intact());
    return out.values();
  });
  const oracle::GemmShape shape{ta == GRAFT_T, tb == GRAFT_T, c.m, c.n, c.k};
  const auto expected = oracle::gemm(shape, static_cast<double>(alpha), widen(a), widen(b),
                                     static_cast<double>(beta), widen(c0));
  // k fused additions, the scaling, and one addition for each 256 of k.
  auto bound = oracle::gemm(shape, std::fabs(static_cast<double>(alpha)), magnitudes(a),
                            magnitudes(b), std::fabs(static_cast<double>(beta)), magnitudes(c0));
  for (double& x : bound) x *= kUnit * static_cast<double>(c.k + c.k / 256 + 4);
  CHECK(outside(got, expected, bound) == "");
}

TEST_CASE("gemm: leading dimensions leave the gaps alone", "[kernels][gemm]") {
  const int64_t m = 14, n = 35, k = 20, lda = 23, ldb = 41, ldc = 37;
  const std::vector<float> a = random_floats(m * lda, 1), b = random_floats(k * ldb, 2);
  Guarded<float> c(random_floats(m * ldc, 3));
  const std::vector<float> before = c.values();
  REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_N, m, n, k, 1.0f, a.data(), lda, b.data(), ldb, 0.0f,
                         c.data(), ldc) == GRAFT_OK);
  int64_t changed_gaps = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = n; j < ldc; ++j) changed_gaps += c[at(i * ldc + j)] != before[at(i * ldc + j)];
  }
  CHECK(changed_gaps == 0);
  CHECK(c.intact());
  double sum = 0.0;
  for (int64_t p = 0; p < k; ++p) {
    sum += static_cast<double>(a[at(3 * lda + p)]) * static_cast<double>(b[at(p * ldb + 34)]);
  }
  CHECK(static_cast<double>(c[at(3 * ldc + 34)]) == Approx(sum).margin(1e-5));
}

TEST_CASE("gemm: a row does not depend on the other rows of the call", "[kernels][gemm]") {
  const Case c{300, 130, 515};
  const graft_transpose tb = GENERATE(GRAFT_N, GRAFT_T);
  const std::vector<float> a = random_floats(c.m * c.k, 4), b = random_floats(c.k * c.n, 5);
  const std::vector<float> all_rows = product(GRAFT_N, tb, c, a, b);
  const Case part = GENERATE(Case{1, 130, 515}, Case{7, 130, 515}, Case{48, 130, 515});
  for (int64_t row = 0; row + part.m <= c.m; row += 97) {
    const std::vector<float> some(a.begin() + row * c.k, a.begin() + (row + part.m) * c.k);
    const std::vector<float> got = product(GRAFT_N, tb, part, some, b);
    const std::vector<float> expected(all_rows.begin() + row * c.n,
                                      all_rows.begin() + (row + part.m) * c.n);
    INFO("row " << row);
    REQUIRE(same_bits(got, expected));
  }
}

TEST_CASE("gemm: alignment and large task grids do not change a bit", "[kernels][gemm]") {
  const Case c{700, 600, 300};
  const std::vector<float> a = random_floats(c.m * c.k, 6), b = random_floats(c.n * c.k, 7);
  const std::vector<float> expected =
      same_everywhere([&] { return product(GRAFT_N, GRAFT_T, c, a, b); });
  const size_t shift = GENERATE(size_t{0}, size_t{1}, size_t{5}, size_t{15});
  Guarded<float> moved_a(a, shift), moved_b(b, 15 - shift), out(expected.size(), shift);
  REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_T, c.m, c.n, c.k, 1.0f, moved_a.data(), c.k, moved_b.data(),
                         c.k, 0.0f, out.data(), c.n) == GRAFT_OK);
  CHECK(same_bits(out.values(), expected));
  CHECK(out.intact());
}

TEST_CASE("gemm: empty sums and empty results are defined", "[kernels][gemm]") {
  std::vector<float> c = {1.0f, NAN};
  SECTION("k = 0 and beta = 0 writes zeros without reading C") {
    REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_N, 1, 2, 0, 1.0f, nullptr, 0, nullptr, 2, 0.0f, c.data(),
                           2) == GRAFT_OK);
    CHECK(c == std::vector<float>{0.0f, 0.0f});
  }
  SECTION("beta = 0 does not read a NaN in C") {
    const float one = 1.0f;
    const float b[2] = {2.0f, 3.0f};
    REQUIRE(graft_gemm_f32(GRAFT_N, GRAFT_N, 1, 2, 1, 1.0f, &one, 1, b, 2, 0.0f, c.data(), 2) ==
            GRAFT_OK);
    CHECK(c == std::vector<float>{2.0f, 3.0f});
  }
  SECTION("m = 0 does nothing") {
    CHECK(graft_gemm_f32(GRAFT_N, GRAFT_N, 0, 2, 3, 1.0f, nullptr, 3, nullptr, 2, 0.0f, nullptr,
                         2) == GRAFT_OK);
  }
}

TEST_CASE("gemm: wrong arguments are named", "[kernels][gemm]") {
  float x[4] = {};
  CHECK(graft_gemm_f32(GRAFT_N, GRAFT_N, -1, 1, 1, 1, x, 1, x, 1, 0, x, 1) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("m is -1") != std::string::npos);
  CHECK(graft_gemm_f32(GRAFT_N, GRAFT_N, 1, 2, 2, 1, x, 1, x, 2, 0, x, 2) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("lda is 1, expected at least 2") != std::string::npos);
  CHECK(graft_gemm_f32(static_cast<graft_transpose>(7), GRAFT_N, 1, 1, 1, 1, x, 1, x, 1, 0, x, 1) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(graft_gemm_f32(GRAFT_N, GRAFT_N, 1, 1, 1, 1, nullptr, 1, x, 1, 0, x, 1) ==
        GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("a is NULL") != std::string::npos);
}
