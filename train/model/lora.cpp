#include "train/model/lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "adapters/fit.h"
#include "adapters/peft.h"
#include "core/error.h"
#include "core/hash.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// A linear's path in the model that transformers makes of the checkpoint, which is PEFT's name for
// it.
std::string module_path(const Model& model, const Linear& linear) {
  constexpr std::string_view kModel = "model.";
  return model.config.nested ? "model.language_model." + linear.name.substr(kModel.size())
                             : linear.name;
}

// "q_proj" of "model.layers.0.self_attn.q_proj".
std::string_view short_name(const Linear& linear) {
  return std::string_view(linear.name).substr(linear.name.rfind('.') + 1);
}

std::vector<std::string_view> short_names(const Model& model) {
  std::vector<std::string_view> names;
  for (const Linear* linear : model.linears()) {
    if (std::find(names.begin(), names.end(), short_name(*linear)) == names.end()) {
      names.push_back(short_name(*linear));
    }
  }
  return names;
}

constexpr std::string_view kAll = "all-linear";
constexpr std::string_view kPeftDefault = "peft-default";

// The short names that the settings target.
std::set<std::string_view> targeted_names(const Model& model, const LoraSettings& settings) {
  const std::vector<std::string_view> known = short_names(model);
  std::set<std::string_view> names;
  for (const std::string& target : settings.targets) {
    if (target == kAll) {
      names.insert(known.begin(), known.end());
    } else if (target == kPeftDefault) {
      std::string_view rest = model.config.family->peft_targets;
      if (rest.empty()) {
        fail(ExitCode::kUsage,
             "PEFT has no default targets for " + std::string(model.config.family->model_type),
             "lora_target_modules", "name linears of the model, or all-linear");
      }
      while (!rest.empty()) {
        const size_t end = std::min(rest.find(' '), rest.size());
        names.insert(rest.substr(0, end));
        rest.remove_prefix(std::min(end + 1, rest.size()));
      }
    } else if (const auto found = std::find(known.begin(), known.end(), target);
               found != known.end()) {
      names.insert(*found);
    } else {
      std::vector<std::string_view> all = {kAll, kPeftDefault};
      all.insert(all.end(), known.begin(), known.end());
      fail(ExitCode::kUsage, unknown_name("linear", target, all), "lora_target_modules",
           "name linears of the model, or all-linear");
    }
  }
  if (names.empty()) {
    fail(ExitCode::kUsage, "no linear is targeted", "lora_target_modules",
         "set it to all-linear or a list of names");
  }
  return names;
}

}  // namespace

float lora_scale(const LoraSettings& settings) {
  const auto rank = static_cast<double>(settings.rank);
  return static_cast<float>(settings.alpha / (settings.rslora ? std::sqrt(rank) : rank));
}

void add_lora(Model& model, const LoraSettings& settings, uint64_t seed) {
  const std::set<std::string_view> names = targeted_names(model, settings);
  for (Linear* const linear : model.linears()) {
    if (names.count(short_name(*linear)) == 0) continue;
    Lora& lora = linear->lora;
    lora.rank = settings.rank;
    lora.scale = lora_scale(settings);
    lora.dropout = static_cast<float>(settings.dropout);
    lora.a = empty_f32({lora.rank, linear->in});
    lora.b = zeros_f32({linear->out, lora.rank});
    lora.grad_a = zeros_f32({lora.rank, linear->in});
    lora.grad_b = zeros_f32({linear->out, lora.rank});
    const std::string name_a = linear->name + ".lora_A.weight";
    const float bound = 1.0F / std::sqrt(static_cast<float>(linear->in));
    const Philox random(seed, xxh3_64(name_a));
    float* values = f32(lora.a);
    for (int64_t i = 0; i < lora.a.numel(); ++i) {
      values[i] = bound * (2.0F * random.uniform(static_cast<uint64_t>(i)) - 1.0F);
    }
    model.trained.push_back({name_a, lora.a, lora.grad_a, true});
    model.trained.push_back({linear->name + ".lora_B.weight", lora.b, lora.grad_b, true});
  }
}

void load_adapter(Model& model, const std::string& directory) {
  std::map<std::string, Linear*, std::less<>> by_name;
  for (Linear* const linear : model.linears()) by_name[linear->name] = linear;
  const adapters::FindLinear find =
      [&](const std::string& name) -> std::optional<adapters::LinearShape> {
    const auto found = by_name.find(name);
    if (found == by_name.end()) return std::nullopt;
    return adapters::LinearShape{found->second->out, found->second->in};
  };
  const adapters::Adapter adapter =
      adapters::fit_adapter(adapters::read_peft(directory), find, directory);
  for (const adapters::AdapterModule& module : adapter.modules) {
    Linear& linear = *by_name.at(module.name);
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
  std::set<std::string_view> targets;
  std::vector<adapters::AdapterTensors> modules;
  for (const Linear* const linear : model.linears()) {
    const Lora& lora = linear->lora;
    if (lora.rank == 0) continue;
    targets.insert(short_name(*linear));
    modules.push_back({module_path(model, *linear), linear->in, linear->out, lora.rank, f32(lora.a),
                       f32(lora.b)});
  }
  spec.target_modules.assign(targets.begin(), targets.end());
  // Merging has to know which weights the adapter was trained on.
  return adapters::write_peft(directory, spec, modules,
                              {{"base_quantization", model.quantized() ? "nf4" : "none"}});
}

}  // namespace graft::train
