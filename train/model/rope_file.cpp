#include "train/model/rope_file.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace graft::train {
namespace {

struct TypeRow {
  std::string_view name;
  RopeType type;
  std::set<std::string_view> keys;  // beside rope_type, type, rope_theta, partial_rotary_factor
};

const TypeRow* find_type(std::string_view name) {
  static const TypeRow kTypes[] = {
      {"default", RopeType::kDefault, {}},
      {"linear", RopeType::kLinear, {"factor"}},
      {"llama3",
       RopeType::kLlama3,
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}},
      {"dynamic", RopeType::kDynamic, {"factor"}},
      {"yarn",
       RopeType::kYarn,
       {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "original_max_position_embeddings", "truncate"}},
      {"longrope",
       RopeType::kLongrope,
       {"factor", "attention_factor", "long_factor", "short_factor",
        "original_max_position_embeddings"}},
  };
  const auto* row = std::find_if(std::begin(kTypes), std::end(kTypes),
                                 [&](const TypeRow& one) { return one.name == name; });
  return row == std::end(kTypes) ? nullptr : row;
}

// One object of rotation parameters, or none.
class RopeReader {
 public:
  RopeReader(const ConfigFile& file,
             const ModelConfig& config,
             const Json* object,
             std::string name)
      : file_(file), config_(config), object_(object), name_(std::move(name)) {}

  RopeConfig read(double default_theta) {
    RopeConfig rope;
    const TypeRow& type = read_type();
    rope.type = type.type;
    check_keys(type);
    rope.theta = number("rope_theta", default_theta);
    rope.max_positions = config_.max_positions;
    rope.rotary_dim = rotary_dim();
    read_original_positions(rope);
    switch (rope.type) {
      case RopeType::kLinear:
      case RopeType::kDynamic:
        rope.factor = need_factor();
        break;
      case RopeType::kLlama3:
        read_llama3(rope);
        break;
      case RopeType::kYarn:
        read_yarn(rope);
        break;
      case RopeType::kLongrope:
        read_longrope(rope);
        break;
      case RopeType::kDefault:
        break;
    }
    if (rope.type == RopeType::kDynamic && rope.rotary_dim <= 2) {
      refuse("rope_type", "dynamic rotation needs more than two rotated elements");
    }
    return rope;
  }

 private:
  const Json* find(std::string_view key) const {
    const Json* value = object_ == nullptr ? nullptr : object_->find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  std::string full_name(std::string_view key) const { return name_ + "." + std::string(key); }
  [[noreturn]] void refuse(std::string_view key, const std::string& what) const {
    const Json* value = find(key);
    if (value == nullptr) value = object_;
    if (value == nullptr) file_.refuse(name_, what);
    file_.refuse_at(*value, full_name(key), what);
  }
  double number(std::string_view key, double fallback) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : file_.number_of(*value, full_name(key));
  }
  double need_factor() const {
    const double factor = number("factor", 0);
    if (factor < 1) refuse("factor", "factor must be a number of at least 1");
    return factor;
  }

  const TypeRow& read_type() const {
    const Json* value = find("rope_type");
    if (value == nullptr) value = find("type");
    std::string name = "default";
    if (value != nullptr) name = value->is_string() ? value->as_string() : dump_json(*value);
    // Phi 3 files call it "su", and "yarn" for a time.
    const bool only_longrope = file_.family().fused;
    if (only_longrope && (name == "su" || name == "yarn")) name = "longrope";
    const TypeRow* row = find_type(name);
    if (row == nullptr || (only_longrope && name != "default" && name != "longrope")) {
      refuse(find("rope_type") != nullptr ? "rope_type" : "type",
             "rotary scaling \"" + name + "\" is not supported" +
                 (only_longrope ? " for this family; known: default, longrope"
                                : "; known: default, linear, llama3, dynamic, yarn, longrope"));
    }
    return *row;
  }

  void check_keys(const TypeRow& type) const {
    if (object_ == nullptr) return;
    for (const auto& [key, value] : object_->as_object()) {
      const bool common = key == "rope_type" || key == "type" || key == "rope_theta" ||
                          key == "partial_rotary_factor";
      if (!common && type.keys.count(key) == 0 && !value.is_null()) {
        refuse(key, "rotary scaling \"" + std::string(type.name) + "\" has no \"" + key + "\"");
      }
    }
  }

  int64_t rotary_dim() const {
    double share = number("partial_rotary_factor", 1);
    if (file_.knows("partial_rotary_factor")) {
      if (find("partial_rotary_factor") == nullptr) share = file_.number("partial_rotary_factor");
    } else if (share != 1) {
      refuse("partial_rotary_factor",
             "partial rotation is not known for " + std::string(file_.family().model_type));
    }
    const auto dim = static_cast<int64_t>(static_cast<double>(config_.head_dim) * share);
    if (share > 1 || dim < 2 || dim % 2 != 0) {
      refuse("partial_rotary_factor", "an even number of elements of the " +
                                          std::to_string(config_.head_dim) +
                                          " of a head must turn, got " + std::to_string(dim));
    }
    return dim;
  }

  void read_original_positions(RopeConfig& rope) const {
    constexpr std::string_view kKey = "original_max_position_embeddings";
    // Phi 3 keeps it beside the other keys, and transformers prefers it there.
    if (file_.knows(kKey)) {
      rope.original_positions = file_.size(kKey, INT32_MAX);
    } else if (const Json* value = find(kKey)) {
      rope.original_positions = file_.size_of(*value, full_name(kKey), INT32_MAX);
    } else {
      rope.original_positions = config_.max_positions;
    }
  }

  void read_llama3(RopeConfig& rope) const {
    rope.factor = need_factor();
    rope.low_frequency = number("low_freq_factor", 0);
    rope.high_frequency = number("high_freq_factor", 0);
    if (!(rope.low_frequency > 0) || !(rope.high_frequency > rope.low_frequency)) {
      refuse("high_freq_factor",
             "llama3 scaling needs low_freq_factor above 0 and high_freq_factor above it");
    }
  }

  // How far the context was stretched, where `factor` does not say it.
  double factor_or_ratio(const RopeConfig& rope) const {
    const double ratio =
        static_cast<double>(config_.max_positions) / static_cast<double>(rope.original_positions);
    return number("factor", ratio);
  }

  void read_yarn(RopeConfig& rope) const {
    rope.factor = factor_or_ratio(rope);
    // "or": transformers takes the default for 0 as well, which number() refuses.
    rope.beta_fast = number("beta_fast", 32);
    rope.beta_slow = number("beta_slow", 1);
    if (const Json* truncate = find("truncate")) {
      if (!truncate->is_bool()) refuse("truncate", "truncate must be true or false");
      rope.truncate = truncate->as_bool();
    }
    const auto scale = [&](double by) {
      return rope.factor <= 1 ? 1.0 : 0.1 * by * std::log(rope.factor) + 1;
    };
    const double over = number("mscale", 0), under = number("mscale_all_dim", 0);
    const double inferred = over > 0 && under > 0 ? scale(over) / scale(under) : scale(1);
    rope.cos_sin_scale = number("attention_factor", inferred);
  }

  std::vector<float> factors(std::string_view key, int64_t count) const {
    const Json* list = find(key);
    if (list == nullptr || !list->is_array() || static_cast<int64_t>(list->size()) != count) {
      refuse(key, std::string(key) + " must be a list of " + std::to_string(count) + " numbers");
    }
    std::vector<float> values;
    for (const Json& value : list->as_array()) {
      values.push_back(static_cast<float>(file_.number_of(value, full_name(key))));
    }
    return values;
  }

  void read_longrope(RopeConfig& rope) const {
    rope.factor = factor_or_ratio(rope);
    const double inferred =
        rope.factor <= 1
            ? 1.0
            : std::sqrt(1 + std::log(rope.factor) /
                                std::log(static_cast<double>(rope.original_positions)));
    rope.cos_sin_scale = number("attention_factor", inferred);
    rope.short_factor = factors("short_factor", rope.rotary_dim / 2);
    rope.long_factor = factors("long_factor", rope.rotary_dim / 2);
  }

  const ConfigFile& file_;
  const ModelConfig& config_;
  const Json* object_;
  std::string name_;
};

// The object that holds the rotation of all layers, in either dialect; nullptr for none.
const Json* find_parameters(const ConfigFile& file, std::string& name) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = file.find(key);
    if (value == nullptr || (value->is_object() && value->size() == 0)) continue;
    name = key;
    if (!value->is_object()) file.refuse(key, name + " must be an object");
    return value;
  }
  name = "rope_theta";
  return nullptr;
}

// Gemma 3: full layers turn as rope_theta and rope_scaling say, or rope_parameters.full_attention;
// layers with a window as rope_local_base_freq says, or rope_parameters.sliding_attention.
void read_two_ropes(const ConfigFile& file, ModelConfig& config) {
  std::string name;
  const Json* parameters = find_parameters(file, name);
  const Json *full = parameters, *local = nullptr;
  std::string full_name = name, local_name = "rope_local_base_freq";
  if (name == "rope_parameters") {
    full = parameters->find("full_attention");
    local = parameters->find("sliding_attention");
    full_name = name + ".full_attention";
    local_name = name + ".sliding_attention";
    for (const auto& [key, value] : parameters->as_object()) {
      const bool known = key == "full_attention" || key == "sliding_attention";
      if (!known || !(value.is_object() || value.is_null())) {
        file.refuse_at(value, name + "." + key,
                       "rope_parameters of this family has the objects full_attention and "
                       "sliding_attention, got " +
                           key);
      }
    }
  }
  const auto object_or_null = [](const Json* value) {
    return value != nullptr && value->is_object() ? value : nullptr;
  };
  config.ropes.push_back(
      RopeReader(file, config, object_or_null(full), full_name).read(file.number("rope_theta")));
  config.ropes.push_back(RopeReader(file, config, object_or_null(local), local_name)
                             .read(file.number("rope_local_base_freq")));
}

}  // namespace

void read_ropes(const ConfigFile& file, ModelConfig& config) {
  if (file.family().local_rope) {
    read_two_ropes(file, config);
  } else {
    std::string name;
    const Json* parameters = find_parameters(file, name);
    config.ropes.push_back(
        RopeReader(file, config, parameters, name).read(file.number("rope_theta")));
  }
  for (const RopeConfig& rope : config.ropes) {
    const auto most = static_cast<double>(INT32_MAX);
    double reach = 0;
    if (rope.type == RopeType::kDynamic) {
      reach = rope.factor * static_cast<double>(rope.max_positions);
    } else if (rope.type == RopeType::kYarn) {
      reach = rope.factor * static_cast<double>(rope.original_positions);
    }
    config.max_positions =
        std::max(config.max_positions, static_cast<int64_t>(std::min(reach, most)));
  }
}

}  // namespace graft::train
