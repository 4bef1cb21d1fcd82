// Adapters of a model: making, loading and listing the A/B pairs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/peft.h"
#include "train/model/model.h"
#include "train/model/weights.h"  // Precision

namespace graft::train {

struct LoraSettings {
  int64_t rank = 16;
  double alpha = 32;
  double dropout = 0;
  bool rslora = false;                    // scale alpha / sqrt(r) in place of alpha / r
  std::vector<std::string> targets = {};  // patterns of linears (train/model/targets.h)
  std::vector<std::string> exclude = {};  // patterns of those that are taken out again
  std::vector<int64_t> layers = {};       // only in these; empty = all
  // Ranks and alphas of their own, by regular expressions over the ends of names, as in PEFT.
  adapters::Patterns<int64_t> rank_pattern = {};
  adapters::Patterns<double> alpha_pattern = {};
  std::string init = "default";         // how A and B begin (train/model/init)
  int64_t loftq_iter = 1;               // of loftq; more than 1 changes the base
  bool dora = false;                    // trained lengths of rows (train/model/dora.h)
  std::vector<std::string> saved = {};  // modules trained whole (train/model/saved.h)
  double b_lr_ratio = 1;  // LoRA+ (arXiv 2402.12354): the learning rate of B over that of A
};

// Puts a pair on every targeted linear, makes the modules of `saved` and the rows of added tokens
// (train/model/new_tokens.h) trained, and all of it part of Model::trained. `base_directory` has
// the model's own weights; loftq and, in 4 bits, pissa read them again. Errors: kUsage for a
// pattern that matches no linear, or not in all layers (train/model/targets.h), and for what cannot
// be combined; kIo and kData of the weights.
void add_lora(Model& model,
              const LoraSettings& settings,
              uint64_t seed,
              const std::string& base_directory = "");

// The same tensors, not filled, for a model that has names and shapes only: what a plan needs.
// `precision` is what its weights would be loaded with.
void add_lora_shapes(Model& model, const LoraSettings& settings, Precision precision);

// Brings what follows from the trained tensors up to date: DoRA's gains, and the added tokens' rows
// in their tables. After anything changed them, and before the next forward pass.
void refresh_trained(Model& model);

// Makes every linear's pair, and its magnitudes, part of Model::trained, with their gradients.
void train_pairs(Model& model, float b_lr_ratio = 1);

// Loads a PEFT directory into the model for inference; the model must have no adapter yet. Its
// vocabulary grows where the adapter has new tokens.
// Errors: kIo, kData (settings that mean more than LoRA, shapes or names that do not fit).
void load_adapter(Model& model, const std::string& directory);

// Takes every pair and magnitude out of the model and zeroes the modules that were trained whole
// and the rows of added tokens; where a pair began by changing a dense W, W is put back.
void remove_adapter(Model& model);

// Writes the model's adapter as a PEFT directory that belongs to the checkpoint's own weights:
// where a dense W was changed at the beginning, the pairs are of twice the rank and make up for it.
// Where 4-bit weights were changed, it belongs to what save_changed_base writes, and says so.
// `base_name` is stored as base_model_name_or_path. Returns the SHA-256 of
// adapter_model.safetensors. Errors: kIo, kData (values not finite).
std::string save_adapter(Model& model,
                         const LoraSettings& settings,
                         const std::string& base_name,
                         const std::string& directory);

}  // namespace graft::train
