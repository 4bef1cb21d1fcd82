// LoRA adapters as PEFT directories: adapter_config.json and adapter_model.safetensors.
//
// Read are pairs (W + scale * B * A), their DoRA magnitudes, modules that were trained whole
// (modules_to_save) and rows of the embeddings or the head (trainable_token_indices); a setting or
// tensor that means anything else is refused by its name, so that nothing of an adapter is ever
// dropped silently.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/safetensors.h"

namespace graft::adapters {

// A setting for the modules whose full name matches (.*\.)?(pattern)$; the first match counts.
template <class Value>
using Patterns = std::vector<std::pair<std::string, Value>>;

// Behind the module's name in the name of a tensor of rows.
constexpr std::string_view kTokenRows = ".token_adapter.trainable_tokens_delta";

struct AdapterSpec {
  int64_t r = 0;
  double lora_alpha = 0;
  std::vector<std::string> target_modules;  // sorted; one entry with target_is_pattern
  bool target_is_pattern = false;           // target_modules is one regular expression
  bool use_rslora = false;                  // scale alpha / sqrt(r) in place of alpha / r
  Patterns<int64_t> rank_pattern;
  Patterns<double> alpha_pattern;
  double lora_dropout = 0;
  bool use_dora = false;
  std::vector<std::string> modules_to_save;  // sorted; any ends of names, such as lm_head
  bool ensure_weight_tying = false;  // embed_tokens and lm_head of modules_to_save are one tensor
  // Ids whose rows were trained alone, by the ends of modules' names ("embed_tokens", "lm_head").
  std::vector<std::pair<std::string, std::vector<int64_t>>> trainable_token_indices;
  std::string base_model_name_or_path;  // "" is written as null

  // The rank and the factor of B * A that the settings give a module.
  // Errors: kData for a pattern that RE2 does not accept.
  int64_t rank_of(std::string_view module) const;
  double scale_of(std::string_view module) const;
};

// One adapted linear: `name` is the Hugging Face module path ("model.layers.0.self_attn.q_proj").
struct AdapterModule {
  std::string name;
  int64_t in = 0;
  int64_t out = 0;
  int64_t rank = 0;
  double scale = 0;  // of B * A
  // The pairs of all experts of a layer at once ("….mlp.experts"), as PEFT stores them for
  // transformers 5; fit_adapter (adapters/fit.h) makes ordinary pairs of them.
  bool all_experts = false;
  std::vector<float> a;  // [rank, in]
  std::vector<float> b;  // [out, rank]
  // DoRA (arXiv 2402.09353, section 4.1): the rows of W + scale * B * A have these lengths. [out];
  // empty without.
  std::vector<float> magnitude;
};

// A tensor of a module that was trained whole, under its name in the model
// ("model.embed_tokens.weight"). PEFT also stores a table whole where it has grown and only rows of
// it were trained; these are in it.
struct SavedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Rows of a table that were trained alone, under the table's module ("model.embed_tokens"): the
// values that the rows have, not what they changed by.
struct TokenRows {
  std::string name;
  std::vector<int64_t> ids;  // at least 0, none twice
  int64_t width = 0;
  std::vector<float> values;  // [ids, width]
};

struct Adapter {
  AdapterSpec spec;
  std::vector<AdapterModule> modules;           // by name
  std::vector<SavedTensor> saved;               // by name
  std::vector<TokenRows> rows;                  // by name
  std::map<std::string, std::string> metadata;  // of the safetensors header
  std::string sha256;                           // of adapter_model.safetensors
};

// Reads a directory. 16-bit tensors are widened. Errors: kIo; kData for a setting that is not
// supported, a pickle file, a tensor of an unknown kind, a rank that the settings do not give, a
// magnitude too many or too few, a value that is not finite.
Adapter read_peft(const std::string& directory);

// The settings alone, from the parsed adapter_config.json. Errors: kData.
AdapterSpec parse_adapter_config(const Json& config);

// The first id in [stored, vocab_size) that `rows` (nullptr: none) lacks; vocab_size when none is
// missing. A model with `stored` rows can take an adapter of a larger vocabulary only with all.
int64_t first_missing(const TokenRows* rows, int64_t stored, int64_t vocab_size);
[[noreturn]] void refuse_missing_row(int64_t id,
                                     int64_t stored,
                                     int64_t vocab_size,
                                     const std::string& where);

// What write_peft needs of a module; borrowed for the call.
struct AdapterTensors {
  std::string name;
  int64_t in = 0;
  int64_t out = 0;
  int64_t rank = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* magnitude = nullptr;  // [out] with use_dora
};

struct SavedView {
  std::string name;
  std::vector<int64_t> shape;
  const float* values = nullptr;
};

struct TokenRowsView {
  std::string name;
  std::vector<int64_t> ids;
  int64_t width = 0;
  const float* values = nullptr;  // [ids, width]
};

// Writes both files into `directory` (made when absent), float32. The bytes depend on the arguments
// only: sorted keys, no time, host or path. Gives the SHA-256 of adapter_model.safetensors.
// Errors: kIo; kData when a module's rank is not the one that the settings give, or a value is not
// finite.
std::string write_peft(const std::string& directory,
                       const AdapterSpec& spec,
                       std::span<const AdapterTensors> modules,
                       const std::map<std::string, std::string>& metadata = {},
                       std::span<const SavedView> saved = {},
                       std::span<const TokenRowsView> rows = {});

}  // namespace graft::adapters
