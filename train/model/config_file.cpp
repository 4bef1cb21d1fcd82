#include "train/model/config_file.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"

namespace graft::train {
namespace {

// What every family reads.
constexpr std::string_view kCommon = R"({"hidden_size": null, "intermediate_size": null,
  "num_hidden_layers": null, "num_attention_heads": null, "vocab_size": null,
  "initializer_range": 0.02, "rope_parameters": null, "rope_scaling": null})";

// Keys that say nothing about what the forward pass computes or how the loss is made.
constexpr std::string_view kHarmless[] = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "_sliding_window_pattern",  // transformers 5 writes what its layer_types were made from
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "layer_norm_eps",
    "length_penalty",
    "max_length",
    "max_window_layers",  // of a family that has no such layers
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "quantization_config",  // looked at by itself
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",  // the weight of a loss that output_router_logits switches on
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
};

// Keys that change the maths unless they have this value.
struct Neutral {
  std::string_view key;
  double value;
};
constexpr Neutral kNeutral[] = {
    {"attention_dropout", 0},   {"embd_pdrop", 0},    {"resid_pdrop", 0},
    {"router_jitter_noise", 0}, {"full_attn_mod", 1}, {"interpolate_factor", 1},
};

bool is_harmless(std::string_view key) {
  return std::find(std::begin(kHarmless), std::end(kHarmless), key) != std::end(kHarmless);
}

bool is_neutral(std::string_view key, const Json& value) {
  return std::any_of(std::begin(kNeutral), std::end(kNeutral), [&](const Neutral& row) {
    return row.key == key && value.is_number() && value.as_double() == row.value;
  });
}

bool is_off(const Json& value) {
  return value.is_null() || (value.is_bool() && !value.as_bool()) ||
         ((value.is_array() || value.is_object()) && value.size() == 0);
}

}  // namespace

ConfigFile::ConfigFile(const std::string& path, std::span<const Family> table)
    : path_(path), root_(read_json_file(path)) {
  tree_ = &root_;
  if (!root_.is_object()) {
    fail(ExitCode::kData, "expected a JSON object", path);
  }
  const Json* type = root_.find("model_type");
  if (type != nullptr && type->is_string() && type->as_string() == "gemma3") {
    nested_ = true;
    tree_ = root_.find("text_config");
    if (tree_ == nullptr || !tree_->is_object()) {
      tree_ = &root_;
      refuse("text_config", "a gemma3 model must have an object text_config");
    }
    type = tree_->find("model_type");
  }
  const std::string model_type = type != nullptr && type->is_string() ? type->as_string() : "";
  std::vector<std::string_view> known;
  for (const Family& one : table) {
    if (one.model_type == model_type) family_ = &one;
    known.push_back(one.model_type);
  }
  if (family_ == nullptr) {
    refuse("model_type", unknown_name("model_type", model_type, known),
           "use a model of a known architecture");
  }
  defaults_ = parse_json(family_->keys, "families.cpp");
  const Json common = parse_json(kCommon, "config_file.cpp");
  for (const auto& [key, value] : common.as_object()) {
    if (defaults_.find(key) == nullptr) defaults_.set(key, value);
  }
  check_keys();
  check_quantization();
}

void ConfigFile::check_keys() const {
  for (const auto& [key, value] : tree_->as_object()) {
    if (!knows(key) && !is_harmless(key) && !is_off(value) && !is_neutral(key, value)) {
      refuse(key,
             "config key \"" + key + "\" is " + dump_json(value) + "; graft does not know it for " +
                 std::string(family_->model_type) + ", and it may change the result",
             "use a model without it; if it changes nothing, remove it from config.json");
    }
  }
}

// Other packed formats have tensors of other names; only bitsandbytes' are read.
void ConfigFile::check_quantization() const {
  const Json* quantization = root_.find("quantization_config");
  if (quantization == nullptr || quantization->is_null()) return;
  const Json* method = quantization->find("quant_method");
  const Json* four_bits = quantization->find("load_in_4bit");
  const bool known = method != nullptr && method->is_string() &&
                     method->as_string() == "bitsandbytes" && four_bits != nullptr &&
                     four_bits->is_bool() && four_bits->as_bool();
  if (!known) {
    refuse_at(*quantization, "quantization_config",
              "quantization method " + (method == nullptr ? "(none)" : dump_json(*method)) +
                  " is not supported; known: bitsandbytes in 4 bits",
              "use the checkpoint in full precision; `graft quantize` makes a 4-bit one");
  }
}

bool ConfigFile::knows(std::string_view key) const {
  return defaults_.find(key) != nullptr;
}

const Json* ConfigFile::find(std::string_view key) const {
  const Json* value = tree_->find(key);
  if (value == nullptr && key == "num_local_experts") value = tree_->find("num_experts");
  // A multimodal file says of the whole model whether the head is tied.
  if (value == nullptr && nested_ && key == "tie_word_embeddings") value = root_.find(key);
  if (value == nullptr) value = defaults_.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void ConfigFile::refuse(std::string_view key,
                        const std::string& what,
                        const std::string& fix) const {
  const Json* value = tree_->find(key);
  refuse_at(value != nullptr ? *value : *tree_, key, what, fix);
}

void ConfigFile::refuse_at(const Json& value,
                           std::string_view key,
                           const std::string& what,
                           const std::string& fix) const {
  const Mark mark = value.mark().line > 0 ? value.mark() : Mark{1, 1};
  fail(ExitCode::kData, what,
       path_ + ":" + std::to_string(mark.line) + ":" + std::to_string(mark.column) + ": " +
           (nested_ ? "text_config." : "") + std::string(key),
       fix);
}

int64_t ConfigFile::size_of(const Json& value, std::string_view key, int64_t most) const {
  if (!value.is_int() || value.as_int() < 1 || value.as_int() > most) {
    refuse_at(value, key, std::string(key) + " must be an integer in 1.." + std::to_string(most));
  }
  return value.as_int();
}

int64_t ConfigFile::size(std::string_view key, int64_t most) const {
  const Json* value = find(key);
  if (value == nullptr) {
    refuse(key, std::string(key) + " must be an integer in 1.." + std::to_string(most));
  }
  return size_of(*value, key, most);
}

int64_t ConfigFile::size_or(std::string_view key, int64_t most, int64_t if_null) const {
  const Json* value = find(key);
  return value == nullptr ? if_null : size_of(*value, key, most);
}

double ConfigFile::number_of(const Json& value, std::string_view key) const {
  if (!value.is_number() || !(value.as_double() > 0) || !std::isfinite(value.as_double())) {
    refuse_at(value, key, std::string(key) + " must be a number above 0");
  }
  return value.as_double();
}

double ConfigFile::number(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) refuse(key, std::string(key) + " must be a number above 0");
  return number_of(*value, key);
}

double ConfigFile::number_or(std::string_view key, double if_null) const {
  const Json* value = find(key);
  return value == nullptr ? if_null : number_of(*value, key);
}

bool ConfigFile::flag(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return false;
  if (!value->is_bool()) refuse(key, std::string(key) + " must be true or false");
  return value->as_bool();
}

std::string ConfigFile::text(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) refuse(key, std::string(key) + " must be a text");
  return value->as_string();
}

}  // namespace graft::train
