#include "train/engine/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "train/engine/tensor.h"

namespace graft::train {
namespace {

bool in_8_bits(MomentType type, int64_t count) {
  return type == MomentType::k8Bit && count >= GRAFT_ADAMW8_LEAST;
}

int64_t block_count(int64_t count) {
  return (count + GRAFT_ADAMW8_BLOCK - 1) / GRAFT_ADAMW8_BLOCK;
}

at::Tensor zeros_u8(int64_t count) {
  at::Tensor tensor = empty_u8(count);
  std::memset(tensor.data_ptr(), 0, tensor.nbytes());
  return tensor;
}

}  // namespace

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

int64_t moment_bytes(MomentType type, int64_t count) {
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  return in_8_bits(type, count) ? 2 * count + 2 * kFloat * block_count(count) : 2 * kFloat * count;
}

AdamW::AdamW(std::vector<Parameter>& parameters, MomentType type) : parameters_(parameters) {
  for (const Parameter& parameter : parameters) {
    const int64_t count = parameter.value.numel();
    graft_adamw_tensor tensor{};
    tensor.param = f32(parameter.value);
    tensor.grad = f32(parameter.grad);
    tensor.count = count;
    if (in_8_bits(type, count)) {
      tensor.m8 = add_state("m8." + parameter.name, zeros_u8(count)).data_ptr<uint8_t>();
      tensor.v8 = add_state("v8." + parameter.name, zeros_u8(count)).data_ptr<uint8_t>();
      const int64_t blocks = block_count(count);
      tensor.m_absmax = f32(add_state("m_absmax." + parameter.name, zeros_f32({blocks})));
      tensor.v_absmax = f32(add_state("v_absmax." + parameter.name, zeros_f32({blocks})));
    } else {
      const at::IntArrayRef shape = parameter.value.sizes();
      tensor.m = f32(add_state("m." + parameter.name, zeros_f32({count}).view(shape)));
      tensor.v = f32(add_state("v." + parameter.name, zeros_f32({count}).view(shape)));
    }
    auto group = std::find_if(groups_.begin(), groups_.end(), [&](const Group& one) {
      return one.lr_factor == parameter.lr_factor && one.decays == parameter.decays;
    });
    if (group == groups_.end()) {
      group = groups_.insert(group, {parameter.lr_factor, parameter.decays, {}});
    }
    group->tensors.push_back(tensor);
  }
}

at::Tensor AdamW::add_state(const std::string& name, at::Tensor zeros) {
  state_.push_back({name, zeros});
  return zeros;
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
  for (const Group& group : groups_) {
    options.lr = static_cast<float>(learning_rate * static_cast<double>(group.lr_factor));
    options.weight_decay = group.decays ? static_cast<float>(settings.weight_decay) : 0.0F;
    check(graft_adamw_step_all(group.tensors.data(), static_cast<int64_t>(group.tensors.size()),
                               &options, GRAFT_MAP_LOG2));
  }
  return result;
}

}  // namespace graft::train
