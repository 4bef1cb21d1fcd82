// A training run from its config to its exported files, resumable at any moment.
//
//   output_dir/
//     run.json        resolved config, digests of what went in, status and summary
//     data/           token stores
//     tokenizer/      with new_tokens: the base's with them
//     checkpoints/    see train/job/checkpoint.h
//     metrics.jsonl   one line a logged step and one an evaluation
//     adapter/        PEFT files (adapter: lora, qlora)   or   model/ (adapter: none)
//     report.html
#pragma once

#include <string>

#include "core/json.h"
#include "train/job/config.h"

namespace graft::train {

struct RunOptions {
  // "auto": go on from the newest checkpoint of the same run; "none": start anew and refuse a
  // directory that holds a run; else the directory of a run whose checkpoint to start from.
  std::string resume = "auto";
};

struct RunResult {
  int exit_code = 0;  // 0, or 75 when a signal ended the run after saving
  Json summary;
};

// Errors: kUsage (another run in output_dir), kData, kIo, kNumeric.
RunResult run_training(const TrainConfig& config, const RunOptions& options);

}  // namespace graft::train
