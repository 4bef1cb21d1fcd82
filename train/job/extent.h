// How much of a model `graft doctor` takes: the first blocks, as many as its checks can afford.
#pragma once

#include <cstdint>
#include <memory>

#include "train/engine/planner.h"
#include "train/job/config.h"
#include "train/model/config.h"
#include "train/model/model.h"

namespace graft::train {

struct Extent {
  ModelConfig config;   // of the blocks that are taken
  int64_t layers = 0;   // of the whole model
  PlanRequest request;  // of a step of the checks
};

// `asked` blocks of `whole` (read_vocabulary), or with 0 as many of the first as make about a
// minute or two of checks and fit the memory with everything kept and every weight decoded; at
// least those that the adapter names. The checks compute `rows` rows of at most `most_row_tokens`
// tokens. Errors: kUsage (more blocks than there are; an adapter that does not fit the model),
// kDevice (too little memory for the least).
Extent choose_extent(const TrainConfig& config,
                     const ModelConfig& whole,
                     int64_t asked,
                     int64_t rows,
                     int64_t most_row_tokens);

// Those blocks with embeddings, final norm and head, without an adapter.
std::unique_ptr<Model> load_extent(const TrainConfig& config, const Extent& extent);

}  // namespace graft::train
