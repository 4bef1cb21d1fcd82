#include "tests/train/roundings.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "core/hash.h"
#include "train/engine/tensor.h"

namespace graft::test {

std::vector<at::Tensor> gradients_of(const train::Model& model) {
  std::vector<at::Tensor> gradients;
  for (const train::Parameter& parameter : model.trained) {
    gradients.push_back(parameter.grad.to(at::kDouble));
  }
  return gradients;
}

std::vector<at::Tensor> gradients_of(const ReferenceResult& result) {
  std::vector<at::Tensor> gradients;
  for (const auto& [name, gradient] : result.gradients) gradients.push_back(gradient);
  return gradients;
}

double distance(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]).pow(2).sum().item<double>();
    size += b[i].pow(2).sum().item<double>();
  }
  return std::sqrt(difference / size);
}

double flip_share(const train::Model& model) {
  const train::ModelConfig& config = model.config;
  int64_t terms = std::max({config.vocab_size, config.hidden_size, config.q_width()});
  for (const train::LayerConfig& layer : config.layers) {
    terms = std::max(terms, layer.intermediate_size);
  }
  return std::sqrt(12.0 * static_cast<double>(terms + 2) * 0x1p-15);
}

at::Tensor random_values(at::IntArrayRef shape, uint64_t stream) {
  at::Tensor values = at::empty(shape, at::kFloat);
  const Philox random(3, stream);
  for (int64_t i = 0; i < values.numel(); ++i) {
    train::f32(values)[i] = static_cast<float>(random.normal(static_cast<uint64_t>(i)));
  }
  return values;
}

at::Tensor rounded(const at::Tensor& x) {
  return x.to(at::kBFloat16).to(at::kDouble);
}

at::Tensor sum_bound(int64_t terms, const at::Tensor& magnitude) {
  const double k = static_cast<double>(terms + 2) * 0x1p-24;
  return magnitude * (k / (1 - k)) + 1e-30;
}

double share_of_bound(const at::Tensor& got, const at::Tensor& expected, const at::Tensor& bound) {
  return ((got.to(at::kDouble) - expected).abs() / bound).max().item<double>();
}

}  // namespace graft::test
