// AdamW over the trained parameters, the learning-rate schedule and clipping.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/model/model.h"

namespace graft::train {

enum class Schedule { kCosine, kLinear, kConstant };

struct OptimizerSettings {
  double learning_rate = 2e-4;
  Schedule schedule = Schedule::kCosine;
  double min_lr_ratio = 0;   // the cosine and the line end at this share of the learning rate
  int64_t warmup_steps = 0;  // linear from 0
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;   // of matrices; norms are never decayed
  double max_grad_norm = 1;  // 0 = no clipping
};

// The rate of step `step` (0-based) of `total`: a pure function, so that a resume needs no state.
double learning_rate_at(const OptimizerSettings& settings, int64_t step, int64_t total);

struct StepResult {
  double grad_norm = 0;    // before clipping
  bool skipped = false;    // the loss or a gradient was not finite: nothing was changed
  std::string not_finite;  // "the loss", or "the gradient of NAME", the first such tensor
};

class AdamW {
 public:
  explicit AdamW(std::vector<Parameter>& parameters);

  void zero_gradients();
  // One update of all parameters with step counter + 1. Deterministic for any thread count. `loss`
  // is the step's: it may be infinite where no gradient is.
  StepResult step(const OptimizerSettings& settings, double learning_rate, double loss);

  int64_t step_count() const { return step_count_; }
  void set_step_count(int64_t count) { step_count_ = count; }
  // First and second moments, in the parameters' order and shapes.
  std::vector<at::Tensor>& first_moments() { return first_moments_; }
  std::vector<at::Tensor>& second_moments() { return second_moments_; }

 private:
  std::vector<Parameter>& parameters_;
  std::vector<at::Tensor> first_moments_;
  std::vector<at::Tensor> second_moments_;
  int64_t step_count_ = 0;
};

}  // namespace graft::train
