#include "train/engine/batch.h"

namespace graft::train {

void Batch::clear() {
  ids.clear();
  positions.clear();
  cu_seqlens.assign(1, 0);
  row.clear();
  rows_begun_ = 0;
  text_length.clear();
  token_index.clear();
  predicting.clear();
  labels.clear();
  weights.clear();
  weight_sum = 0;
}

void Batch::set_single(int32_t id, int32_t position) {
  clear();
  ids.push_back(id);
  positions.push_back(position);
  row.push_back(0);
  token_index.push_back(position);
  cu_seqlens.push_back(1);
  text_length.push_back(int64_t{position} + 1);
}

void Batch::add(std::span<const int32_t> tokens,
                std::span<const uint8_t> loss,
                std::span<const float> loss_weights,
                int64_t first_index) {
  if (cu_seqlens.empty()) {
    cu_seqlens.push_back(0);
  }
  const auto first = static_cast<int32_t>(ids.size());
  for (size_t p = 0; p < tokens.size(); ++p) {
    ids.push_back(tokens[p]);
    positions.push_back(static_cast<int32_t>(p));
    row.push_back(rows_begun_);
    token_index.push_back(first_index + static_cast<int64_t>(p));
    const float weight = p + 1 < tokens.size() ? loss_weights[loss[p + 1]] : 0.0F;
    if (weight != 0) {
      predicting.push_back(first + static_cast<int32_t>(p));
      labels.push_back(tokens[p + 1]);
      weights.push_back(weight);
      weight_sum += static_cast<double>(weight);
    }
  }
  cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
  text_length.push_back(static_cast<int64_t>(tokens.size()));
}

void fill_batch(const data::TokenStore& store,
                std::span<const data::PackedRow> rows,
                int64_t first_slot,
                int64_t sequence_len,
                Batch& batch) {
  batch.clear();
  int64_t slot = first_slot;
  for (const data::PackedRow& row : rows) {
    batch.begin_row();
    int64_t index = slot * sequence_len;
    for (const int64_t document : row.documents) {
      batch.add(store.tokens(document), store.loss(document), store.weights(), index);
      index += store.length(document);
    }
    ++slot;
  }
}

double document_weight(const data::TokenStore& store, int64_t document) {
  const std::span<const uint8_t> loss = store.loss(document);
  double sum = 0;
  for (size_t p = 1; p < loss.size(); ++p) {
    sum += static_cast<double>(store.weights()[loss[p]]);
  }
  return sum;
}

}  // namespace graft::train
