// The oracle of the engine: the same decoder in plain ATen operators, differentiated by autograd.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tests/support/support.h"
#include "train/engine/batch.h"
#include "train/engine/plan.h"
#include "train/model/model.h"
#include "train/model/weights.h"

namespace graft::test {

using Leaves = std::vector<std::pair<std::string, at::Tensor>>;

struct ReferenceResult {
  at::Tensor logits;  // [T, V]
  double loss = 0;    // sum of weight * -log p, times scale
  Leaves gradients;   // by parameter name, as in Model::trained
  // To first order, how much the loss changes where each operand of the frozen products (x and W of
  // linears and head), or each embedding, changes by one part of itself: sum |dL/dy| |x| |W|^T over
  // products, sum |dL/de| |e|. Everything must be trained, else gradients do not reach it.
  double product_sensitivity = 0;
  double embedding_sensitivity = 0;
  // Likewise where each value that a narrow model rounds changes by one part of itself: sum |dL/dx|
  // |x|. Of a model that need not be narrow; embeddings and weights are taken as they are.
  double narrow_sensitivity = 0;
  std::vector<at::Tensor> router_probabilities;  // [T, experts] of each document and its blocks
};

// Runs every document on its own (so packing itself is checked) in `dtype`, with the model's
// weights converted. With a dropout seed the adapters' inputs are multiplied by the masks of the
// kernel, laid out from the batch's token_index: what is kept is asked of the kernel, where the
// mask belongs in the maths is not. Operands of linears and of a head that take bfloat16 are
// rounded to it, x on the way forward and dy on the way back; sums stay in `dtype`. Of a narrow
// model (dense, not extended yet) everything is rounded that is there.
ReferenceResult reference(const train::Model& model,
                          const train::Batch& batch,
                          double scale,
                          at::ScalarType dtype,
                          uint64_t dropout_seed = 0);

// A small Llama with two query heads a key head, and a batch of several documents.
std::string write_tiny_config(const std::string& directory, bool tied);

// A small model of each family, with everything that its table row and its config.json can switch
// on: the members of a config.json beside the sizes.
struct TinyFamily {
  const char* name;
  const char* config;
};
std::span<const TinyFamily> tiny_families();
const TinyFamily& tiny_family(std::string_view name);
std::string write_family_config(const std::string& directory,
                                const TinyFamily& family,
                                int layers = 3);

// Fresh weights whose norms and biases are not trivial, so that a missing one shows.
std::unique_ptr<train::Model> make_rough_model(const std::string& directory, uint64_t seed);

// A family's rough model on disk.
class RoughBase {
 public:
  explicit RoughBase(const TinyFamily& family, int layers = 3);
  explicit RoughBase(std::string_view family) : RoughBase(tiny_family(family)) {}
  std::string path() const { return dir_.file("base"); }
  std::string file(const std::string& name) const { return dir_.file(name); }
  std::unique_ptr<train::Model> load(graft_float_type operands,
                                     train::Precision precision = train::Precision::kFull,
                                     const std::vector<std::string>& trained = {}) const;

 private:
  TempDir dir_;
};

// Pairs that are far from their beginning, B too; magnitudes stay.
void spread_pairs(train::Model& model);

// Everything kept, and what is not in use filled with NaN, so that a read of it fails the test.
train::StepPlan poisoned(const train::Model& model, int64_t tokens, train::Keep keep);

train::Batch tiny_batch(int64_t vocab_size, std::vector<int64_t> lengths, uint64_t seed);

}  // namespace graft::test
