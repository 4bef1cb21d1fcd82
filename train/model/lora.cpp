#include "train/model/lora.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// "q_proj" of "self_attn.q_proj".
std::string_view short_name(Projection projection) {
  const std::string_view name = projection_name(projection);
  return name.substr(name.find('.') + 1);
}

bool is_target(const LoraSettings& settings, Projection projection) {
  return std::any_of(settings.targets.begin(), settings.targets.end(), [&](const auto& target) {
    return target == "all-linear" || target == short_name(projection);
  });
}

void check_targets(const LoraSettings& settings) {
  std::vector<std::string_view> known = {"all-linear"};
  for (int p = 0; p < kProjections; ++p) {
    known.push_back(short_name(static_cast<Projection>(p)));
  }
  for (const std::string& target : settings.targets) {
    if (std::find(known.begin(), known.end(), target) == known.end()) {
      fail(ExitCode::kUsage, unknown_name("linear", target, known), "lora_target_modules",
           "name linears of the model, or all-linear");
    }
  }
  if (settings.targets.empty()) {
    fail(ExitCode::kUsage, "no linear is targeted", "lora_target_modules",
         "set it to all-linear or a list of names");
  }
}

}  // namespace

float lora_scale(const LoraSettings& settings) {
  const auto rank = static_cast<double>(settings.rank);
  return static_cast<float>(settings.alpha / (settings.rslora ? std::sqrt(rank) : rank));
}

void add_lora(Model& model, const LoraSettings& settings, uint64_t seed) {
  check_targets(settings);
  for (Layer& layer : model.layers) {
    for (int p = 0; p < kProjections; ++p) {
      if (!is_target(settings, static_cast<Projection>(p))) {
        continue;
      }
      Linear& linear = layer.linears[static_cast<size_t>(p)];
      Lora& lora = linear.lora;
      lora.rank = settings.rank;
      lora.scale = lora_scale(settings);
      lora.dropout = static_cast<float>(settings.dropout);
      lora.a = empty_f32({lora.rank, linear.in});
      lora.b = zeros_f32({linear.out, lora.rank});
      lora.grad_a = zeros_f32({lora.rank, linear.in});
      lora.grad_b = zeros_f32({linear.out, lora.rank});
      const std::string name_a = linear.name + ".lora_A.weight";
      const float bound = 1.0F / std::sqrt(static_cast<float>(linear.in));
      const Philox random(seed, xxh3_64(name_a));
      float* values = f32(lora.a);
      for (int64_t i = 0; i < lora.a.numel(); ++i) {
        values[i] = bound * (2.0F * random.uniform(static_cast<uint64_t>(i)) - 1.0F);
      }
      model.trained.push_back({name_a, lora.a, lora.grad_a, true});
      model.trained.push_back({linear.name + ".lora_B.weight", lora.b, lora.grad_b, true});
    }
  }
}

}  // namespace graft::train
