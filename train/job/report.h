// report.html of a training run.
#pragma once

#include <string>

#include "core/json.h"
#include "train/job/config.h"

namespace graft::train {

// Reads <directory>/metrics.jsonl and writes <directory>/report.html: loss, learning rate and
// gradient norm by step, evaluations, files, the whole config. Errors: kIo, kData.
void write_training_report(const TrainConfig& config,
                           const std::string& directory,
                           const Json& summary);

}  // namespace graft::train
