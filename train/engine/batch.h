// Packed rows of a token store as the arrays that a step reads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/text/packing.h"
#include "data/text/token_store.h"

namespace graft::train {

// Documents one after another, no padding. Position p of a document predicts the token at p + 1;
// a prediction is supervised when that next token's loss weight is not 0.
struct Batch {
  std::vector<int32_t> ids;          // [tokens]
  std::vector<int32_t> positions;    // [tokens] place in the document
  std::vector<int32_t> cu_seqlens;   // [documents + 1]
  std::vector<int32_t> row;          // [tokens] number of the token's packed row in the batch
  std::vector<int64_t> text_length;  // [documents] of the whole text: more than the document's own
                                     // tokens when those before are in a cache
  std::vector<int64_t> token_index;  // [tokens] index in the whole step, whatever the micro-batch
  std::vector<int32_t> predicting;   // [supervised] token places whose next token is trained on
  std::vector<int32_t> labels;       // [supervised] that next token
  std::vector<float> weights;        // [supervised]
  double weight_sum = 0;

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
  int64_t supervised() const { return static_cast<int64_t>(labels.size()); }
  void clear();
  // The token at a position of a text whose tokens before it are in a cache, for generation.
  void set_single(int32_t id, int32_t position);
  // The next documents lie in a packed row of their own. Sums over tokens begin anew at each row
  // (for_packed_rows), so the rows decide the bits of gradients, not how many are computed at once.
  void begin_row() { ++rows_begun_; }
  // Appends one document; `first_index` is the token_index of its first token.
  void add(std::span<const int32_t> tokens,
           std::span<const uint8_t> loss,
           std::span<const float> loss_weights,
           int64_t first_index);

 private:
  int32_t rows_begun_ = 0;
};

// A batch's arrays as kernels read them: its own, or their copies in a device's memory.
struct BatchArrays {
  const int32_t* ids = nullptr;
  const int32_t* cu_seqlens = nullptr;
  const int64_t* token_index = nullptr;
  const int32_t* predicting = nullptr;
  const int32_t* labels = nullptr;
  const float* weights = nullptr;
};

// Calls body(first token, tokens) for each packed row, `row` being Batch::row or a part of it.
template <typename Body>
void for_packed_rows(const int32_t* row, int64_t tokens, const Body& body) {
  for (int64_t begin = 0, end = 0; begin < tokens; begin = end) {
    while (end < tokens && row[end] == row[begin]) ++end;
    body(begin, end - begin);
  }
}

// Fills `batch` with rows [begin, end) of `rows`. token_index counts row slots of `sequence_len`
// tokens from `first_slot`, so that it depends on the row's place in the step only.
void fill_batch(const data::TokenStore& store,
                std::span<const data::PackedRow> rows,
                int64_t first_slot,
                int64_t sequence_len,
                Batch& batch);

// Sum of the loss weights of a document's supervised predictions.
double document_weight(const data::TokenStore& store, int64_t document);

}  // namespace graft::train
