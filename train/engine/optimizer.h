// AdamW over the trained parameters, the learning-rate schedule and clipping.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "kernels/adamw_parts.h"
#include "train/engine/device.h"
#include "train/model/model.h"

namespace graft::train {

enum class Schedule { kCosine, kLinear, kConstant };

enum class MomentType {
  kFloat32,
  k8Bit,  // 8-bit codes by blocks of 256, of tensors of 4,096 values and more (kernels/optimizer.h)
};
// As a config and --optimizer spell them.
constexpr std::array<std::string_view, 2> kOptimizerNames = {"adamw", "adamw_8bit"};

struct OptimizerSettings {
  MomentType moments = MomentType::kFloat32;
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
  double grad_norm = 0;  // before clipping
  bool skipped = false;  // the loss, a gradient or the norm was not finite: nothing was changed
  // "the loss", "the gradient of NAME", the first such tensor, or "the norm of the gradients" where
  // float32 cannot hold it.
  std::string not_finite;
};

// Bytes of the moments of a parameter of `count` values.
int64_t moment_bytes(MomentType type, int64_t count);

// Of parameters in a device's memory, float32 moments lie beside them. 8-bit moments lie on the
// host, where the update is then computed: gradients are copied there and parameters back.
class AdamW {
 public:
  explicit AdamW(std::vector<Parameter>& parameters, MomentType type = MomentType::kFloat32);

  void zero_gradients();
  // One update of all parameters with step counter + 1. Deterministic for any thread count. `loss`
  // is the step's: it may be infinite where no gradient is.
  StepResult step(const OptimizerSettings& settings, double learning_rate, double loss);

  int64_t step_count() const { return step_count_; }
  void set_step_count(int64_t count) { step_count_ = count; }

  // What a resume needs beside the parameters: for each, in order, "m." and "v." (float32, its
  // shape), or "m8.", "v8." (uint8) and "m_absmax.", "v_absmax." (float32).
  struct State {
    std::string name;
    at::Tensor tensor;
  };
  const std::vector<State>& state() const { return state_; }

 private:
  // Parameters with one learning rate and one decay: one call of the kernel.
  struct Group {
    float lr_factor = 1;
    bool decays = true;
    std::vector<graft_adamw_tensor> tensors;
  };

  at::Tensor add_state(const std::string& name, at::Tensor zeros);
  void add_on_host(const Parameter& parameter, MomentType type);
  void add_on_device(const Parameter& parameter);
  // The sum of squares of each gradient in `squares`; false when one, or the norm, is not finite.
  bool add_squares(std::span<const double> squares, StepResult& result) const;
  void update_on_host(graft_adamw options,
                      const OptimizerSettings& settings,
                      double learning_rate,
                      StepResult& result);
  void update_on_device(const graft_adamw& options,
                        const OptimizerSettings& settings,
                        double learning_rate,
                        StepResult& result);

  std::vector<Parameter>& parameters_;
  Device device_;
  std::vector<State> state_;
  int64_t step_count_ = 0;
  std::vector<double> squares_;  // of each gradient
  // An update on the host; `mirrors_` are copies of parameters that lie on a device.
  std::vector<Parameter> mirrors_;
  std::vector<Group> groups_;
  // One on the device.
  std::vector<graft_adamw_part> parts_;
  at::Tensor result_;     // [2] norm and factor
  at::Tensor workspace_;  // the squares of each tile of each gradient
  std::vector<double> tiles_;
};

}  // namespace graft::train
