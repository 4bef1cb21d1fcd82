#include "train/model/dora.h"

#include <algorithm>
#include <cmath>

#include "train/engine/device.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// [rows, columns] = x y^T, of y with `inner` columns, where x and y lie.
at::Tensor product(const at::Tensor& x, const at::Tensor& y) {
  const Device device = place_of(x);
  const int64_t rows = x.size(0), columns = y.size(0), inner = x.size(1);
  at::Tensor result = empty_on(device, at::kFloat, {rows, columns});
  multiply(device, {GRAFT_N, GRAFT_T, rows, columns, inner, 1, f32(x), f32(y), 0, f32(result)});
  return result;
}

void keep_base_squares(Linear& linear) {
  const at::Tensor weight = on_host(weight_of(linear));
  linear.lora.base_squares = empty_f32({linear.out});
  for (int64_t row = 0; row < linear.out; ++row) {
    const float* const w = f32(weight) + row * linear.in;
    double sum = 0;
    for (int64_t i = 0; i < linear.in; ++i) {
      sum += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    }
    f32(linear.lora.base_squares)[row] = static_cast<float>(sum);
  }
}

// |row of W + scale * B A| of every row.
std::vector<double> norms(const Linear& linear) {
  const Lora& lora = linear.lora;
  const at::Tensor weight_a = on_host(product(weight_of(linear), lora.a));  // [out, r]
  const at::Tensor a_a = on_host(product(lora.a, lora.a));                  // [r, r]
  const at::Tensor values_b = on_host(lora.b);
  const auto rank = static_cast<size_t>(lora.rank);
  const auto scale = static_cast<double>(lora.scale);
  std::vector<double> result(static_cast<size_t>(linear.out));
  for (size_t row = 0; row < result.size(); ++row) {
    const float* const b = f32(values_b) + row * rank;
    const float* const wa = f32(weight_a) + row * rank;
    double cross = 0, square = 0;
    for (size_t i = 0; i < rank; ++i) {
      const auto b_i = static_cast<double>(b[i]);
      cross += b_i * static_cast<double>(wa[i]);
      double along = 0;
      for (size_t j = 0; j < rank; ++j) {
        along += static_cast<double>(f32(a_a)[i * rank + j]) * static_cast<double>(b[j]);
      }
      square += b_i * along;
    }
    const auto base = static_cast<double>(f32(lora.base_squares)[row]);
    result[row] = std::sqrt(std::max(0.0, base + 2 * scale * cross + scale * scale * square));
  }
  return result;
}

void refresh_gain(Lora& lora, const std::vector<double>& norm) {
  const at::Tensor magnitude = on_host(lora.magnitude);
  const auto rows = static_cast<int64_t>(norm.size());
  const at::Tensor gain = empty_f32({rows}), inverse_norm = empty_f32({rows});
  for (size_t row = 0; row < norm.size(); ++row) {
    // A row of zeros gives h = 0, whatever its gain.
    const double inverse = norm[row] > 0 ? 1 / norm[row] : 0;
    f32(inverse_norm)[row] = static_cast<float>(inverse);
    f32(gain)[row] = static_cast<float>(static_cast<double>(f32(magnitude)[row]) * inverse);
  }
  copy_values(lora.gain, gain);
  copy_values(lora.inverse_norm, inverse_norm);
}

void make_tensors(Linear& linear) {
  keep_base_squares(linear);
  linear.lora.magnitude = empty_f32({linear.out});
  linear.lora.inverse_norm = empty_f32({linear.out});
  linear.lora.gain = empty_f32({linear.out});
}

}  // namespace

void add_magnitude(Linear& linear) {
  make_tensors(linear);
  const std::vector<double> norm = norms(linear);
  std::transform(norm.begin(), norm.end(), f32(linear.lora.magnitude),
                 [](double value) { return static_cast<float>(value); });
  refresh_gain(linear.lora, norm);
}

void set_magnitude(Linear& linear, const float* values) {
  make_tensors(linear);
  std::copy_n(values, linear.out, f32(linear.lora.magnitude));
  refresh_gain(linear.lora, norms(linear));
}

void refresh_gains(Model& model) {
  for (Linear* const linear : model.linears()) {
    if (linear->lora.magnitude.defined()) refresh_gain(linear->lora, norms(*linear));
  }
}

}  // namespace graft::train
