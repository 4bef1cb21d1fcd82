// graft doctor: what the engine promises, tried on this machine and on the user's own model,
// adapter and data.
//
// Every check computes one small step of a few packed rows in two ways that may not differ. The
// first blocks of a large model stand for all of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/args.h"
#include "core/json.h"
#include "train/engine/arrangement.h"
#include "train/job/config.h"

namespace graft::train {

enum class Verdict { kPassed, kFailed, kSkipped };

struct DoctorCheck {
  std::string name;
  std::string compared;  // what with what
  Verdict verdict = Verdict::kPassed;
  std::string result;  // what was seen
  double seconds = 0;
};

// How doctor computes. A test puts a faulty one in its place and sees the check fail.
struct DoctorEngine {
  std::function<HeadResult(Model&, const StepRows&, const Arrangement&)> step = compute_step;
  std::function<std::vector<float>(Model&, const Batch&)> logits = last_logits;
  std::function<std::vector<float>(Model&, const Batch&, double scale)> input_gradient =
      train::input_gradient;
};

struct DoctorOptions {
  int64_t layers = 0;  // the first so many blocks; 0 = as many as the checks can afford
  DoctorEngine engine;
};

struct DoctorReport {
  std::vector<DoctorCheck> checks;
  std::string model;  // "blocks 0-3 of 32, 268,435,456 weights"
  bool passed() const;
};

// The checks of a config. Errors: those of the config, its model and its data, as `graft train`;
// kDevice when not even one block fits into max_memory, or into what is free.
DoctorReport run_checks(const TrainConfig& config, const DoctorOptions& options);

// graft doctor [CONFIG.yaml [key=value …]]: 0, or 1 when a check fails.
int run_doctor(const Args& args);

}  // namespace graft::train
