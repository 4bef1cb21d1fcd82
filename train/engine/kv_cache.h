// Keys and values of one text's positions so far, for generation.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/device.h"
#include "train/model/config.h"

namespace graft::train {

class KvCache {
 public:
  KvCache(const ModelConfig& config, int64_t max_positions, const Device& device = {});

  void clear() { positions_ = 0; }
  int64_t positions() const { return positions_; }
  int64_t max_positions() const { return max_positions_; }

  // Whether the keys at hand serve a text of `length`: where the rotation depends on the text's
  // length, a longer text turns all its keys anew. False for an empty cache that is to go on.
  bool serves(const ModelConfig& config, int64_t length) const;

  // Copies the keys (normed and rotated) and values [tokens, G E] behind those of the layer; they
  // count once advance() is called for all layers together.
  void append(size_t layer, const float* keys, const float* values, int64_t tokens);
  void advance(int64_t tokens) { positions_ += tokens; }

  const float* keys(size_t layer) const;  // [max_positions, G, E]
  const float* values(size_t layer) const;

 private:
  Device device_;
  int64_t width_;
  int64_t max_positions_;
  int64_t positions_ = 0;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;
};

}  // namespace graft::train
