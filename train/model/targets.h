// Which linears of a model the patterns of a config mean.
//
// A pattern of LoraSettings::targets is one of
//   all-linear     every linear but the head
//   peft-default   those that PEFT takes for the family
//   q_proj         the last part, or parts, of a linear's name: self_attn.q_proj, 0.mlp.up_proj
//   .*\.[qv]_proj  a regular expression for the whole name, known by one of \ ( ) [ ] { } | * + ? ^
//   $
// (one of LoraSettings::exclude is no keyword) and must match a linear in every layer that is asked
// for: a name that some layers do not have would leave them untrained without a word. A pattern
// that spells "layers." chooses its layers itself; one match is enough.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/model/lora.h"
#include "train/model/model.h"

namespace graft::train {

// In the model's order. Errors: kUsage, naming the key, with a table of matches by pattern and
// layer.
std::vector<Linear*> find_targets(Model& model, const LoraSettings& settings);

// How many linears of each layer a pattern means.
struct Coverage {
  std::string pattern;
  std::vector<int64_t> of_layer;
};

// One for each pattern of LoraSettings::targets (peft-default as what it stands for) and of
// LoraSettings::exclude ("not NAME"), and "adapted" for the linears that get a pair. Errors: those
// of find_targets.
std::vector<Coverage> coverage_of(Model& model, const LoraSettings& settings);

// Patterns by layers; one column for each run of layers in which all patterns match alike.
std::string coverage_table(const std::vector<Coverage>& all);

// A linear's or another module's path in the model that transformers makes of the checkpoint, which
// is PEFT's name for it.
std::string peft_path(const Model& model, std::string_view name);

// Refuses keys of rank_pattern or alpha_pattern that match none of `linears`, with the same table.
void check_keys(Model& model,
                const std::vector<Linear*>& linears,
                const std::vector<std::string>& patterns,
                std::string_view key);

// "q_proj" of "model.layers.0.self_attn.q_proj".
std::string_view last_part(std::string_view name);

}  // namespace graft::train
