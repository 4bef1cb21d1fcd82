// The oracle of the engine: the same decoder in plain ATen operators, differentiated by autograd.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/batch.h"
#include "train/model/model.h"

namespace graft::test {

using Leaves = std::vector<std::pair<std::string, at::Tensor>>;

struct ReferenceResult {
  at::Tensor logits;  // [T, V]
  double loss = 0;    // sum of weight * -log p, times scale
  Leaves gradients;   // by parameter name, as in Model::trained
};

// Runs every document on its own (so packing itself is checked) in `dtype`, with the model's
// weights converted. With a dropout seed the adapters' inputs are multiplied by the masks of the
// kernel, laid out from the batch's token_index: what is kept is asked of the kernel, where the
// mask belongs in the maths is not.
ReferenceResult reference(const train::Model& model,
                          const train::Batch& batch,
                          double scale,
                          at::ScalarType dtype,
                          uint64_t dropout_seed = 0);

// A small random model with two query heads a key head, and a batch of several documents.
std::string write_tiny_config(const std::string& directory, bool tied);
train::Batch tiny_batch(int64_t vocab_size, std::vector<int64_t> lengths, uint64_t seed);

}  // namespace graft::test
