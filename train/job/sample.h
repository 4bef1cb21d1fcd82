// The first documents of a config's data, as a step would take them: enough to try an engine on,
// whatever the size of the files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text/mask.h"
#include "train/engine/arrangement.h"
#include "train/job/config.h"
#include "train/job/dataset.h"

namespace graft::train {

struct Sample {
  std::vector<data::Document> documents;  // those with something trained
  int64_t records = 0;                    // that were looked at
  int64_t refused = 0;                    // documents
  int64_t tokens = 0;                     // of the documents, whole
  int64_t supervised = 0;
  int64_t turns = 0;  // trained ones
  int64_t turns_without_stop = 0;
  std::string first_refusal;  // "data.jsonl:3: nothing_trained: …"
};

// Of the first `most_records` records of each dataset. Errors: kIo, kUsage (records need a template
// and the model has none); a bad record is counted as refused.
Sample read_sample(const TrainConfig& config, const ModelText& text, int64_t most_records);

// `count` packed rows of two documents each, every one cut to `row_tokens / 2` tokens around its
// first trained one, in turn and again from the first where the sample has too few. All weights
// together count 1. The sample must have a document and outlive the rows.
StepRows sample_rows(const Sample& sample, size_t count, int64_t row_tokens);

// The first documents of the sample, cut likewise, in one row; only document `trained` has anything
// trained, or all of them when it is -1.
Batch sample_row(const Sample& sample, size_t documents, int64_t row_tokens, int64_t trained = -1);

}  // namespace graft::train
