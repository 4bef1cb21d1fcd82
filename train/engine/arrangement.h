// One optimizer step's gradients, computed in a way of the caller's choice: what the tests of
// invariance and `graft doctor` compare with each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "train/engine/batch.h"
#include "train/engine/head.h"
#include "train/engine/plan.h"
#include "train/model/model.h"

namespace graft::train {

// The packed rows of a step.
struct StepRows {
  size_t count = 0;
  std::function<Batch(size_t first, size_t last)> batch;  // of rows [first, last)
  double scale = 1;                                       // of the loss: one for the whole step
  uint64_t dropout_seed = 0;                              // 0 = no dropout
};

// How they are computed. None of this may change a bit of the result.
struct Arrangement {
  size_t rows = 0;  // of a micro-batch; 0 = all at once
  int threads = 0;  // 0 = as set
  int64_t head_chunk = kHeadChain;
  std::vector<LayerPlan> layers = {};  // empty = everything is kept
  Device device = {};
};

// Zeroes the model's gradients and computes those of the rows; returns the sums of all
// micro-batches. What is not in use is filled with NaN, so that a read of it shows.
HeadResult compute_step(Model& model, const StepRows& rows, const Arrangement& how);

// The gradient of scale * loss by the residual stream that enters the first block, [T, D]. Adds to
// the model's gradients.
std::vector<float> input_gradient(Model& model, const Batch& batch, double scale);

// The logits of each document's last token, [documents, V], without dropout.
std::vector<float> last_logits(Model& model, const Batch& batch);

}  // namespace graft::train
