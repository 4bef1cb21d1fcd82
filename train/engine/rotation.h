// Cosines and sines of a batch's positions, one table for each rotation of the model.
#pragma once

#include <cstdint>
#include <vector>

#include "train/engine/arena.h"
#include "train/engine/batch.h"
#include "train/engine/device.h"
#include "train/model/config.h"

namespace graft::train {

// Whether texts of these two lengths turn alike, so that keys of one can serve the other.
bool same_rotation(const ModelConfig& config, int64_t length, int64_t other_length);

class Rotation {
 public:
  Rotation(const ModelConfig& config, int64_t max_tokens, Buffers& buffers);

  // Fills the tables. Each document turns as its own text's length says, whatever stands beside it:
  // packed documents equal separate ones (transformers takes the longest of a batch for all).
  void prepare(const Batch& batch, const Device& device);
  // The tables have been overwritten.
  void forget();

  // [tokens, rotary_dim / 2] of rotation `index` (LayerConfig::rope).
  const float* cos(int index) const;
  const float* sin(int index) const;
  int64_t rotary_dim(int index) const;

 private:
  struct Table {
    RopeConfig rope;
    float* cos = nullptr;
    float* sin = nullptr;
    int64_t length_class = -1;  // of the frequencies at hand
    std::vector<float> frequencies;
  };
  void fill(Table& table, const Batch& batch, float* cos, float* sin) const;

  std::vector<Table> tables_;
  // Of a device with memory of its own: a table's values on their way there, and what the tables
  // there were made of.
  std::vector<float> cos_, sin_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> text_length_;
};

}  // namespace graft::train
