#include "train/engine/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "kernels/optimizer.h"
#include "train/engine/tensor.h"

namespace graft::train {

double learning_rate_at(const OptimizerSettings& settings, int64_t step, int64_t total) {
  if (step < settings.warmup_steps) {
    return settings.learning_rate * static_cast<double>(step + 1) /
           static_cast<double>(settings.warmup_steps);
  }
  if (settings.schedule == Schedule::kConstant) {
    return settings.learning_rate;
  }
  const auto span = static_cast<double>(std::max<int64_t>(total - settings.warmup_steps, 1));
  const double progress = std::min(static_cast<double>(step - settings.warmup_steps) / span, 1.0);
  const double share = settings.schedule == Schedule::kCosine
                           ? 0.5 * (1 + std::cos(std::numbers::pi * progress))
                           : 1 - progress;
  return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * share);
}

AdamW::AdamW(std::vector<Parameter>& parameters) : parameters_(parameters) {
  for (const Parameter& parameter : parameters) {
    first_moments_.push_back(zeros_f32({parameter.value.numel()}).view(parameter.value.sizes()));
    second_moments_.push_back(zeros_f32({parameter.value.numel()}).view(parameter.value.sizes()));
  }
}

void AdamW::zero_gradients() {
  for (const Parameter& parameter : parameters_) {
    std::memset(parameter.grad.data_ptr(), 0, parameter.grad.nbytes());
  }
}

StepResult AdamW::step(const OptimizerSettings& settings, double learning_rate, double loss) {
  StepResult result;
  if (!std::isfinite(loss)) {
    result.skipped = true;
    result.not_finite = "the loss";
    return result;
  }
  double sum = 0;
  for (const Parameter& parameter : parameters_) {
    double squares = 0;
    check(graft_sum_squares(f32(parameter.grad), parameter.grad.numel(), &squares));
    if (!std::isfinite(squares)) {
      // The sum of squares in double of finite float32 values cannot overflow.
      result.skipped = true;
      result.not_finite = "the gradient of " + parameter.name;
      return result;
    }
    sum += squares;
  }
  result.grad_norm = std::sqrt(sum);
  const bool clips = settings.max_grad_norm > 0 && result.grad_norm > settings.max_grad_norm;
  graft_adamw options{};
  options.beta1 = static_cast<float>(settings.beta1);
  options.beta2 = static_cast<float>(settings.beta2);
  options.eps = static_cast<float>(settings.epsilon);
  options.step = ++step_count_;
  options.grad_scale = clips ? static_cast<float>(settings.max_grad_norm / result.grad_norm) : 1.0F;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    options.lr = static_cast<float>(learning_rate * static_cast<double>(parameter.lr_factor));
    options.weight_decay = parameter.decays ? static_cast<float>(settings.weight_decay) : 0.0F;
    check(graft_adamw_step(f32(parameter.value), f32(parameter.grad), f32(first_moments_[i]),
                           f32(second_moments_[i]), parameter.value.numel(), &options));
  }
  return result;
}

}  // namespace graft::train
