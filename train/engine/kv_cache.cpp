#include "train/engine/kv_cache.h"

#include "train/engine/rotation.h"
#include "train/engine/tensor.h"

namespace graft::train {

KvCache::KvCache(const ModelConfig& config, int64_t max_positions, const Device& device)
    : device_(device), width_(config.kv_width()), max_positions_(max_positions) {
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    keys_.push_back(empty_on(device, at::kFloat, {max_positions, width_}));
    values_.push_back(empty_on(device, at::kFloat, {max_positions, width_}));
  }
}

bool KvCache::serves(const ModelConfig& config, int64_t length) const {
  return positions_ > 0 && same_rotation(config, positions_, length);
}

void KvCache::append(size_t layer, const float* keys, const float* values, int64_t tokens) {
  const auto bytes = static_cast<size_t>(tokens * width_) * sizeof(float);
  device_.copy(f32(keys_[layer]) + positions_ * width_, keys, bytes);
  device_.copy(f32(values_[layer]) + positions_ * width_, values, bytes);
}

const float* KvCache::keys(size_t layer) const {
  return f32(keys_[layer]);
}

const float* KvCache::values(size_t layer) const {
  return f32(values_[layer]);
}

}  // namespace graft::train
