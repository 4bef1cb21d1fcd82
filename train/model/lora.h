// Adapters of a model: making, loading and listing the A/B pairs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/model/model.h"

namespace graft::train {

struct LoraSettings {
  int64_t rank = 16;
  double alpha = 32;
  double dropout = 0;
  bool rslora = false;  // scale alpha / sqrt(r) in place of alpha / r
  // Last parts of linears' names, such as "q_proj"; "all-linear" = every linear but the head;
  // "peft-default" = those that PEFT takes for the family.
  std::vector<std::string> targets;
};

// alpha / r, or alpha / sqrt(r) with rslora.
float lora_scale(const LoraSettings& settings);

// Puts a pair on every targeted linear, of every layer and expert: A uniform in ±1/sqrt(in) (PEFT's
// kaiming_uniform with a = sqrt(5)), B zero, both trained. Errors: kUsage for a target that matches
// no linear.
void add_lora(Model& model, const LoraSettings& settings, uint64_t seed);

// Loads a PEFT directory into the model for inference; the model must have no adapter yet.
// Errors: kIo, kData (settings that mean more than LoRA, shapes or names that do not fit).
void load_adapter(Model& model, const std::string& directory);

// Writes the model's pairs as a PEFT directory. `base_name` is stored as base_model_name_or_path.
// Returns the SHA-256 of adapter_model.safetensors. Errors: kIo, kData (values not finite).
std::string save_adapter(const Model& model,
                         const LoraSettings& settings,
                         const std::string& base_name,
                         const std::string& directory);

}  // namespace graft::train
