// The oracles' gradients against central differences in double precision.
#include <functional>
#include <numeric>

#include "kernels/oracle/oracle.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;
using oracle::Array;

namespace {

Array random_doubles(int64_t count, uint32_t seed) {
  return widen(random_floats(count, seed));
}

double dot(const Array& a, const Array& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// The largest difference between `gradient` and the central differences of loss over x. With a step
// of 1e-5, truncation is near 1e-10 and rounding near 1e-11 for functions and derivatives near 1.
double worst_difference(Array& x, const Array& gradient, const std::function<double()>& loss) {
  constexpr double kStep = 1e-5;
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + kStep;
    const double above = loss();
    x[i] = kept - kStep;
    const double below = loss();
    x[i] = kept;
    worst = std::max(worst, std::fabs((above - below) / (2.0 * kStep) - gradient[i]));
  }
  return worst;
}

constexpr double kTolerance = 1e-7;

}  // namespace

TEST_CASE("oracle: rmsnorm's gradients are its finite differences", "[kernels][oracle]") {
  Array x = random_doubles(3 * 7, 1), weight = random_doubles(7, 2);
  const Array dout = random_doubles(3 * 7, 3);
  const auto loss = [&] { return dot(dout, oracle::rmsnorm(x, weight, 1e-5, 3, 7).out); };
  const auto gradient = oracle::rmsnorm_gradient(dout, x, weight, 1e-5, 3, 7);
  CHECK(worst_difference(x, gradient.dx, loss) < kTolerance);
  CHECK(worst_difference(weight, gradient.dweight, loss) < kTolerance);
}

TEST_CASE("oracle: the inverse rotation is the gradient of rope", "[kernels][oracle]") {
  Array x = random_doubles(2 * 3 * 6, 1);
  const Array dout = random_doubles(2 * 3 * 6, 2);
  Array cos, sin;
  for (const double angle : random_doubles(2 * 3, 3)) {
    cos.push_back(std::cos(angle));
    sin.push_back(std::sin(angle));
  }
  const auto loss = [&] { return dot(dout, oracle::rope(x, 2, 3, 6, cos, sin, 1.0)); };
  CHECK(worst_difference(x, oracle::rope(dout, 2, 3, 6, cos, sin, -1.0), loss) < kTolerance);
}

TEST_CASE("oracle: swiglu's gradients are its finite differences", "[kernels][oracle]") {
  Array gate = random_doubles(20, 1), up = random_doubles(20, 2);
  const Array dout = random_doubles(20, 3);
  const auto loss = [&] { return dot(dout, oracle::swiglu(gate, up)); };
  const auto gradient = oracle::swiglu_gradient(dout, gate, up);
  CHECK(worst_difference(gate, gradient.dgate, loss) < kTolerance);
  CHECK(worst_difference(up, gradient.dup, loss) < kTolerance);
}

TEST_CASE("oracle: attention's gradients are its finite differences", "[kernels][oracle]") {
  const oracle::AttentionShape shape{5, 4, 2, 3, 0.6};
  Array q = random_doubles(5 * 4 * 3, 1), k = random_doubles(5 * 2 * 3, 2);
  Array v = random_doubles(5 * 2 * 3, 3);
  const Array dout = random_doubles(5 * 4 * 3, 4);
  const auto loss = [&] { return dot(dout, oracle::attention(shape, q, k, v).out); };
  const auto gradient = oracle::attention_gradient(shape, q, k, v, dout);
  CHECK(worst_difference(q, gradient.dq, loss) < kTolerance);
  CHECK(worst_difference(k, gradient.dk, loss) < kTolerance);
  CHECK(worst_difference(v, gradient.dv, loss) < kTolerance);
}

TEST_CASE("oracle: cross entropy's gradient is its finite difference", "[kernels][oracle]") {
  Array logits = random_doubles(3 * 6, 1);
  const Array weight = {1.0, 0.5, -2.0};
  const std::vector<int32_t> labels = {0, 5, 3};
  const auto loss = [&] {
    return 0.7 * dot(weight, oracle::cross_entropy(logits, labels, weight, 0.7, 6).row_loss);
  };
  const auto result = oracle::cross_entropy(logits, labels, weight, 0.7, 6);
  CHECK(worst_difference(logits, result.gradient, loss) < kTolerance);
}
