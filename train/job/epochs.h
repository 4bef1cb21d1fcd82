// Which packed rows each optimizer step trains on: a pure function of (store, datasets, seed).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/text/mix.h"
#include "data/text/packing.h"
#include "data/text/token_store.h"
#include "train/job/config.h"

namespace graft::train {

class EpochPlan {
 public:
  // `store` holds config.datasets' files in their order and must outlive the plan.
  // Errors: kUsage, kData as data::mix.
  EpochPlan(const data::TokenStore& store, const TrainConfig& config);

  struct Step {
    int64_t epoch = 0;
    int64_t first_row = 0;  // of the epoch's rows: [first_row, last_row)
    int64_t last_row = 0;
    double epochs_done = 0;  // after this step
    bool ends_epoch = false;
  };
  // Step 0, 1, …; makes the epoch's rows the current ones.
  Step at(int64_t step);
  // Rows of the epoch of the last at(); their documents are those of the store.
  int64_t row_count() const { return rows_.size(); }
  std::vector<data::PackedRow> rows(int64_t first, int64_t last) const;
  // Optimizer steps in so many epochs, at least 1; a broken epoch is rounded up.
  int64_t steps_in(double epochs);

  // What an epoch takes of each dataset.
  struct Share {
    std::string path;
    int64_t documents = 0;   // that the store holds
    int64_t supervised = 0;  // tokens that the store holds
    int64_t supervised_in_epoch = 0;
  };
  std::vector<Share> shares() const;

 private:
  void load_epoch(int64_t epoch);
  int64_t steps_of_epoch(int64_t epoch);

  const data::TokenStore& store_;
  int64_t sequence_len_;
  int64_t rows_per_step_;
  uint64_t seed_;
  bool is_steady_ = true;                // every epoch has the same documents, so as many rows
  std::vector<int64_t> first_document_;  // of each dataset, in the store; one more
  std::vector<std::vector<uint32_t>> supervised_;  // tokens of the documents of each dataset
  std::vector<data::MixSource> sources_;
  std::vector<int64_t> steps_;    // of the epochs looked at so far; of epoch 0 alone when steady
  int64_t epoch_ = -1;            // whose rows are loaded
  std::vector<uint32_t> chosen_;  // the epoch's documents
  data::PackedRows rows_;         // of places in chosen_
};

}  // namespace graft::train
