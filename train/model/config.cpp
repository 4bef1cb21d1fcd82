#include "train/model/config.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace graft::train {
namespace {

// Keys that do not change what the forward pass computes.
constexpr std::string_view kHarmless[] = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "cross_attention_hidden_size",
    "attn_implementation",
    "_attn_implementation_autoset",
};
constexpr std::string_view kUsed[] = {
    "attention_bias",      "head_dim",
    "hidden_act",          "hidden_size",
    "intermediate_size",   "mlp_bias",
    "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps",
    "rope_parameters",     "rope_scaling",
    "rope_theta",          "tie_word_embeddings",
    "vocab_size",
};

template <size_t N>
bool contains(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

class ConfigFile {
 public:
  ConfigFile(const Json& tree, std::string path) : tree_(tree), path_(std::move(path)) {}

  [[noreturn]] void refuse(std::string_view key, const std::string& what) const {
    const Json* value = tree_.find(key);
    const Mark mark = value != nullptr ? value->mark() : Mark{1, 1};
    fail(ExitCode::kData, what,
         path_ + ":" + std::to_string(mark.line) + ":" + std::to_string(mark.column) + ": " +
             std::string(key),
         "use a model of the Llama architecture");
  }

  // `most` is far above any real model and keeps every product of sizes, over all layers, below
  // 2^63.
  int64_t size(std::string_view key, int64_t most, int64_t fallback = 0) const {
    const Json* value = tree_.find(key);
    if ((value == nullptr || value->is_null()) && fallback > 0) {
      return fallback;
    }
    if (value == nullptr || !value->is_int() || value->as_int() < 1 || value->as_int() > most) {
      refuse(key, std::string(key) + " must be an integer in 1.." + std::to_string(most));
    }
    return value->as_int();
  }

  double number(std::string_view key, double fallback) const {
    const Json* value = tree_.find(key);
    if (value == nullptr || value->is_null()) {
      return fallback;
    }
    if (!value->is_number() || !(value->as_double() > 0)) {
      refuse(key, std::string(key) + " must be a number above 0");
    }
    return value->as_double();
  }

  bool flag(std::string_view key, bool fallback) const {
    const Json* value = tree_.find(key);
    if (value == nullptr || value->is_null()) {
      return fallback;
    }
    if (!value->is_bool()) {
      refuse(key, std::string(key) + " must be true or false");
    }
    return value->as_bool();
  }

  std::string text(std::string_view key, std::string_view fallback) const {
    const Json* value = tree_.find(key);
    return value != nullptr && value->is_string() ? value->as_string() : std::string(fallback);
  }

  void refuse_unless(std::string_view key, bool accepted, const std::string& what) const {
    if (!accepted) {
      refuse(key, what);
    }
  }

 private:
  const Json& tree_;
  std::string path_;
};

double rope_theta(const Json& tree, const ConfigFile& file) {
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = tree.find(key);
    if (rope == nullptr || rope->is_null()) {
      continue;
    }
    for (const auto& [name, value] : rope->as_object()) {
      const bool type = name == "rope_type" || name == "type";
      if (type && value.is_string() && value.as_string() == "default") {
        continue;
      }
      if (key == "rope_parameters" && name == "rope_theta" && value.is_number()) {
        continue;
      }
      file.refuse(key,
                  "rotary scaling \"" + name + "\": " + dump_json(value) + " is not supported");
    }
  }
  const Json* parameters = tree.find("rope_parameters");
  if (parameters != nullptr && parameters->find("rope_theta") != nullptr) {
    const double theta = parameters->at("rope_theta").as_double();
    file.refuse_unless("rope_parameters", theta > 0, "rope_theta must be a number above 0");
    return theta;
  }
  return file.number("rope_theta", 10000.0);
}

}  // namespace

int64_t ModelConfig::parameter_count() const {
  const int64_t attention = hidden_size * (2 * q_width() + 2 * kv_width());
  const int64_t mlp = 3 * hidden_size * intermediate_size;
  const int64_t embeddings = (tied_embeddings ? 1 : 2) * vocab_size * hidden_size;
  return layers * (attention + mlp + 2 * hidden_size) + embeddings + hidden_size;
}

ModelConfig read_model_config(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  const Json tree = read_json_file(path);
  const ConfigFile file(tree, path);
  if (!tree.is_object()) {
    fail(ExitCode::kData, "expected a JSON object", path);
  }
  const std::string model_type = file.text("model_type", "");
  file.refuse_unless("model_type", model_type == "llama",
                     "model_type \"" + model_type + "\" is not supported; known: llama");
  for (const auto& [key, value] : tree.as_object()) {
    const bool off = value.is_null() || (value.is_bool() && !value.as_bool());
    if (!contains(kUsed, key) && !contains(kHarmless, key) && !off) {
      file.refuse(key, "config key \"" + key + "\" is not known and may change the result");
    }
  }
  ModelConfig config;
  constexpr int64_t kMostWide = int64_t{1} << 20;
  constexpr int64_t kMostHeads = int64_t{1} << 12;
  config.hidden_size = file.size("hidden_size", kMostWide);
  config.intermediate_size = file.size("intermediate_size", kMostWide);
  config.layers = file.size("num_hidden_layers", 4096);
  config.heads = file.size("num_attention_heads", kMostHeads);
  config.kv_heads = file.size("num_key_value_heads", kMostHeads, config.heads);
  config.head_dim =
      file.size("head_dim", kMostWide, std::max<int64_t>(config.hidden_size / config.heads, 1));
  config.vocab_size = file.size("vocab_size", int64_t{1} << 24);
  config.max_positions = file.size("max_position_embeddings", INT32_MAX, 2048);
  config.rms_norm_eps = static_cast<float>(file.number("rms_norm_eps", 1e-6));
  config.initializer_range = file.number("initializer_range", 0.02);
  config.tied_embeddings = file.flag("tie_word_embeddings", false);
  config.rope_theta = rope_theta(tree, file);
  file.refuse_unless("hidden_act", file.text("hidden_act", "silu") == "silu",
                     "hidden_act must be \"silu\"");
  file.refuse_unless("attention_bias", !file.flag("attention_bias", false),
                     "attention_bias is not supported");
  file.refuse_unless("mlp_bias", !file.flag("mlp_bias", false), "mlp_bias is not supported");
  file.refuse_unless("num_key_value_heads", config.heads % config.kv_heads == 0,
                     "num_attention_heads must be a multiple of num_key_value_heads");
  file.refuse_unless("head_dim",
                     config.head_dim % 2 == 0 && config.head_dim >= 8 && config.head_dim <= 256,
                     "head_dim must be even and in 8..256, got " + std::to_string(config.head_dim));
  return config;
}

}  // namespace graft::train
