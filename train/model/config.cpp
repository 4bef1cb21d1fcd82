#include "train/model/config.h"

#include <algorithm>
#include <cmath>

#include "core/file.h"
#include "train/model/config_file.h"
#include "train/model/rope_file.h"

namespace graft::train {
namespace {

// Far above any real model; they keep every product of sizes, over all layers, below 2^63.
constexpr int64_t kMostWide = int64_t{1} << 20;
constexpr int64_t kMostHeads = int64_t{1} << 12;
constexpr int64_t kMostLayers = 4096;
constexpr int64_t kMostExperts = 1024;  // kernels/moe.h

Activation read_activation(const ConfigFile& file) {
  const bool gemma = file.knows("hidden_activation");
  std::string_view key = "hidden_act";
  if (gemma && file.find("hidden_activation") != nullptr) key = "hidden_activation";
  const std::string name = file.text(key);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  // "gelu" in the first Gemma files means the tanh form.
  if (name == "gelu_pytorch_tanh" || (gemma && name == "gelu")) return Activation::kGeluTanh;
  file.refuse(
      key, std::string(key) + " must be \"silu\" or \"gelu_pytorch_tanh\", got \"" + name + "\"");
}

void read_heads(const ConfigFile& file, ModelConfig& config) {
  config.heads = file.size("num_attention_heads", kMostHeads);
  config.kv_heads = file.size_or("num_key_value_heads", kMostHeads, config.heads);
  config.head_dim =
      file.size_or("head_dim", kMostWide, std::max<int64_t>(config.hidden_size / config.heads, 1));
  if (config.heads % config.kv_heads != 0) {
    file.refuse("num_key_value_heads",
                "num_attention_heads must be a multiple of num_key_value_heads, got " +
                    std::to_string(config.heads) + " and " + std::to_string(config.kv_heads));
  }
  if (config.head_dim % 2 != 0 || config.head_dim < 8 || config.head_dim > 256) {
    file.refuse("head_dim",
                "head_dim must be even and in 8..256, got " + std::to_string(config.head_dim));
  }
}

void read_scales(const ConfigFile& file, ModelConfig& config) {
  const double root_hidden = std::sqrt(static_cast<double>(config.hidden_size));
  config.embedding_scale = static_cast<float>(
      file.number_or("embedding_multiplier", file.family().scaled_embedding ? root_hidden : 1.0));
  const double per_head =
      file.number_or("query_pre_attn_scalar", static_cast<double>(config.head_dim));
  config.attention_scale =
      static_cast<float>(file.number_or("attention_multiplier", 1.0 / std::sqrt(per_head)));
  config.residual_scale = static_cast<float>(file.number_or("residual_multiplier", 1));
  config.logit_scale = static_cast<float>(1 / file.number_or("logits_scaling", 1));
  config.attention_cap = static_cast<float>(file.number_or("attn_logit_softcapping", 0));
  config.logit_cap = static_cast<float>(file.number_or("final_logit_softcapping", 0));
}

// A list of one entry a layer; nullptr when config.json has none.
const Json::Array* layer_list(const ConfigFile& file, std::string_view key, int64_t layers) {
  const Json* list = file.find(key);
  if (list == nullptr) return nullptr;
  if (!list->is_array() || static_cast<int64_t>(list->size()) < layers) {
    file.refuse(key, std::string(key) + " must be a list with an entry for each of the " +
                         std::to_string(layers) + " layers");
  }
  return &list->as_array();
}

bool is_windowed(const ConfigFile& file,
                 const Json* type,
                 const LayerConfig& layer,
                 int64_t index) {
  const Family& family = file.family();
  if (type != nullptr) {
    const std::string name = type->is_string() ? type->as_string() : dump_json(*type);
    if (name != "sliding_attention" && name != "full_attention") {
      file.refuse_at(
          *type, "layer_types[" + std::to_string(index) + "]",
          "layer type \"" + name + "\" is not supported; known: full_attention, sliding_attention");
    }
    return name == "sliding_attention";
  }
  switch (family.window) {
    case WindowRule::kEvery:
      return true;
    case WindowRule::kAboveLayer:
      return index >= file.size_or("max_window_layers", INT32_MAX, 0);
    case WindowRule::kPattern: {
      const int64_t pattern =
          file.size_or("sliding_window_pattern", kMostLayers, family.window_pattern);
      return (index + 1) % pattern != 0;
    }
    case WindowRule::kWithoutRope:
      return layer.rope < 0;
    case WindowRule::kNone:
      break;
  }
  return false;
}

void read_layers(const ConfigFile& file, ModelConfig& config) {
  const int64_t count = file.size("num_hidden_layers", kMostLayers);
  const Json::Array* types = layer_list(file, "layer_types", count);
  const Json::Array* rotated = layer_list(file, "no_rope_layers", count);
  const bool windows = !file.knows("use_sliding_window") || file.flag("use_sliding_window");
  const int64_t window =
      windows && file.knows("sliding_window") ? file.size_or("sliding_window", INT32_MAX, 0) : 0;
  for (int64_t index = 0; index < count; ++index) {
    LayerConfig layer;
    const auto at = static_cast<size_t>(index);
    if (rotated != nullptr) {
      // The key's name says the opposite of what its values mean: 1 is a layer with rotation.
      const Json& value = (*rotated)[at];
      if (!value.is_int() || (value.as_int() != 0 && value.as_int() != 1)) {
        file.refuse_at(value, "no_rope_layers[" + std::to_string(index) + "]",
                       "expected 1 (rotated) or 0");
      }
      layer.rope = value.as_int() == 1 ? 0 : -1;
    } else if (file.knows("no_rope_layer_interval")) {
      layer.rope = (index + 1) % file.size("no_rope_layer_interval", kMostLayers) != 0 ? 0 : -1;
    }
    const Json* type = types == nullptr ? nullptr : &(*types)[at];
    if (is_windowed(file, type, layer, index)) {
      if (type != nullptr && window == 0) {
        file.refuse_at(*type, "layer_types[" + std::to_string(index) + "]",
                       "the layer has a sliding window, but sliding_window is off");
      }
      layer.window = window;
      if (file.family().local_rope) layer.rope = 1;
    }
    config.layers.push_back(layer);
  }
}

void read_mlps(const ConfigFile& file, ModelConfig& config) {
  const int64_t dense = file.size("intermediate_size", kMostWide);
  for (LayerConfig& layer : config.layers) layer.intermediate_size = dense;
  if (file.family().experts == ExpertNames::kNone) return;
  const int64_t experts = file.size("num_local_experts", kMostExperts);
  config.experts_per_token = file.size("num_experts_per_tok", kMostExperts);
  if (config.experts_per_token > experts) {
    file.refuse("num_experts_per_tok", "num_experts_per_tok is " +
                                           std::to_string(config.experts_per_token) + " of " +
                                           std::to_string(experts) + " experts");
  }
  config.renormalises_experts = file.family().renormalises || file.flag("norm_topk_prob");
  const int64_t step = file.size_or("decoder_sparse_step", INT32_MAX, 1);
  std::vector<int64_t> dense_layers;
  if (const Json* list = file.find("mlp_only_layers")) {
    for (const Json& index : list->as_array()) dense_layers.push_back(index.as_int());
  }
  for (int64_t index = 0; index < config.layer_count(); ++index) {
    LayerConfig& layer = config.layers[static_cast<size_t>(index)];
    const bool is_dense =
        std::find(dense_layers.begin(), dense_layers.end(), index) != dense_layers.end();
    if (is_dense || (index + 1) % step != 0) continue;
    layer.experts = experts;
    layer.intermediate_size = file.size_or("moe_intermediate_size", kMostWide, dense);
  }
}

}  // namespace

ModelConfig read_model_config(const std::string& directory, std::span<const Family> table) {
  const ConfigFile file(join_path(directory, "config.json"), table);
  const Family& family = file.family();
  ModelConfig config;
  config.family = &family;
  config.nested = file.nested();
  config.placement = family.placement;
  config.norm = family.norm;
  config.qk_norm = family.qk_norm;
  config.fused = family.fused;
  config.activation = read_activation(file);
  config.hidden_size = file.size("hidden_size", kMostWide);
  config.vocab_size = file.size("vocab_size", int64_t{1} << 24);
  config.max_positions = file.size("max_position_embeddings", INT32_MAX);
  config.rms_norm_eps = static_cast<float>(file.number("rms_norm_eps"));
  config.initializer_range = file.number("initializer_range");
  config.tied_embeddings = file.flag("tie_word_embeddings");
  const bool attention_bias = file.flag("attention_bias");
  config.qkv_bias = family.qkv_bias || attention_bias;
  config.o_bias = attention_bias;
  config.mlp_bias = file.flag("mlp_bias");
  read_heads(file, config);
  read_scales(file, config);
  read_layers(file, config);
  read_mlps(file, config);
  read_ropes(file, config);
  return config;
}

}  // namespace graft::train
