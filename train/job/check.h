// graft check: everything of a config that can be wrong, found in one run and before training.
//
// Config keys, model, weight files (their headers: no weight is read), tokenizer and template,
// every record of the data with what of it is trained, the linears that get an adapter, the memory
// plan, and the output directory. Each part is looked at as far as the parts before it allow.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/args.h"
#include "core/error.h"
#include "core/json.h"
#include "train/model/targets.h"

namespace graft::train {

enum class Severity {
  kError,    // training would end with this error
  kWarning,  // it would train, but perhaps not as it was meant
};

struct Finding {
  Severity severity = Severity::kError;
  std::string part;  // "config", "model", "weights", "text", "data", "mask", "adapter", "plan",
                     // "output"
  ErrorText text;
};

struct DataCounts {
  std::string file;
  int64_t records = 0;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t supervised = 0;
  int64_t longest = 0;  // document
  // Records, or documents of one, by why they are left out or looked at.
  std::vector<std::pair<std::string, int64_t>> by_rule;
};

struct CheckReport {
  std::vector<std::string> parts;    // that were looked at
  std::vector<std::string> skipped;  // that could not be
  std::vector<Finding> findings;
  std::vector<DataCounts> data;
  std::vector<Coverage> coverage;
  int64_t planned_bytes = 0;
  int64_t limit_bytes = 0;
  int64_t errors() const;
};

// Errors: those of report_config; kIo of the temporary directory. All else is a finding.
CheckReport check_config(const std::string& path, const std::vector<std::string>& overrides);

// graft check CONFIG.yaml [key=value …]: 0, or 1 when training would end with an error.
int run_check(const Args& args);

}  // namespace graft::train
