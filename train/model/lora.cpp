#include "train/model/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "adapters/peft.h"
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

void load_adapter(Model& model, const std::string& directory) {
  const adapters::Adapter adapter = adapters::read_peft(directory);
  std::map<std::string_view, Linear*> by_name;
  std::vector<std::string_view> names;
  for (Layer& layer : model.layers) {
    for (Linear& linear : layer.linears) {
      by_name[linear.name] = &linear;
      names.push_back(linear.name);
    }
  }
  for (const adapters::AdapterModule& module : adapter.modules) {
    const auto found = by_name.find(module.name);
    if (found == by_name.end()) {
      const std::string near = nearest_name(module.name, names);
      fail(ExitCode::kData, "the model has no linear \"" + module.name + "\"", directory,
           near.empty() ? "use the base that the adapter was trained on"
                        : "the nearest name there is \"" + near + "\"");
    }
    Linear& linear = *found->second;
    if (module.in != linear.in || module.out != linear.out) {
      fail(ExitCode::kData,
           "the adapter is for a linear of [" + std::to_string(module.out) + ", " +
               std::to_string(module.in) + "], the model's is [" + std::to_string(linear.out) +
               ", " + std::to_string(linear.in) + "]",
           directory + ": " + module.name, "use the base that the adapter was trained on");
    }
    linear.lora.rank = module.rank;
    linear.lora.scale = static_cast<float>(module.scale);
    linear.lora.a = empty_f32({module.rank, module.in});
    linear.lora.b = empty_f32({module.out, module.rank});
    std::memcpy(linear.lora.a.data_ptr(), module.a.data(), linear.lora.a.nbytes());
    std::memcpy(linear.lora.b.data_ptr(), module.b.data(), linear.lora.b.nbytes());
  }
}

std::string save_adapter(const Model& model,
                         const LoraSettings& settings,
                         const std::string& base_name,
                         const std::string& directory) {
  adapters::AdapterSpec spec;
  spec.r = settings.rank;
  spec.lora_alpha = settings.alpha;
  spec.use_rslora = settings.rslora;
  spec.lora_dropout = settings.dropout;
  spec.base_model_name_or_path = base_name;
  for (int p = 0; p < kProjections; ++p) {
    if (is_target(settings, static_cast<Projection>(p))) {
      spec.target_modules.emplace_back(short_name(static_cast<Projection>(p)));
    }
  }
  std::sort(spec.target_modules.begin(), spec.target_modules.end());
  std::vector<adapters::AdapterTensors> modules;
  for (const Layer& layer : model.layers) {
    for (const Linear& linear : layer.linears) {
      if (linear.lora.rank > 0) {
        modules.push_back({linear.name, linear.in, linear.out, linear.lora.rank, f32(linear.lora.a),
                           f32(linear.lora.b)});
      }
    }
  }
  // Merging has to know which weights the adapter was trained on.
  return adapters::write_peft(directory, spec, modules,
                              {{"base_quantization", model.quantized() ? "nf4" : "none"}});
}

}  // namespace graft::train
