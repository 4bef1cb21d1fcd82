// The training config: one struct, read once, checked once, written out in full.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/args.h"
#include "core/error.h"
#include "core/json.h"
#include "data/text/mask.h"
#include "data/text/tokenizer.h"
#include "train/engine/optimizer.h"
#include "train/model/lora.h"

namespace graft::train {

enum class Method {
  kLora,   // adapter: lora - A/B pairs on the base as it is
  kQlora,  // adapter: qlora - A/B pairs on the base quantized to NF4 with nested absmax
  kFull,   // adapter: none - every tensor of the base
};

// One entry of `datasets`.
struct Dataset {
  std::string path;
  data::FieldMapping fields;
  // How much of it an epoch takes (data/text/mix.h); all 0 = all of it, once.
  double repeat = 0;
  double weight = 0;
  int64_t budget = 0;
};

struct TrainConfig {
  std::string base_model;
  bool random_weights = false;  // base_weights: random - config.json and tokenizer only
  Method method = Method::kQlora;
  bool quantized_cache = true;
  // compute, with auto decided: of the products of frozen weights. GRAFT_F32 where all are trained.
  graft_float_type operands = GRAFT_F32;
  bool auto_compute = true;  // compute: auto, and no precision that weights or method demand
  Device device;             // not a key: what the command was told (run_on)
  LoraSettings lora;
  std::vector<data::AddedTokenSpec> new_tokens;  // none empty or twice
  std::vector<Dataset> datasets;
  std::vector<Dataset> test_datasets;  // repeat, weight and budget are 0
  int64_t sequence_len = 2048;
  data::MaskOptions mask;        // its sequence_len is the one above
  int64_t micro_batch_size = 1;  // 0 = auto: what the planner finds the fastest
  int64_t gradient_accumulation_steps = 1;
  double num_epochs = 1;
  int64_t max_steps = 0;  // 0 = num_epochs decides
  OptimizerSettings optimizer;
  double warmup_ratio = 0;  // used when warmup_steps is absent
  bool has_warmup_steps = false;
  uint64_t seed = 42;
  std::string output_dir;
  int64_t save_steps = 0;  // 0 = at the end of each epoch
  int64_t save_total_limit = 2;
  int64_t eval_steps = 0;  // 0 = at the end of each epoch
  int64_t logging_steps = 1;
  int64_t max_skipped_steps = 10;
  int64_t threads = 0;     // 0 = every processor of the process
  int64_t max_memory = 0;  // bytes; 0 = what is free
  bool deterministic = true;

  // What the weights are loaded with.
  Precision precision() const {
    return method == Method::kQlora ? Precision::kNf4 : Precision::kFull;
  }
  // With micro_batch_size: auto, as with 1.
  int64_t rows_per_step() const {
    return std::max<int64_t>(micro_batch_size, 1) * gradient_accumulation_steps;
  }
};

// One key of the config as `graft train --help` and docs/config.md show it.
struct ConfigKey {
  std::string_view name;
  std::string_view type;
  std::string_view fallback;
  std::string_view help;
};
std::span<const ConfigKey> config_keys();
// The keys of one entry of `datasets` (an entry may also be just the path).
std::span<const ConfigKey> dataset_keys();
// The keys of one entry of `new_tokens` (likewise, just the content).
std::span<const ConfigKey> token_keys();

// Reads a YAML file, applies `overrides` ("key=value"), checks every key and range.
// Errors: kIo; kUsage with file:line:column: key.
TrainConfig read_train_config(const std::string& path, const std::vector<std::string>& overrides);
// The same of a command's words, CONFIG.yaml [key=value …].
TrainConfig read_train_config(const Args& args);

// All that is wrong with a config at once.
struct ConfigReport {
  TrainConfig config;                 // without the keys that are wrong
  std::vector<ErrorText> problems;    // as read_train_config throws them, one for each such key
  std::vector<std::string> bad_keys;  // wrong or missing
  bool is_bad(std::string_view key) const;
};
// Errors: kIo; kUsage for a file that is no YAML mapping, and for an override without a key.
ConfigReport report_config(const std::string& path, const std::vector<std::string>& overrides);

// Whether frozen weights may be rounded to bfloat16: not where every weight is trained, or a dense
// one is changed at the beginning, whose small differences would be lost.
bool may_round(const TrainConfig& config);

// Lets the config run on a device, with what compute: auto means there: bfloat16 on a GPU.
void run_on(TrainConfig& config, const Device& device);

// Every key with its value, in the order of config_keys().
Json config_to_json(const TrainConfig& config);

// Whether a key takes part in what a run computes. Not output_dir, threads, saving, logging and
// evaluation; and not the paths of model and data, whose content has digests of its own.
bool decides_result(std::string_view key);

// SHA-256 over the keys that decide the result.
std::string config_digest(const TrainConfig& config);

}  // namespace graft::train
