#include "train/engine/rotation.h"

#include <algorithm>

#include "kernels/rope.h"
#include "train/engine/tensor.h"

namespace graft::train {

bool same_rotation(const ModelConfig& config, int64_t length, int64_t other_length) {
  for (const RopeConfig& rope : config.ropes) {
    if (rope_length_class(rope, length) != rope_length_class(rope, other_length)) return false;
  }
  return true;
}

Rotation::Rotation(const ModelConfig& config, int64_t max_tokens, Buffers& buffers) {
  for (const RopeConfig& rope : config.ropes) {
    Table table;
    table.rope = rope;
    table.cos = buffers.f32(max_tokens * (rope.rotary_dim / 2));
    table.sin = buffers.f32(max_tokens * (rope.rotary_dim / 2));
    tables_.push_back(std::move(table));
  }
}

void Rotation::fill(Table& table, const Batch& batch, float* cos, float* sin) const {
  const int64_t half = table.rope.rotary_dim / 2;
  // Neighbours with the same frequencies are one call.
  int64_t begin = 0;
  for (int64_t document = 0; document < batch.documents(); ++document) {
    const auto at = static_cast<size_t>(document);
    const int64_t length = batch.text_length[at];
    const int64_t length_class = rope_length_class(table.rope, length);
    if (length_class != table.length_class) {
      table.frequencies = rope_frequencies(table.rope, length);
      table.length_class = length_class;
    }
    const bool last = document + 1 == batch.documents();
    if (!last && rope_length_class(table.rope, batch.text_length[at + 1]) == length_class) {
      continue;
    }
    const int64_t end = batch.cu_seqlens[at + 1];
    check(graft_rope_tables(batch.positions.data() + begin, end - begin, table.frequencies.data(),
                            half, static_cast<float>(table.rope.cos_sin_scale), cos + begin * half,
                            sin + begin * half));
    begin = end;
  }
}

void Rotation::prepare(const Batch& batch, const Device& device) {
  if (device.is_host()) {
    for (Table& table : tables_) fill(table, batch, table.cos, table.sin);
    return;
  }
  if (batch.positions == positions_ && batch.text_length == text_length_) return;
  positions_ = batch.positions;
  text_length_ = batch.text_length;
  for (Table& table : tables_) {
    const auto count = static_cast<size_t>(batch.tokens() * (table.rope.rotary_dim / 2));
    cos_.resize(std::max(cos_.size(), count));
    sin_.resize(std::max(sin_.size(), count));
    fill(table, batch, cos_.data(), sin_.data());
    device.copy(table.cos, cos_.data(), count * sizeof(float));
    device.copy(table.sin, sin_.data(), count * sizeof(float));
  }
}

void Rotation::forget() {
  positions_.clear();
  text_length_.clear();
}

const float* Rotation::cos(int index) const {
  return tables_[static_cast<size_t>(index)].cos;
}

const float* Rotation::sin(int index) const {
  return tables_[static_cast<size_t>(index)].sin;
}

int64_t Rotation::rotary_dim(int index) const {
  return tables_[static_cast<size_t>(index)].rope.rotary_dim;
}

}  // namespace graft::train
