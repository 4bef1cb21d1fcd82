#include "train/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>

namespace graft::train {
namespace {

// theta^(2i/d), a float32 power of a float32 exponent: by the very function that transformers
// calls, because a last bit of a frequency, times the position, is far more than a last bit of an
// angle.
std::vector<float> powers(double theta, int64_t rotary_dim) {
  const at::Tensor exponents =
      at::arange(0, rotary_dim, 2, at::kFloat).div(static_cast<double>(rotary_dim));
  const at::Tensor values = at::pow(at::Scalar(theta), exponents);
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

std::vector<float> inverse(std::vector<float> values) {
  for (float& value : values) value = 1.0F / value;
  return values;
}

std::vector<float> llama3(const RopeConfig& rope) {
  const auto original = static_cast<float>(rope.original_positions);
  const auto low = static_cast<float>(rope.low_frequency);
  const auto high = static_cast<float>(rope.high_frequency);
  const auto factor = static_cast<float>(rope.factor);
  std::vector<float> frequencies = inverse(powers(rope.theta, rope.rotary_dim));
  for (float& frequency : frequencies) {
    const float wave = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wave > original / low) {
      frequency /= factor;
    } else if (!(wave < original / high)) {
      const float smooth = (original / wave - low) / (high - low);
      frequency = (1.0F - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return frequencies;
}

std::vector<float> dynamic(const RopeConfig& rope, int64_t text_length) {
  const auto most = static_cast<double>(rope.max_positions);
  const double length = std::max(static_cast<double>(text_length), most);
  const auto dim = static_cast<double>(rope.rotary_dim);
  const double stretch = rope.factor * length / most - (rope.factor - 1);
  return inverse(powers(rope.theta * std::pow(stretch, dim / (dim - 2)), rope.rotary_dim));
}

// The dimension that turns so many times over the original length.
double yarn_dimension(const RopeConfig& rope, double turns) {
  const auto length = static_cast<double>(rope.original_positions);
  return static_cast<double>(rope.rotary_dim) * std::log(length / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

std::vector<float> yarn(const RopeConfig& rope) {
  double low = yarn_dimension(rope, rope.beta_fast);
  double high = yarn_dimension(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.rotary_dim - 1));
  if (low == high) high += 0.001;
  const auto factor = static_cast<float>(rope.factor);
  std::vector<float> frequencies = powers(rope.theta, rope.rotary_dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float place =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1.0F - std::clamp(place, 0.0F, 1.0F);
    const float stretched = 1.0F / (factor * frequencies[i]);
    frequencies[i] = stretched * (1.0F - kept) + 1.0F / frequencies[i] * kept;
  }
  return frequencies;
}

std::vector<float> longrope(const RopeConfig& rope, int64_t text_length) {
  const std::vector<float>& factors =
      rope_length_class(rope, text_length) == 0 ? rope.short_factor : rope.long_factor;
  std::vector<float> frequencies = powers(rope.theta, rope.rotary_dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = 1.0F / (factors[i] * frequencies[i]);
  }
  return frequencies;
}

}  // namespace

int64_t rope_length_class(const RopeConfig& rope, int64_t text_length) {
  if (rope.type == RopeType::kDynamic) {
    return text_length > rope.max_positions ? text_length : 0;
  }
  return rope.type == RopeType::kLongrope && text_length > rope.original_positions ? 1 : 0;
}

std::vector<float> rope_frequencies(const RopeConfig& rope, int64_t text_length) {
  switch (rope.type) {
    case RopeType::kLlama3:
      return llama3(rope);
    case RopeType::kDynamic:
      return dynamic(rope, text_length);
    case RopeType::kYarn:
      return yarn(rope);
    case RopeType::kLongrope:
      return longrope(rope, text_length);
    case RopeType::kDefault:
    case RopeType::kLinear:
      break;
  }
  std::vector<float> frequencies = inverse(powers(rope.theta, rope.rotary_dim));
  if (rope.type == RopeType::kLinear) {
    for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
  }
  return frequencies;
}

}  // namespace graft::train
