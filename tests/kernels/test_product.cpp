// graft_multiply on the processor and on the emulated device, whose cuBLASLt is made of the
// processor's products (the same for a GPU: test_cases.cpp).
#include <algorithm>
#include <array>

#include "kernels/element.h"
#include "kernels/emu/cublaslt.h"
#include "kernels/float16.h"
#include "kernels/oracle/oracle.h"
#include "kernels/product_add.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

std::vector<uint16_t> narrow(const std::vector<float>& x) {
  std::vector<uint16_t> result(x.size());
  std::transform(x.begin(), x.end(), result.begin(), to_bf16_or_nan);
  return result;
}
std::vector<float> widen16(const std::vector<uint16_t>& x) {
  std::vector<float> result(x.size());
  std::transform(x.begin(), x.end(), result.begin(), from_bf16);
  return result;
}

graft_product dense(graft_transpose ta, graft_transpose tb, int64_t m, int64_t n, int64_t k) {
  graft_product p{};
  p.ta = ta;
  p.tb = tb;
  p.m = m;
  p.n = n;
  p.k = k;
  p.alpha = 1.0f;
  p.lda = ta == GRAFT_N ? k : m;
  p.ldb = tb == GRAFT_N ? n : k;
  p.ldc = n;
  return p;
}

// A column-major matrix for cuBLASLt's interface.
struct Columns {
  int64_t rows, columns, ld;
  std::vector<float> values;
  Columns(int64_t rows_, int64_t columns_, uint32_t seed)
      : rows(rows_), columns(columns_), ld(rows_ + 3), values(random_floats(ld * columns_, seed)) {}
  float get(int64_t row, int64_t column) const { return values[at(row + column * ld)]; }
  cublasLtMatrixLayoutOpaque_t layout() const {
    return {CUDA_R_32F, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), ld};
  }
};

}  // namespace

TEST_CASE("multiply: bfloat16 products of every transpose have the oracle's order of sums",
          "[kernels][gemm][bf16]") {
  struct Case {
    int64_t m, n, k;
  };
  const Case c = GENERATE(Case{1, 1, 1}, Case{13, 31, 17}, Case{40, 70, 600}, Case{33, 64, 513});
  const graft_transpose ta = GENERATE(GRAFT_N, GRAFT_T), tb = GENERATE(GRAFT_N, GRAFT_T);
  const auto a = narrow(random_floats(c.m * c.k, 1)), b = narrow(random_floats(c.k * c.n, 2));
  const auto before = narrow(random_floats(c.m * c.n, 3));
  const std::vector<float> sums =
      oracle::gemm_bf16({ta == GRAFT_T, tb == GRAFT_T, c.m, c.n, c.k}, widen16(a), widen16(b));
  graft_product p = dense(ta, tb, c.m, c.n, c.k);
  p.type = GRAFT_BF16;
  p.a = a.data();
  p.b = b.data();
  // Plain to float32.
  CHECK(same_bits(same_everywhere([&] {
                    Guarded<float> out(at(c.m * c.n));
                    p.c = out.data();
                    REQUIRE(graft_multiply(&p) == GRAFT_OK);
                    REQUIRE(out.intact());
                    return out.values();
                  }),
                  sums));
  // C = (sum + C) rounded once to bfloat16; one chain only, so that the sum is the oracle's.
  if (c.k > 512) return;
  p.beta = 1.0f;
  p.c_type = GRAFT_BF16;
  std::vector<float> expected(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    expected[i] = from_bf16(to_bf16_or_nan(sums[i] + from_bf16(before[i])));
  }
  CHECK(same_bits(same_everywhere([&] {
                    Guarded<uint16_t> out(before);
                    p.c = out.data();
                    REQUIRE(graft_multiply(&p) == GRAFT_OK);
                    REQUIRE(out.intact());
                    return widen16(out.values());
                  }),
                  expected));
}

TEST_CASE("multiply: alpha multiplies each chain's sum", "[kernels][gemm][bf16]") {
  const std::vector<uint16_t> a = narrow({1, 2}), b = narrow({3, 5});
  float c = 7.0f;
  graft_product p = dense(GRAFT_N, GRAFT_N, 1, 1, 2);
  p.type = GRAFT_BF16;
  p.alpha = 0.5f;
  p.beta = 2.0f;
  p.a = a.data();
  p.b = b.data();
  p.c = &c;
  REQUIRE(graft_multiply(&p) == GRAFT_OK);
  CHECK(c == 20.5f);  // 0.5 * 13 + 2 * 7
  p.alpha = 0.0f;
  REQUIRE(graft_multiply(&p) == GRAFT_OK);
  CHECK(c == 41.0f);
}

TEST_CASE("multiply: a row does not depend on the other rows, in either type",
          "[kernels][gemm][bf16]") {
  const graft_float_type type = GENERATE(GRAFT_F32, GRAFT_BF16);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const int64_t m = 37, n = 50, k = 600;
  const std::vector<float> a = random_floats(m * k, 1), b = random_floats(n * k, 2);
  const auto a16 = narrow(a), b16 = narrow(b);
  const auto run = [&](int64_t row, int64_t rows) {
    graft_product p = dense(GRAFT_N, GRAFT_T, rows, n, k);
    p.type = type;
    p.a = type == GRAFT_F32 ? static_cast<const void*>(a.data() + row * k) : a16.data() + row * k;
    p.b = type == GRAFT_F32 ? static_cast<const void*>(b.data()) : b16.data();
    std::vector<float> c(at(rows * n));
    p.c = c.data();
    REQUIRE(graft_multiply(&p, device) == GRAFT_OK);
    return c;
  };
  const std::vector<float> all_rows = run(0, m);
  for (const int64_t row : {0, 5, 30}) {
    const std::vector<float> some = run(row, 7);
    CHECK(same_bits(some, {all_rows.begin() + row * n, all_rows.begin() + (row + 7) * n}));
  }
}

TEST_CASE("cublaslt: the emulated one is column-major, as naive loops have it", "[kernels][emu]") {
  const cublasOperation_t op_a = GENERATE(CUBLAS_OP_N, CUBLAS_OP_T);
  const cublasOperation_t op_b = GENERATE(CUBLAS_OP_N, CUBLAS_OP_T);
  const int64_t m = 7, n = 5, k = 9;
  const Columns a(op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, 1);
  const Columns b(op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, 2);
  Columns d(m, n, 3);
  const Columns before = d;
  cublasLtMatmulDescOpaque_t product{op_a, op_b};
  auto a_layout = a.layout(), b_layout = b.layout(), d_layout = d.layout();
  const float alpha = 0.5f, beta = 2.0f;
  const cublasLtMatmulAlgo_t whole{1, CUBLASLT_REDUCTION_SCHEME_NONE, 0};
  const cublasLtMatmulAlgo_t split{4, CUBLASLT_REDUCTION_SCHEME_NONE, 0};
  const cublasLtMatmulAlgo_t reduced{1, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 0};
  const auto run = [&](const cublasLtMatmulAlgo_t& algorithm) {
    return cublasLtMatmul(nullptr, &product, &alpha, a.values.data(), &a_layout, b.values.data(),
                          &b_layout, &beta, d.values.data(), &d_layout, d.values.data(), &d_layout,
                          &algorithm, nullptr, 0, nullptr);
  };
  CHECK(run(split) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(run(reduced) == CUBLAS_STATUS_NOT_SUPPORTED);
  REQUIRE(run(whole) == CUBLAS_STATUS_SUCCESS);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int64_t p = 0; p < k; ++p) {
        sum += static_cast<double>(op_a == CUBLAS_OP_N ? a.get(i, p) : a.get(p, i)) *
               static_cast<double>(op_b == CUBLAS_OP_N ? b.get(p, j) : b.get(j, p));
      }
      const double expected = 0.5 * sum + 2.0 * static_cast<double>(before.get(i, j));
      CHECK(static_cast<double>(d.get(i, j)) == Approx(expected).margin(1e-5));
    }
  }
  for (int64_t j = 0; j < n; ++j) {  // the gap of each column
    for (int64_t i = m; i < d.ld; ++i) CHECK(d.get(i, j) == before.get(i, j));
  }
}

TEST_CASE("multiply: one algorithm for n and k serves every number of rows", "[kernels][emu]") {
  const std::vector<float> a(64 * 64, 1.0f), b(64 * 64, 1.0f);
  std::vector<float> c(64 * 64);
  const auto run = [&](graft_product p) {
    p.a = a.data();
    p.b = b.data();
    p.c = c.data();
    REQUIRE(graft_multiply(&p, GRAFT_EMU) == GRAFT_OK);
    return emu::heuristic_calls();
  };
  const int first = run(dense(GRAFT_N, GRAFT_T, 5, 23, 29));
  CHECK(run(dense(GRAFT_N, GRAFT_T, 64, 23, 29)) == first);
  CHECK(run(dense(GRAFT_N, GRAFT_T, 1, 23, 29)) == first);
  CHECK(run(dense(GRAFT_N, GRAFT_T, 1, 23, 30)) == first + 1);
  // A sum over tokens: one algorithm for m and n.
  const int sum = run(dense(GRAFT_T, GRAFT_N, 23, 29, 5));
  CHECK(run(dense(GRAFT_T, GRAFT_N, 23, 29, 64)) == sum);
  CHECK(run(dense(GRAFT_T, GRAFT_T, 23, 29, 5)) == sum + 1);
}

TEST_CASE("cublaslt: the emulated one counts the tiles of a large result in its workspace",
          "[kernels][emu]") {
  const cublasLtMatmulAlgo_t whole{1, CUBLASLT_REDUCTION_SCHEME_NONE, 0};
  const int64_t m = 257, n = 256;  // one element row above kWaveElements
  const Columns a(m, 1, 1), b(1, n, 2);
  Columns d(m, n, 3);
  cublasLtMatmulDescOpaque_t product{CUBLAS_OP_N, CUBLAS_OP_N};
  auto a_layout = a.layout(), b_layout = b.layout(), d_layout = d.layout();
  cublasLtMatmulHeuristicResult_t result{};
  REQUIRE(cublasLtMatmulAlgoCheck(nullptr, &product, &a_layout, &b_layout, &d_layout, &d_layout,
                                  &whole, &result) == CUBLAS_STATUS_SUCCESS);
  CHECK(result.workspaceSize == 4);
  auto small = d_layout;
  small.rows = 256;
  REQUIRE(cublasLtMatmulAlgoCheck(nullptr, &product, &a_layout, &b_layout, &small, &small, &whole,
                                  &result) == CUBLAS_STATUS_SUCCESS);
  CHECK(result.workspaceSize == 0);
  const float alpha = 1.0f, beta = 0.0f;
  uint32_t counter = 0;
  const auto run = [&](void* workspace, size_t bytes) {
    return cublasLtMatmul(nullptr, &product, &alpha, a.values.data(), &a_layout, b.values.data(),
                          &b_layout, &beta, d.values.data(), &d_layout, d.values.data(), &d_layout,
                          &whole, workspace, bytes, nullptr);
  };
  CHECK(run(nullptr, sizeof counter) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(run(&counter, sizeof counter - 1) == CUBLAS_STATUS_INVALID_VALUE);
  REQUIRE(run(&counter, sizeof counter) == CUBLAS_STATUS_SUCCESS);
  CHECK(counter == 1);
}

TEST_CASE("multiply: large results have a workspace for each stream, allocated once",
          "[kernels][emu]") {
  const int64_t m = 1025, n = 64, k = 3;
  REQUIRE(static_cast<uint64_t>(m * n) > emu::kWaveElements);
  const std::vector<float> a = random_floats(m * k, 1), b = random_floats(n * k, 2);
  const auto run = [&](int64_t rows, graft_device device, graft_stream stream) {
    graft_product p = dense(GRAFT_N, GRAFT_T, rows, n, k);
    p.a = a.data();
    p.b = b.data();
    std::vector<float> c(at(rows * n));
    p.c = c.data();
    REQUIRE(graft_multiply(&p, device, stream) == GRAFT_OK);
    return c;
  };
  int first = 0, second = 0;  // their addresses stand for streams
  const std::vector<float> expected = run(m, GRAFT_CPU, nullptr);
  CHECK(same_bits(run(m, GRAFT_EMU, &first), expected));
  const void* const of_first = emu::last_workspace();
  REQUIRE(of_first != nullptr);
  CHECK(same_bits(run(m, GRAFT_EMU, &second), expected));
  CHECK(emu::last_workspace() != of_first);
  CHECK(same_bits(run(m, GRAFT_EMU, &first), expected));
  CHECK(emu::last_workspace() == of_first);
  // The algorithm is the same for few rows, which count nothing.
  CHECK(same_bits(run(7, GRAFT_EMU, &first), {expected.begin(), expected.begin() + 7 * n}));
}

TEST_CASE("multiply_chain: the bits of its products in turn, for any number of threads",
          "[kernels][gemm]") {
  struct Case {
    int64_t m, n;
    std::array<int64_t, 3> k;
  };
  // Edges of tiles and chains; one with a product of nothing; one that is cut into tasks.
  const Case c = GENERATE(Case{1, 1, {1, 1, 1}}, Case{13, 33, {300, 16, 0}},
                          Case{150, 530, {260, 8, 256}}, Case{7, 17, {0, 3, 5}});
  const graft_float_type type = GENERATE(GRAFT_F32, GRAFT_BF16);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const int64_t deepest = *std::max_element(c.k.begin(), c.k.end());
  const auto a = random_floats(c.m * deepest, 1), b = random_floats(c.n * deepest, 2);
  const auto a16 = narrow(a), b16 = narrow(b);
  const auto before = random_floats(c.m * c.n, 3);
  std::array<graft_product, 3> products;
  for (size_t i = 0; i < 3; ++i) {
    const bool last = i == 2;
    products[i] = dense(last ? GRAFT_T : GRAFT_N, last ? GRAFT_N : GRAFT_T, c.m, c.n, c.k[i]);
    products[i].alpha = i == 1 ? 0.5f : 1.0f;
    products[i].beta = 1.0f;
    // The middle one is an adapter's: float32 whatever the others are.
    products[i].type = i == 1 ? GRAFT_F32 : type;
    const bool wide = products[i].type == GRAFT_F32;
    products[i].a = wide ? static_cast<const void*>(a.data()) : a16.data();
    products[i].b = wide ? static_cast<const void*>(b.data()) : b16.data();
  }
  Guarded<float> in_turn(before);
  for (graft_product p : products) {
    p.c = in_turn.data();
    REQUIRE(graft_multiply(&p) == GRAFT_OK);
  }
  CHECK(same_bits(same_everywhere([&] {
                    Guarded<float> out(before);
                    for (graft_product& p : products) p.c = out.data();
                    REQUIRE(graft_multiply_chain(products.data(), 3, device) == GRAFT_OK);
                    REQUIRE(out.intact());
                    return out.values();
                  }),
                  in_turn.values()));
}

TEST_CASE("multiply: an array of its own is added as C would be, and stays as it is",
          "[kernels][gemm][bf16]") {
  struct Case {
    int64_t m, n, k;
  };
  const Case c = GENERATE(Case{1, 1, 1}, Case{13, 33, 300}, Case{7, 17, 0});
  const graft_float_type type = GENERATE(GRAFT_F32, GRAFT_BF16);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const float beta = GENERATE(0.0f, 1.0f, 0.5f);
  const auto a = random_floats(c.m * c.k, 1), b = random_floats(c.n * c.k, 2);
  const auto a16 = narrow(a), b16 = narrow(b);
  const auto added = random_floats(c.m * (c.n + 3), 3);
  graft_product p = dense(GRAFT_N, GRAFT_T, c.m, c.n, c.k);
  p.type = type;
  p.beta = beta;
  p.a = type == GRAFT_F32 ? static_cast<const void*>(a.data()) : a16.data();
  p.b = type == GRAFT_F32 ? static_cast<const void*>(b.data()) : b16.data();
  std::vector<float> in_place(at(c.m * c.n));
  for (int64_t row = 0; row < c.m; ++row) {
    std::copy_n(added.begin() + row * (c.n + 3), c.n, in_place.begin() + row * c.n);
  }
  p.c = in_place.data();
  REQUIRE(graft_multiply(&p) == GRAFT_OK);
  // What C held is not read.
  Guarded<float> out(std::vector<float>(in_place.size(), NAN)), kept(added);
  p.c = out.data();
  REQUIRE(graft_multiply_add(&p, kept.data(), c.n + 3, device) == GRAFT_OK);
  REQUIRE((out.intact() && kept.intact()));
  CHECK(same_bits(out.values(), in_place));
  CHECK(same_bits(kept.values(), added));
}

TEST_CASE("multiply: bfloat16 sums are the same for a transposed A and few columns",
          "[kernels][gemm][bf16]") {
  struct Case {
    int64_t m, n, k;
  };
  // More than one task of columns of A, more than one chain, odd depths; rows for several threads.
  const Case c = GENERATE(Case{300, 17, 700}, Case{64, 16, 33}, Case{777, 48, 130}, Case{5, 1, 9});
  const float beta = GENERATE(0.0f, 1.0f, 0.5f), alpha = GENERATE(1.0f, 0.75f);
  const graft_transpose tb = GENERATE(GRAFT_N, GRAFT_T);
  const auto a = narrow(random_floats(c.m * c.k, 1)), b = narrow(random_floats(c.n * c.k, 2));
  std::vector<uint16_t> turned(a.size());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t p = 0; p < c.k; ++p) turned[at(p * c.m + i)] = a[at(i * c.k + p)];
  }
  const auto before = random_floats(c.m * c.n, 3);
  const auto product = [&](graft_transpose ta) {
    graft_product p = dense(ta, tb, c.m, c.n, c.k);
    p.type = GRAFT_BF16;
    p.alpha = alpha;
    p.beta = beta;
    return same_everywhere([&] {
      Guarded<uint16_t> rows(ta == GRAFT_N ? a : turned), other(b);
      Guarded<float> out(before);
      p.a = rows.data();
      p.b = other.data();
      p.c = out.data();
      REQUIRE(graft_multiply(&p) == GRAFT_OK);
      REQUIRE(out.intact());
      return out.values();
    });
  };
  const std::vector<float> plain = product(GRAFT_N);
  CHECK(same_bits(product(GRAFT_T), plain));
}

TEST_CASE("multiply_chain: products of another C are refused", "[kernels][gemm]") {
  float x[4] = {}, c[4] = {1, 2, 3, 4};
  std::array<graft_product, 2> products;
  products.fill(dense(GRAFT_N, GRAFT_N, 2, 2, 1));
  for (graft_product& p : products) {
    p.a = p.b = x;
    p.c = c;
  }
  CHECK(graft_multiply_chain(products.data(), 0) == GRAFT_OK);
  CHECK(graft_multiply_chain(nullptr, 1) == GRAFT_BAD_ARGUMENT);
  products[1].n = 1;
  CHECK(graft_multiply_chain(products.data(), 2) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("product 1 has another C") != std::string::npos);
  CHECK(c[0] == 1.0f);
}

TEST_CASE("multiply: wrong arguments are named", "[kernels][gemm]") {
  float x[4] = {};
  graft_product p = dense(GRAFT_N, GRAFT_N, 2, 2, 1);
  p.a = p.b = x;
  p.c = x;
  p.lda = 0;
  CHECK(graft_multiply(&p) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("lda is 0, expected at least 1") != std::string::npos);
  p.lda = 1;
  float c[4] = {};
  p.c = c;
  CHECK(graft_multiply_add(&p, x, 1) == GRAFT_BAD_SHAPE);
  CHECK(std::string(graft_last_error()).find("ldd is 1, expected at least 2") != std::string::npos);
  CHECK(graft_multiply_add(&p, nullptr, 2) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_multiply_add(&p, c, 2) == GRAFT_BAD_ARGUMENT);
  p.c_type = GRAFT_BF16;
  CHECK(graft_multiply(&p) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("c_type is 1") != std::string::npos);
  p.c_type = GRAFT_F32;
  p.type = GRAFT_F16;
  CHECK(graft_multiply(&p) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_multiply(nullptr) == GRAFT_BAD_ARGUMENT);
}
