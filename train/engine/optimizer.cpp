#include "train/engine/optimizer.h"

#include <algorithm>
#include <cmath>
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

int64_t tile_count(int64_t count) {
  return (count + GRAFT_SQUARES_TILE - 1) / GRAFT_SQUARES_TILE;
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
  if (parameters.empty()) return;
  device_ = place_of(parameters[0].value);
  if (!device_.is_host() && type == MomentType::kFloat32) {
    int64_t tiles = 0;
    for (const Parameter& parameter : parameters) {
      add_on_device(parameter);
      tiles += tile_count(parameter.value.numel());
    }
    tiles_.resize(static_cast<size_t>(tiles));
    result_ = empty_on(device_, at::kFloat, {2});
    workspace_ = empty_on(device_, at::kDouble, {tiles});
    return;
  }
  for (const Parameter& parameter : parameters) {
    if (device_.is_host()) {
      add_on_host(parameter, type);
      continue;
    }
    mirrors_.push_back(parameter);
    mirrors_.back().value = empty_on({}, at::kFloat, parameter.value.sizes());
    mirrors_.back().grad = empty_on({}, at::kFloat, parameter.value.sizes());
    add_on_host(mirrors_.back(), type);
  }
}

void AdamW::add_on_host(const Parameter& parameter, MomentType type) {
  const int64_t count = parameter.value.numel();
  graft_adamw_tensor tensor{};
  tensor.param = f32(parameter.value);
  tensor.grad = f32(parameter.grad);
  tensor.count = count;
  if (in_8_bits(type, count)) {
    const auto codes = [&](const char* name) {
      return add_state(name + parameter.name, zeros_on({}, at::kByte, {count})).data_ptr<uint8_t>();
    };
    tensor.m8 = codes("m8.");
    tensor.v8 = codes("v8.");
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

void AdamW::add_on_device(const Parameter& parameter) {
  const at::IntArrayRef shape = parameter.value.sizes();
  graft_adamw_part part{};
  part.param = f32(parameter.value);
  part.grad = f32(parameter.grad);
  part.m = f32(add_state("m." + parameter.name, zeros_on(device_, at::kFloat, shape)));
  part.v = f32(add_state("v." + parameter.name, zeros_on(device_, at::kFloat, shape)));
  part.count = parameter.value.numel();
  parts_.push_back(part);
}

at::Tensor AdamW::add_state(const std::string& name, at::Tensor zeros) {
  state_.push_back({name, zeros});
  return zeros;
}

void AdamW::zero_gradients() {
  for (const Parameter& parameter : parameters_) {
    device_.zero(parameter.grad.data_ptr(), parameter.grad.nbytes());
  }
}

bool AdamW::add_squares(std::span<const double> squares, StepResult& result) const {
  double sum = 0;
  for (size_t i = 0; i < squares.size(); ++i) {
    if (!std::isfinite(squares[i])) {
      // The sum of squares in double of finite float32 values cannot overflow.
      result.skipped = true;
      result.not_finite = "the gradient of " + parameters_[i].name;
      return false;
    }
    sum += squares[i];
  }
  result.grad_norm = std::sqrt(sum);
  if (std::isfinite(static_cast<float>(result.grad_norm))) return true;
  result.skipped = true;
  result.not_finite = "the norm of the gradients";
  return false;
}

StepResult AdamW::step(const OptimizerSettings& settings, double learning_rate, double loss) {
  StepResult result;
  if (!std::isfinite(loss)) {
    result.skipped = true;
    result.not_finite = "the loss";
    return result;
  }
  graft_adamw options{};
  options.beta1 = static_cast<float>(settings.beta1);
  options.beta2 = static_cast<float>(settings.beta2);
  options.eps = static_cast<float>(settings.epsilon);
  options.step = step_count_ + 1;
  options.grad_scale = 1;
  if (parts_.empty()) {
    update_on_host(options, settings, learning_rate, result);
  } else {
    update_on_device(options, settings, learning_rate, result);
  }
  if (!result.skipped) ++step_count_;
  return result;
}

void AdamW::update_on_host(graft_adamw options,
                           const OptimizerSettings& settings,
                           double learning_rate,
                           StepResult& result) {
  for (size_t i = 0; i < mirrors_.size(); ++i) {
    copy_values(mirrors_[i].grad, parameters_[i].grad);
    copy_values(mirrors_[i].value, parameters_[i].value);
  }
  const std::vector<Parameter>& parameters = mirrors_.empty() ? parameters_ : mirrors_;
  squares_.resize(parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& grad = parameters[i].grad;
    check(graft_sum_squares(f32(grad), grad.numel(), &squares_[i]));
  }
  if (!add_squares(squares_, result)) return;
  // In float32, as a device's kernel takes it.
  const auto most = static_cast<double>(static_cast<float>(settings.max_grad_norm));
  const bool clips = most > 0 && result.grad_norm > most;
  if (clips) options.grad_scale = static_cast<float>(most / result.grad_norm);
  for (const Group& group : groups_) {
    options.lr = static_cast<float>(learning_rate * static_cast<double>(group.lr_factor));
    options.weight_decay = group.decays ? static_cast<float>(settings.weight_decay) : 0.0F;
    check(graft_adamw_step_all(group.tensors.data(), static_cast<int64_t>(group.tensors.size()),
                               &options, GRAFT_MAP_LOG2));
  }
  for (size_t i = 0; i < mirrors_.size(); ++i) {
    copy_values(parameters_[i].value, mirrors_[i].value);
  }
}

void AdamW::update_on_device(const graft_adamw& options,
                             const OptimizerSettings& settings,
                             double learning_rate,
                             StepResult& result) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    parts_[i].lr = static_cast<float>(learning_rate * static_cast<double>(parameter.lr_factor));
    parts_[i].weight_decay = parameter.decays ? static_cast<float>(settings.weight_decay) : 0.0F;
  }
  // Nothing is changed where the norm is not finite; the host learns of it afterwards.
  check(graft_adamw_parts_step(parts_.data(), static_cast<int64_t>(parts_.size()), &options,
                               static_cast<float>(settings.max_grad_norm), f32(result_),
                               workspace_.data_ptr(), workspace_.nbytes(), device_.kind,
                               device_.stream));
  device_.copy(tiles_.data(), workspace_.data_ptr(), workspace_.nbytes());
  device_.wait();
  squares_.assign(parts_.size(), 0);
  const double* tile = tiles_.data();
  for (size_t i = 0; i < parts_.size(); ++i) {
    for (int64_t left = tile_count(parts_[i].count); left > 0; --left) squares_[i] += *tile++;
  }
  add_squares(squares_, result);
}

}  // namespace graft::train
