// Numbers of transformers for one model directory, and how far graft is from them.
//
// golden.safetensors, as ../shared/tools/make_tiny_models.py and tests/golden/make_families.py
// write it: input_ids, labels (-100: not trained on; not shifted), logits, loss, hidden.N (0 the
// scaled embeddings, the last one after the final norm), grad.NAME; padded.*, packed.*, long.* and
// greedy.
#pragma once

#include <string>
#include <vector>

#include "train/engine/batch.h"
#include "train/model/config.h"

namespace graft::test {

// One comparison: the largest difference, relative to what the bound is relative to.
struct Difference {
  std::string what;  // "hidden state 1", "gradient of model.layers.0.mlp.up_proj.weight"
  double value = 0;
  double bound = 0;
  bool within() const { return value <= bound; }
};

struct GoldenResult {
  std::string model;
  std::vector<Difference> differences;  // in the order of the computation
  // The first difference beyond its bound, or "" when there is none.
  std::string first_failure() const;
  // The largest share of its bound among those whose name begins so; -1 when there are none.
  double worst(const std::string& prefix) const;
};

// Compares everything that the golden file has with what graft computes from `directory`, with this
// config or its own.
// Bounds: logits 2e-5 absolute; hidden states and gradients 1e-5 of their largest value; loss 1e-6
// of itself; greedy tokens equal.
GoldenResult compare_with_golden(const train::ModelConfig& config,
                                 const std::string& directory,
                                 const std::string& golden_path);
GoldenResult compare_with_golden(const std::string& directory, const std::string& golden_path);

// The supervised batch of a golden file, and the loss that transformers gives.
struct GoldenBatch {
  train::Batch batch;
  double loss = 0;
};
GoldenBatch golden_batch(const std::string& golden_path);

// "model  logits 0.12 hidden 0.03 ..." in shares of the bounds, with a line of headings.
std::string golden_table(const std::vector<GoldenResult>& results);

}  // namespace graft::test
