// adapter_config.json: which settings are read, which mean nothing here, which are refused.
#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "adapters/pattern.h"
#include "adapters/peft.h"
#include "core/error.h"

namespace graft::adapters {
namespace {

constexpr int64_t kMaxRank = 65536;

enum class Meaning {
  kRead,     // by parse_adapter_config
  kIgnored,  // says nothing about the weights that the file holds
  kNeutral,  // refused unless null, false, empty or the neutral word
};

struct Setting {
  std::string_view name;
  Meaning meaning;
  std::string_view neutral_word = "";
};

// The fields of PEFT 0.21's LoraConfig. One that is not here is refused unless it is empty.
constexpr std::array kSettings = {
    Setting{"alpha_pattern", Meaning::kRead},
    Setting{"auto_mapping", Meaning::kIgnored},
    Setting{"base_model_name_or_path", Meaning::kRead},
    Setting{"bias", Meaning::kNeutral, "none"},
    Setting{"ensure_weight_tying", Meaning::kRead},
    Setting{"exclude_modules", Meaning::kIgnored},
    Setting{"inference_mode", Meaning::kIgnored},
    Setting{"init_lora_weights", Meaning::kRead},
    Setting{"layers_pattern", Meaning::kIgnored},
    Setting{"layers_to_transform", Meaning::kIgnored},
    Setting{"lora_alpha", Meaning::kRead},
    Setting{"lora_dropout", Meaning::kRead},
    Setting{"megatron_core", Meaning::kIgnored},
    Setting{"modules_to_save", Meaning::kRead},
    Setting{"peft_type", Meaning::kRead},
    Setting{"peft_version", Meaning::kIgnored},
    Setting{"qalora_group_size", Meaning::kIgnored},
    Setting{"r", Meaning::kRead},
    Setting{"rank_pattern", Meaning::kRead},
    Setting{"revision", Meaning::kIgnored},
    Setting{"runtime_config", Meaning::kIgnored},
    Setting{"target_modules", Meaning::kRead},
    Setting{"target_parameters", Meaning::kIgnored},
    Setting{"task_type", Meaning::kIgnored},
    Setting{"trainable_token_indices", Meaning::kRead},
    Setting{"use_dora", Meaning::kRead},
    Setting{"use_rslora", Meaning::kRead},
};

std::string place(const Json& value, std::string_view key) {
  return "adapter_config.json:" + std::to_string(value.mark().line) + ": " + std::string(key);
}

bool is_empty(const Json& value) {
  return value.is_null() || (value.is_bool() && !value.as_bool()) ||
         ((value.is_array() || value.is_object()) && value.size() == 0);
}

void check_setting(const std::string& key, const Json& value) {
  const auto* known = std::find_if(kSettings.begin(), kSettings.end(),
                                   [&](const Setting& setting) { return setting.name == key; });
  if (known != kSettings.end() && known->meaning != Meaning::kNeutral) return;
  if (is_empty(value)) return;
  if (known != kSettings.end() && value.is_string() && value.as_string() == known->neutral_word) {
    return;
  }
  fail(ExitCode::kData,
       "adapter setting \"" + key + "\" is " + dump_json(value) +
           ", expected it to be off: it is not supported",
       place(value, key), "merge the adapter with PEFT, or train it without this setting");
}

// Initialisations that change the base weights: their A and B belong to another base.
void check_initialisation(const Json& value) {
  if (value.is_bool() || value.is_null()) return;
  static const std::set<std::string_view> kHarmless = {"gaussian", "eva", "orthogonal"};
  if (value.is_string() && kHarmless.count(value.as_string()) != 0) return;
  fail(ExitCode::kData,
       "init_lora_weights is " + dump_json(value) + ", which changes the base weights at load",
       place(value, "init_lora_weights"),
       "convert the adapter to plain LoRA (PEFT: path_initial_model_for_weight_conversion)");
}

int64_t read_rank(const Json& value, std::string_view key) {
  if (!value.is_int() || value.as_int() < 1 || value.as_int() > kMaxRank) {
    fail(ExitCode::kData,
         "rank must be in 1.." + std::to_string(kMaxRank) + ", got " + dump_json(value),
         place(value, key));
  }
  return value.as_int();
}

double read_alpha(const Json& value, std::string_view key) {
  if (!value.is_number() || !std::isfinite(value.as_double())) {
    fail(ExitCode::kData, "alpha must be a finite number, got " + dump_json(value),
         place(value, key));
  }
  return value.as_double();
}

template <class Value, class Read>
Patterns<Value> read_patterns(const Json& config, std::string_view key, const Read& read) {
  Patterns<Value> patterns;
  const Json* object = config.find(key);
  if (object == nullptr || object->is_null()) return patterns;
  for (const auto& [pattern, value] : object->as_object()) {
    patterns.emplace_back(pattern, read(value, std::string(key) + "." + pattern));
  }
  return patterns;
}

std::vector<int64_t> read_ids(const Json& list, const std::string& key) {
  constexpr int64_t kMostTokens = int64_t{1} << 31;
  std::vector<int64_t> ids;
  for (const Json& id : list.as_array()) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() >= kMostTokens) {
      fail(ExitCode::kData, "expected a token's id, got " + dump_json(id), place(list, key));
    }
    ids.push_back(id.as_int());
  }
  std::vector<int64_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    fail(ExitCode::kData, "token " + std::to_string(*twice) + " is named twice", place(list, key));
  }
  return ids;
}

// {table: [id, …]}, or a list of ids of the embedding.
std::vector<std::pair<std::string, std::vector<int64_t>>> read_token_indices(const Json& config) {
  const std::string key = "trainable_token_indices";
  const Json* value = config.find(key);
  std::vector<std::pair<std::string, std::vector<int64_t>>> indices;
  if (value == nullptr || value->is_null()) return indices;
  if (value->is_array()) {
    indices.emplace_back("embed_tokens", read_ids(*value, key));
    return indices;
  }
  for (const auto& [table, ids] : value->as_object()) {
    indices.emplace_back(table, read_ids(ids, key + "." + table));
  }
  return indices;
}

template <class Value>
Value value_for(const Patterns<Value>& patterns, std::string_view module, Value fallback) {
  for (const auto& [pattern, value] : patterns) {
    const ModulePattern expression(pattern, ModulePattern::Form::kEnd, ExitCode::kData,
                                   "adapter_config.json");
    if (expression.matches(module)) return value;
  }
  return fallback;
}

}  // namespace

int64_t AdapterSpec::rank_of(std::string_view module) const {
  return value_for(rank_pattern, module, r);
}

double AdapterSpec::scale_of(std::string_view module) const {
  const double rank = static_cast<double>(rank_of(module));
  const double alpha = value_for(alpha_pattern, module, lora_alpha);
  return use_rslora ? alpha / std::sqrt(rank) : alpha / rank;
}

AdapterSpec parse_adapter_config(const Json& config) {
  for (const auto& [key, value] : config.as_object()) check_setting(key, value);
  const std::string& type = config.at("peft_type").as_string();
  if (type != "LORA") {
    fail(ExitCode::kData, "peft_type is \"" + type + "\", expected \"LORA\"",
         place(config.at("peft_type"), "peft_type"));
  }
  const Json* fan = config.find("fan_in_fan_out");
  if (fan != nullptr) check_setting("fan_in_fan_out", *fan);
  if (const Json* init = config.find("init_lora_weights")) check_initialisation(*init);

  AdapterSpec spec;
  spec.r = read_rank(config.at("r"), "r");
  spec.lora_alpha = read_alpha(config.at("lora_alpha"), "lora_alpha");
  const Json* targets = config.find("target_modules");
  if (targets != nullptr && targets->is_string()) {
    spec.target_modules = {targets->as_string()};
    spec.target_is_pattern = true;
  } else if (targets != nullptr && !targets->is_null()) {
    for (const Json& name : targets->as_array()) spec.target_modules.push_back(name.as_string());
    std::sort(spec.target_modules.begin(), spec.target_modules.end());
  }
  const auto flag = [&](const char* key) {
    const Json* value = config.find(key);
    return value != nullptr && !value->is_null() && value->as_bool();
  };
  spec.use_rslora = flag("use_rslora");
  spec.use_dora = flag("use_dora");
  spec.ensure_weight_tying = flag("ensure_weight_tying");
  const Json* saved = config.find("modules_to_save");
  if (saved != nullptr && !saved->is_null()) {
    for (const Json& name : saved->as_array()) spec.modules_to_save.push_back(name.as_string());
    std::sort(spec.modules_to_save.begin(), spec.modules_to_save.end());
  }
  spec.rank_pattern = read_patterns<int64_t>(config, "rank_pattern", read_rank);
  spec.alpha_pattern = read_patterns<double>(config, "alpha_pattern", read_alpha);
  spec.trainable_token_indices = read_token_indices(config);
  const Json* dropout = config.find("lora_dropout");
  if (dropout != nullptr && dropout->is_number()) spec.lora_dropout = dropout->as_double();
  const Json* base = config.find("base_model_name_or_path");
  if (base != nullptr && base->is_string()) spec.base_model_name_or_path = base->as_string();
  return spec;
}

}  // namespace graft::adapters
