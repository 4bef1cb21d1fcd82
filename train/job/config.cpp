#include "train/job/config.h"

#include <algorithm>

#include "core/error.h"
#include "core/hash.h"
#include "core/yaml.h"

namespace graft::train {
namespace {

constexpr ConfigKey kKeys[] = {
    {"base_model", "directory", "", "Hugging Face directory: config.json, weights, tokenizer"},
    {"base_weights", "pretrained | random", "pretrained",
     "random starts from fresh weights and needs only config.json and the tokenizer"},
    {"adapter", "qlora | lora | none", "qlora",
     "qlora: A/B on a base in NF4; lora: A/B on the base as it is; none: train every tensor"},
    {"lora_r", "1..512", "16", "rank of A and B"},
    {"lora_alpha", "number", "32", "the adapter is scaled by lora_alpha / lora_r"},
    {"lora_dropout", "0..0.9", "0", "dropout of the adapter's input"},
    {"lora_target_modules", "list", "all-linear", "names of linears, such as [q_proj, v_proj]"},
    {"use_rslora", "true | false", "false", "scale by lora_alpha / sqrt(lora_r)"},
    {"datasets", "list of files", "", "training records, JSONL or JSON"},
    {"test_datasets", "list of files", "[]", "held-out records: evaluated, never trained on"},
    {"sequence_len", "2..1048576", "2048", "tokens of a packed row; no document may be longer"},
    {"excess_length_strategy", "raise | drop | truncate", "raise",
     "what happens to documents longer than sequence_len"},
    {"content_specials", "refuse | literal | parse", "refuse",
     "special-token text inside messages: leave the record out, take it as text, or parse it"},
    {"micro_batch_size", "1..4096", "1", "packed rows computed at once"},
    {"gradient_accumulation_steps", "1..4096", "1", "micro-batches of one optimizer step"},
    {"num_epochs", "number", "1", "passes over the data"},
    {"max_steps", "integer", "0", "stop after so many optimizer steps; 0 = num_epochs decides"},
    {"learning_rate", "number", "0.0002", "highest rate of the schedule"},
    {"lr_scheduler", "cosine | linear | constant", "cosine", "form of the schedule"},
    {"cosine_min_lr_ratio", "0..1", "0", "the schedule ends at this share of learning_rate"},
    {"warmup_steps", "integer", "", "steps of linear warm-up; wins over warmup_ratio"},
    {"warmup_ratio", "0..1", "0", "warm-up as a share of all steps"},
    {"weight_decay", "number", "0", "decoupled decay of matrices"},
    {"adam_beta1", "0..1", "0.9", "decay of the first moment"},
    {"adam_beta2", "0..1", "0.999", "decay of the second moment"},
    {"adam_epsilon", "number", "1e-08", "added to the root of the second moment"},
    {"max_grad_norm", "number", "1", "gradients are clipped to this norm; 0 = never"},
    {"max_skipped_steps", "integer", "10",
     "give up (exit 5) after so many steps with gradients that are not finite"},
    {"seed", "integer", "42", "of initialisation, order and dropout"},
    {"output_dir", "directory", "", "where everything of the run goes"},
    {"save_steps", "integer", "0", "steps between checkpoints; 0 = at the end of each epoch"},
    {"save_total_limit", "1..1000", "2", "checkpoints kept"},
    {"eval_steps", "integer", "0", "steps between evaluations; 0 = at the end of each epoch"},
    {"logging_steps", "integer", "1", "steps between lines of metrics.jsonl"},
    {"threads", "0..1024", "0", "CPU threads; 0 = every processor"},
};

constexpr std::string_view kMethods[] = {"lora", "qlora", "none"};
constexpr std::string_view kWeights[] = {"pretrained", "random"};
constexpr std::string_view kSchedules[] = {"cosine", "linear", "constant"};
constexpr std::string_view kOverLong[] = {"raise", "drop", "truncate"};
constexpr std::string_view kSpecials[] = {"refuse", "literal", "parse"};
constexpr int64_t kManySteps = 1'000'000'000;

template <size_t N>
size_t index_of(const std::string_view (&names)[N], std::string_view name) {
  return static_cast<size_t>(std::find(std::begin(names), std::end(names), name) -
                             std::begin(names));
}

template <size_t N>
size_t choose(ConfigReader& reader,
              std::string_view key,
              std::string_view fallback,
              const std::string_view (&names)[N]) {
  return index_of(names, reader.get_choice(key, fallback, names));
}

// A list of files: texts, or mappings with one key `path`.
std::vector<std::string> read_files(ConfigReader& reader, std::string_view key) {
  const Json* value = reader.get(key);
  std::vector<std::string> files;
  if (value == nullptr || value->is_null()) {
    return files;
  }
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list.as_array()) {
    const Json* path = item.is_object() && item.size() == 1 ? item.find("path") : &item;
    if (path == nullptr || !path->is_string() || path->as_string().empty()) {
      reader.fail_at(key, "expected a list of files", "write [\"a.jsonl\"] or [{path: a.jsonl}]");
    }
    files.push_back(path->as_string());
  }
  return files;
}

void read_lora(ConfigReader& reader, LoraSettings& lora) {
  lora.rank = reader.get_int("lora_r", 16, {1, 512});
  lora.alpha = reader.get_float("lora_alpha", 32, {1e-6, 1e6});
  lora.dropout = reader.get_float("lora_dropout", 0, {0, 0.9});
  lora.targets = reader.get_strings("lora_target_modules", {"all-linear"});
  lora.rslora = reader.get_bool("use_rslora", false);
}

void read_optimizer(ConfigReader& reader, TrainConfig& config) {
  OptimizerSettings& optimizer = config.optimizer;
  optimizer.learning_rate = reader.get_float("learning_rate", 2e-4, {0, 10});
  optimizer.schedule = static_cast<Schedule>(choose(reader, "lr_scheduler", "cosine", kSchedules));
  optimizer.min_lr_ratio = reader.get_float("cosine_min_lr_ratio", 0, {0, 1});
  config.has_warmup_steps = reader.has("warmup_steps");
  optimizer.warmup_steps = reader.get_int("warmup_steps", 0, {0, kManySteps});
  config.warmup_ratio = reader.get_float("warmup_ratio", 0, {0, 1});
  optimizer.weight_decay = reader.get_float("weight_decay", 0, {0, 10});
  optimizer.beta1 = reader.get_float("adam_beta1", 0.9, {0, 0.999999});
  optimizer.beta2 = reader.get_float("adam_beta2", 0.999, {0, 0.9999999});
  optimizer.epsilon = reader.get_float("adam_epsilon", 1e-8, {0, 1});
  optimizer.max_grad_norm = reader.get_float("max_grad_norm", 1, {0, 1e9});
}

void read_loop(ConfigReader& reader, TrainConfig& config) {
  config.micro_batch_size = reader.get_int("micro_batch_size", 1, {1, 4096});
  config.gradient_accumulation_steps = reader.get_int("gradient_accumulation_steps", 1, {1, 4096});
  config.num_epochs = reader.get_float("num_epochs", 1, {1e-6, 1e6});
  config.max_steps = reader.get_int("max_steps", 0, {0, kManySteps});
  config.seed = static_cast<uint64_t>(reader.get_int("seed", 42, {0, INT64_MAX}));
  config.output_dir =
      reader.need_string("output_dir", "add `output_dir: out/my-run` to the config");
  config.save_steps = reader.get_int("save_steps", 0, {0, kManySteps});
  config.save_total_limit = reader.get_int("save_total_limit", 2, {1, 1000});
  config.eval_steps = reader.get_int("eval_steps", 0, {0, kManySteps});
  config.logging_steps = reader.get_int("logging_steps", 1, {1, kManySteps});
  config.max_skipped_steps = reader.get_int("max_skipped_steps", 10, {0, kManySteps});
  config.threads = reader.get_int("threads", 0, {0, 1024});
}

Json strings_to_json(const std::vector<std::string>& texts) {
  Json list = Json::array();
  for (const std::string& text : texts) {
    list.push_back(text);
  }
  return list;
}

}  // namespace

std::span<const ConfigKey> config_keys() {
  return kKeys;
}

TrainConfig read_train_config(const std::string& path, const std::vector<std::string>& overrides) {
  Json tree = read_yaml_file(path);
  if (!tree.is_object()) {
    fail(ExitCode::kUsage,
         "expected a mapping of config keys, got " + std::string(tree.type_name()), path,
         "write `key: value` lines; `graft train --help` lists the keys");
  }
  for (const std::string& text : overrides) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      fail(ExitCode::kUsage, "expected key=value, got \"" + text + "\"", "command line");
    }
    Json value = parse_yaml_value(text.substr(equals + 1), "command line: " + text);
    value.set_mark({});
    set_path(tree, text.substr(0, equals), std::move(value));
  }
  ConfigReader reader(tree, path, "");
  TrainConfig config;
  config.base_model = reader.need_string("base_model", "add `base_model: DIRECTORY` to the config");
  config.random_weights = choose(reader, "base_weights", "pretrained", kWeights) == 1;
  config.method = static_cast<Method>(choose(reader, "adapter", "qlora", kMethods));
  read_lora(reader, config.lora);
  config.datasets = read_files(reader, "datasets");
  config.test_datasets = read_files(reader, "test_datasets");
  config.sequence_len = reader.get_int("sequence_len", 2048, {2, 1048576});
  config.over_long =
      static_cast<data::OverLong>(choose(reader, "excess_length_strategy", "raise", kOverLong));
  config.content_specials =
      static_cast<data::ContentSpecials>(choose(reader, "content_specials", "refuse", kSpecials));
  read_optimizer(reader, config);
  read_loop(reader, config);
  reader.finish();
  if (config.datasets.empty()) {
    reader.fail_at("datasets", "no training data", "add `datasets: [clean.jsonl]` to the config");
  }
  if (config.micro_batch_size * config.sequence_len > INT32_MAX) {
    reader.fail_at("micro_batch_size",
                   "a micro-batch must hold fewer than 2^31 tokens, got micro_batch_size " +
                       std::to_string(config.micro_batch_size) + " x sequence_len " +
                       std::to_string(config.sequence_len),
                   "raise gradient_accumulation_steps instead");
  }
  if (config.random_weights && config.method != Method::kFull) {
    reader.fail_at("base_weights", "an adapter on random weights learns nothing useful",
                   "set adapter: none, or base_weights: pretrained");
  }
  return config;
}

Json config_to_json(const TrainConfig& config) {
  const OptimizerSettings& optimizer = config.optimizer;
  return Json::object({
      {"base_model", config.base_model},
      {"base_weights", kWeights[config.random_weights ? 1 : 0]},
      {"adapter", kMethods[static_cast<size_t>(config.method)]},
      {"lora_r", config.lora.rank},
      {"lora_alpha", config.lora.alpha},
      {"lora_dropout", config.lora.dropout},
      {"lora_target_modules", strings_to_json(config.lora.targets)},
      {"use_rslora", config.lora.rslora},
      {"datasets", strings_to_json(config.datasets)},
      {"test_datasets", strings_to_json(config.test_datasets)},
      {"sequence_len", config.sequence_len},
      {"excess_length_strategy", kOverLong[static_cast<size_t>(config.over_long)]},
      {"content_specials", kSpecials[static_cast<size_t>(config.content_specials)]},
      {"micro_batch_size", config.micro_batch_size},
      {"gradient_accumulation_steps", config.gradient_accumulation_steps},
      {"num_epochs", config.num_epochs},
      {"max_steps", config.max_steps},
      {"learning_rate", optimizer.learning_rate},
      {"lr_scheduler", kSchedules[static_cast<size_t>(optimizer.schedule)]},
      {"cosine_min_lr_ratio", optimizer.min_lr_ratio},
      {"warmup_steps", config.has_warmup_steps ? Json(optimizer.warmup_steps) : Json()},
      {"warmup_ratio", config.warmup_ratio},
      {"weight_decay", optimizer.weight_decay},
      {"adam_beta1", optimizer.beta1},
      {"adam_beta2", optimizer.beta2},
      {"adam_epsilon", optimizer.epsilon},
      {"max_grad_norm", optimizer.max_grad_norm},
      {"max_skipped_steps", config.max_skipped_steps},
      {"seed", config.seed},
      {"output_dir", config.output_dir},
      {"save_steps", config.save_steps},
      {"save_total_limit", config.save_total_limit},
      {"eval_steps", config.eval_steps},
      {"logging_steps", config.logging_steps},
      {"threads", config.threads},
  });
}

bool decides_result(std::string_view key) {
  constexpr std::string_view kIrrelevant[] = {"output_dir",    "save_steps", "save_total_limit",
                                              "logging_steps", "threads",    "test_datasets",
                                              "eval_steps",    "base_model", "datasets"};
  return std::find(std::begin(kIrrelevant), std::end(kIrrelevant), key) == std::end(kIrrelevant);
}

std::string config_digest(const TrainConfig& config) {
  Json deciding = Json::object();
  const Json all = config_to_json(config);
  for (const auto& [key, value] : all.as_object()) {
    if (decides_result(key)) {
      deciding.set(key, value);
    }
  }
  return sha256_hex(dump_json(deciding));
}

}  // namespace graft::train
