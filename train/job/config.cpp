#include "train/job/config.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "core/yaml.h"
#include "train/job/compute.h"
#include "train/job/memory.h"
#include "train/model/init/initialisation.h"

namespace graft::train {
namespace {

constexpr ConfigKey kKeys[] = {
    {"base_model", "directory", "", "Hugging Face directory: config.json, weights, tokenizer"},
    {"base_weights", "pretrained | random", "pretrained",
     "random starts from fresh weights and needs only config.json and the tokenizer"},
    {"adapter", "qlora | lora | none", "qlora",
     "qlora: A/B on a base in NF4; lora: A/B on the base as it is; none: train every tensor"},
    {"quantized_cache", "true | false", "true",
     "keep the 4-bit weights of large bases in $XDG_CACHE_HOME/graft (~/.cache/graft) for the next "
     "start"},
    {"compute", "auto | fp32 | bf16", "auto",
     "operands of the products with frozen weights. bf16: rounded to bfloat16, sums in float32; "
     "frozen matrices are held in it, and 4-bit ones decoded to it. Norms, scores, loss, routers "
     "and all that is trained stay float32; where the model and its adapters allow it (no experts, "
     "biases, dropout or DoRA, ranks in eights), what lies between the norms is bfloat16 too. auto: bf16 on a GPU, and where the "
     "processor has bfloat16 instructions, but fp32 with adapter: none, and with pissa on adapter: "
     "lora, which have no other"},
    {"lora_r", "1..512", "16", "rank of A and B"},
    {"lora_alpha", "number", "32", "the adapter is scaled by lora_alpha / lora_r"},
    {"lora_dropout", "0..0.9", "0", "dropout of the adapter's input"},
    {"lora_target_modules", "list", "all-linear",
     "linears by the ends of their names, such as [q_proj, self_attn.v_proj], or regular "
     "expressions for whole names; all-linear: every one but the head; peft-default: those that "
     "PEFT takes for this architecture"},
    {"lora_exclude_modules", "list", "[]", "linears that are taken out again, named likewise"},
    {"lora_layers_to_transform", "list of integers", "[]", "only in these layers; empty = all"},
    {"lora_rank_pattern", "mapping", "{}",
     "ranks of their own, by regular expressions over the ends of names: {layers.0.*: 4}"},
    {"lora_alpha_pattern", "mapping", "{}", "alphas of their own, likewise"},
    {"use_rslora", "true | false", "false", "scale by lora_alpha / sqrt(lora_r)"},
    {"use_dora", "true | false", "false",
     "DoRA: the lengths of the adapted weights' rows are trained too"},
    {"init_lora_weights", "default | gaussian | pissa | loftq", "default",
     "how A and B begin. default: A uniform, B zero; gaussian: A normal; pissa: the base's largest "
     "singular values; loftq: what quantization took (adapter: qlora). "
     "pissa_niter_N and loftq_niter_N take a faster, randomised SVD of N iterations"},
    {"loftq_iter", "1..64", "1",
     "how often loftq quantizes what the pair leaves of a weight and fits the pair again. With "
     "more "
     "than 1 the 4-bit base is the run's own and goes to output_dir/base"},
    {"lora_modules_to_save", "list", "[]",
     "modules that are trained whole beside the adapter: embed_tokens, lm_head, norms by name"},
    {"loraplus_lr_ratio", "number", "1", "LoRA+: the learning rate of B over that of A"},
    {"new_tokens", "list", "[]",
     "tokens to add to the vocabulary: texts, or entries with the keys below. Their rows of "
     "embeddings and head begin as the mean of what the text was before, and are trained"},
    {"datasets", "list", "", "training records: files, or entries with the keys below"},
    {"test_datasets", "list", "[]", "held-out records: evaluated, never trained on"},
    {"sequence_len", "2..1048576", "2048", "tokens of a packed row; no document may be longer"},
    {"excess_length_strategy", "raise | drop | truncate_left | truncate_right | split", "raise",
     "what happens to documents longer than sequence_len"},
    {"chunk_overlap", "integer", "0", "tokens of context that the pieces of split share"},
    {"train_on_turns", "all | last | expand", "all",
     "expand: one document for each answer, rendered as when the model is served"},
    {"roles_to_train", "list", "[assistant]", "whose turns are trained on"},
    {"train_on_eos", "turn | last | all | none", "turn",
     "stop tokens to train: of each trained turn, the last one, of all turns, or none"},
    {"train_on_inputs", "true | false", "false", "train on every token"},
    {"on_unstopped_turn", "report | drop | raise", "report",
     "what happens to documents with a trained turn that does not end in a stop token"},
    {"content_specials", "refuse | literal | parse", "refuse",
     "special-token text inside messages: leave the record out, take it as text, or parse it"},
    {"micro_batch_size", "1..4096 | auto", "1",
     "packed rows computed at once. auto: as many of a step's gradient_accumulation_steps rows as "
     "are the fastest in the memory; the result is that of 1 to the bit"},
    {"gradient_accumulation_steps", "1..4096", "1", "micro-batches of one optimizer step"},
    {"num_epochs", "number", "1", "passes over the data"},
    {"max_steps", "integer", "0", "stop after so many optimizer steps; 0 = num_epochs decides"},
    {"optimizer", "adamw | adamw_8bit", "adamw",
     "AdamW with float32 moments, or with 8-bit ones of tensors of 4,096 values and more"},
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
    {"deterministic", "true | false", "true",
     "false: LibTorch's attention on a GPU adds gradients in any order, which is faster; the last "
     "bits then differ from run to run"},
    {"max_memory", "size", "",
     "bytes for weights, optimizer and buffers, such as 8GiB; absent: what is free. Blocks keep "
     "less and compute again what does not fit; last, beside a GPU the embedding and inputs of "
     "blocks lie in the host's memory. The result is the same to the bit"},
};

constexpr ConfigKey kDatasetKeys[] = {
    {"path", "file", "", "records, JSONL or JSON"},
    {"repeat", "number", "", "passes over it in an epoch; 0.5 = another half in each"},
    {"weight", "number", "",
     "its share of the supervised tokens of all datasets that have a weight"},
    {"budget", "integer", "", "supervised tokens that an epoch takes of it"},
    {"field_messages", "name", "messages", "the member that holds the turns"},
    {"message_property_mappings", "mapping", "",
     "the turns' own names: {role: speaker, content: said}"},
    {"roles", "mapping", "", "names of speakers: {assistant: [agent, bot], user: [client]}"},
    {"field_instruction", "name", "instruction", "for records without turns"},
    {"field_input", "name", "input", ""},
    {"field_output", "name", "output", ""},
    {"field_system", "name", "system", ""},
    {"field", "name", "text", "the member that holds a record's whole text"},
};
constexpr ConfigKey kTokenKeys[] = {
    {"content", "text", "", "the token"},
    {"special", "true | false", "true", "left out of decoded text; see content_specials"},
    {"normalized", "true | false", "false",
     "found in the normalized text, not in the text as it stands"},
    {"lstrip", "true | false", "false", "swallows white space on its left"},
    {"rstrip", "true | false", "false", "swallows white space on its right"},
    {"single_word", "true | false", "false", "found only where no word character stands beside it"},
};
// Keys of a dataset and graft's own name of the member that they rename.
constexpr std::pair<std::string_view, std::string_view> kFieldKeys[] = {
    {"field_messages", "messages"}, {"field_instruction", "instruction"}, {"field_input", "input"},
    {"field_output", "output"},     {"field_system", "system"},           {"field", "text"},
};

constexpr std::string_view kMethods[] = {"lora", "qlora", "none"};
constexpr std::string_view kWeights[] = {"pretrained", "random"};
constexpr std::string_view kSchedules[] = {"cosine", "linear", "constant"};
constexpr int64_t kManySteps = 1'000'000'000;

size_t choose(ConfigReader& reader,
              std::string_view key,
              std::string_view fallback,
              std::span<const std::string_view> names) {
  return static_cast<size_t>(
      std::find(names.begin(), names.end(), reader.get_choice(key, fallback, names)) -
      names.begin());
}

// {known: given} or {known: [given, …]}.
void read_renames(ConfigReader& entry,
                  std::string_view key,
                  std::vector<data::FieldMapping::Rename>& renames) {
  const Json* value = entry.get(key);
  if (value == nullptr || value->is_null()) return;
  const auto fail = [&] {
    entry.fail_at(key, "expected a mapping of names", "write " + std::string(key) + ": {a: b}");
  };
  if (!value->is_object()) fail();
  for (const auto& [known, given] : value->as_object()) {
    const Json list = given.is_array() ? given : Json::array({given});
    for (const Json& name : list.as_array()) {
      if (!name.is_string()) fail();
      renames.push_back({known, name.as_string()});
    }
  }
}

Dataset read_dataset(const Json& item, const std::string& file, const std::string& where) {
  Dataset dataset;
  if (item.is_string()) {
    dataset.path = item.as_string();
    return dataset;
  }
  ConfigReader entry(item, file, where);
  dataset.path = entry.need_string("path", "write `- path: clean.jsonl`");
  dataset.repeat = entry.get_float("repeat", 0, {0, 1000});
  dataset.weight = entry.get_float("weight", 0, {0, 1e9});
  dataset.budget = entry.get_int("budget", 0, {0, INT64_MAX / 2});
  for (const auto& [key, known] : kFieldKeys) {
    const std::string given = entry.get_string(key, known);
    if (given != known) dataset.fields.record.push_back({std::string(known), given});
  }
  read_renames(entry, "message_property_mappings", dataset.fields.message);
  read_renames(entry, "roles", dataset.fields.roles);
  entry.finish();
  return dataset;
}

// A list of files: texts, or mappings with the keys of a dataset.
std::vector<Dataset> read_datasets(ConfigReader& reader,
                                   std::string_view key,
                                   const std::string& file) {
  const Json* value = reader.get(key);
  std::vector<Dataset> datasets;
  if (value == nullptr || value->is_null()) {
    return datasets;
  }
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list.as_array()) {
    if (!item.is_object() && (!item.is_string() || item.as_string().empty())) {
      reader.fail_at(key, "expected a list of files", "write [\"a.jsonl\"] or [{path: a.jsonl}]");
    }
    datasets.push_back(
        read_dataset(item, file, std::string(key) + "[" + std::to_string(datasets.size()) + "]"));
  }
  return datasets;
}

data::AddedTokenSpec read_token(const Json& item,
                                const std::string& file,
                                const std::string& where) {
  if (item.is_string()) return {.content = item.as_string(), .special = true, .normalized = false};
  ConfigReader entry(item, file, where);
  data::AddedTokenSpec token;
  token.content = entry.need_string("content", "write `- content: \"<|tool|>\"`");
  token.special = entry.get_bool("special", true);
  token.normalized = entry.get_bool("normalized", false);
  token.lstrip = entry.get_bool("lstrip", false);
  token.rstrip = entry.get_bool("rstrip", false);
  token.single_word = entry.get_bool("single_word", false);
  entry.finish();
  return token;
}

std::vector<data::AddedTokenSpec> read_tokens(ConfigReader& reader, const std::string& file) {
  constexpr std::string_view kKey = "new_tokens";
  const Json* value = reader.get(kKey);
  std::vector<data::AddedTokenSpec> tokens;
  if (value == nullptr || value->is_null()) return tokens;
  const auto refuse = [&](const std::string& what) {
    reader.fail_at(kKey, what, "write [\"<|tool|>\"] or [{content: \"<|tool|>\"}]");
  };
  if (!value->is_array()) refuse("expected a list of tokens, got " + dump_json(*value));
  for (const Json& item : value->as_array()) {
    const std::string where = "new_tokens[" + std::to_string(tokens.size()) + "]";
    if (!item.is_string() && !item.is_object()) {
      refuse("expected texts or mappings, got " + dump_json(item) + " as " + where);
    }
    data::AddedTokenSpec token = read_token(item, file, where);
    if (token.content.empty()) refuse("a token without text (" + where + ")");
    const bool again = std::any_of(tokens.begin(), tokens.end(), [&](const auto& other) {
      return other.content == token.content;
    });
    if (again) refuse("token \"" + token.content + "\" is given twice (" + where + ")");
    tokens.push_back(std::move(token));
  }
  return tokens;
}

void read_mask(ConfigReader& reader, int64_t sequence_len, data::MaskOptions& mask) {
  mask.sequence_len = sequence_len;
  mask.over_long = static_cast<data::OverLong>(
      choose(reader, "excess_length_strategy", "raise", data::kOverLongNames));
  mask.chunk_overlap = reader.get_int("chunk_overlap", 0, {0, sequence_len / 2});
  mask.turns = static_cast<data::Turns>(choose(reader, "train_on_turns", "all", data::kTurnsNames));
  mask.roles_to_train = reader.get_strings("roles_to_train", {"assistant"});
  mask.train_on_eos =
      static_cast<data::TrainEos>(choose(reader, "train_on_eos", "turn", data::kTrainEosNames));
  mask.train_on_inputs = reader.get_bool("train_on_inputs", false);
  mask.faults.unstopped_turn = static_cast<data::FaultLevel>(
      choose(reader, "on_unstopped_turn", "report", data::kFaultLevelNames));
  mask.content_specials = static_cast<data::ContentSpecials>(
      choose(reader, "content_specials", "refuse", data::kContentSpecialsNames));
}

std::vector<int64_t> read_layers(ConfigReader& reader, std::string_view key) {
  const Json* value = reader.get(key);
  std::vector<int64_t> layers;
  if (value == nullptr || value->is_null()) return layers;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list.as_array()) {
    if (!item.is_int() || item.as_int() < 0) {
      reader.fail_at(key, "expected a list of layers, got " + dump_json(*value), "write [0, 1]");
    }
    layers.push_back(item.as_int());
  }
  return layers;
}

// {pattern: number}; `read` gives a number's value, or nothing when it is none.
template <typename Value, typename Read>
adapters::Patterns<Value> read_patterns(ConfigReader& reader,
                                        std::string_view key,
                                        const char* expected,
                                        const Read& read) {
  const Json* value = reader.get(key);
  adapters::Patterns<Value> patterns;
  if (value == nullptr || value->is_null()) return patterns;
  const auto refuse = [&](const std::string& what) {
    reader.fail_at(key, std::string(expected) + ", got " + what, "write {q_proj: 8}");
  };
  if (!value->is_object()) refuse(dump_json(*value));
  for (const auto& [pattern, number] : value->as_object()) {
    const std::optional<Value> one = read(number);
    if (!one) refuse(dump_json(number) + " for " + pattern);
    patterns.emplace_back(pattern, *one);
  }
  return patterns;
}

constexpr int64_t kMaxRank = 512;

void read_lora(ConfigReader& reader, LoraSettings& lora) {
  lora.rank = reader.get_int("lora_r", 16, {1, kMaxRank});
  lora.alpha = reader.get_float("lora_alpha", 32, {1e-6, 1e6});
  lora.dropout = reader.get_float("lora_dropout", 0, {0, 0.9});
  lora.targets = reader.get_strings("lora_target_modules", {"all-linear"});
  lora.exclude = reader.get_strings("lora_exclude_modules", {});
  lora.layers = read_layers(reader, "lora_layers_to_transform");
  lora.rank_pattern = read_patterns<int64_t>(
      reader, "lora_rank_pattern", "expected ranks in 1..512 by pattern",
      [](const Json& number) -> std::optional<int64_t> {
        if (!number.is_int() || number.as_int() < 1 || number.as_int() > kMaxRank) return {};
        return number.as_int();
      });
  lora.alpha_pattern = read_patterns<double>(
      reader, "lora_alpha_pattern", "expected alphas in 1e-06..1e+06 by pattern",
      [](const Json& number) -> std::optional<double> {
        if (!number.is_number()) return {};
        const double alpha = number.as_double();
        return alpha >= 1e-6 && alpha <= 1e6 ? std::optional(alpha) : std::nullopt;
      });
  lora.rslora = reader.get_bool("use_rslora", false);
  lora.dora = reader.get_bool("use_dora", false);
  lora.init = reader.get_string("init_lora_weights", "default");
  lora.loftq_iter = reader.get_int("loftq_iter", 1, {1, 64});
  if (lora.loftq_iter > 1 && find_initialisation(lora.init).row->name != "loftq") {
    reader.fail_at("loftq_iter", "it is of loftq, and init_lora_weights is " + lora.init,
                   "set init_lora_weights: loftq, or leave it out");
  }
  lora.saved = reader.get_strings("lora_modules_to_save", {});
  lora.b_lr_ratio = reader.get_float("loraplus_lr_ratio", 1, {1e-3, 1e3});
}

void read_compute(ConfigReader& reader, TrainConfig& config) {
  const std::string compute = reader.get_choice("compute", "auto", kComputeNames);
  config.auto_compute = compute == "auto" && may_round(config);
  if (may_round(config)) {
    config.operands = operands_of(std::string_view{compute});
    return;
  }
  if (compute == "bf16") {
    reader.fail_at("compute",
                   config.method == Method::kFull
                       ? "expected fp32: every weight is trained, and the steps are smaller than "
                         "what bfloat16 can hold"
                       : "expected fp32: " + config.lora.init +
                             " changes the weights, and bfloat16 would round what is left of them",
                   "set compute: fp32, or leave it out");
  }
}

void read_optimizer(ConfigReader& reader, TrainConfig& config) {
  OptimizerSettings& optimizer = config.optimizer;
  optimizer.moments =
      static_cast<MomentType>(choose(reader, "optimizer", "adamw", kOptimizerNames));
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
  const Json* micro_batch = reader.get("micro_batch_size");
  const bool is_auto =
      micro_batch != nullptr && micro_batch->is_string() && micro_batch->as_string() == "auto";
  config.micro_batch_size = is_auto ? 0 : reader.get_int("micro_batch_size", 1, {1, 4096});
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
  config.deterministic = reader.get_bool("deterministic", true);
  if (const Json* size = reader.get("max_memory"); size != nullptr && !size->is_null()) {
    config.max_memory = parse_bytes(size->is_string() ? size->as_string() : dump_json(*size));
    if (config.max_memory < 0) {
      reader.fail_at("max_memory", "expected a size, got " + dump_json(*size),
                     "write a number and a unit: max_memory: 8GiB");
    }
  }
}

Json strings_to_json(const std::vector<std::string>& texts) {
  Json list = Json::array();
  for (const std::string& text : texts) {
    list.push_back(text);
  }
  return list;
}

Json numbers_to_json(const std::vector<int64_t>& numbers) {
  Json list = Json::array();
  for (const int64_t number : numbers) list.push_back(number);
  return list;
}

template <typename Value>
Json patterns_to_json(const adapters::Patterns<Value>& patterns) {
  Json mapping = Json::object();
  for (const auto& [pattern, value] : patterns) mapping.set(pattern, value);
  return mapping;
}

Json dataset_to_json(const Dataset& dataset) {
  Json entry = Json::object({{"path", dataset.path}});
  if (dataset.repeat > 0) entry.set("repeat", dataset.repeat);
  if (dataset.weight > 0) entry.set("weight", dataset.weight);
  if (dataset.budget > 0) entry.set("budget", dataset.budget);
  for (const data::FieldMapping::Rename& rename : dataset.fields.record) {
    for (const auto& [key, known] : kFieldKeys) {
      if (known == rename.known) entry.set(std::string(key), rename.given);
    }
  }
  const auto set_renames = [&](const char* key,
                               const std::vector<data::FieldMapping::Rename>& renames) {
    Json mapping = Json::object();
    for (const data::FieldMapping::Rename& rename : renames) {
      Json names = Json::array();
      if (const Json* old = mapping.find(rename.known)) names = *old;
      names.push_back(rename.given);
      mapping.set(rename.known, std::move(names));
    }
    if (mapping.size() > 0) entry.set(key, std::move(mapping));
  };
  set_renames("message_property_mappings", dataset.fields.message);
  set_renames("roles", dataset.fields.roles);
  return entry.size() == 1 ? Json(dataset.path) : entry;
}

Json token_to_json(const data::AddedTokenSpec& token) {
  Json entry = Json::object({{"content", token.content}});
  if (!token.special) entry.set("special", false);
  if (token.normalized.value_or(false)) entry.set("normalized", true);
  if (token.lstrip) entry.set("lstrip", true);
  if (token.rstrip) entry.set("rstrip", true);
  if (token.single_word) entry.set("single_word", true);
  return entry.size() == 1 ? Json(token.content) : entry;
}

Json tokens_to_json(const std::vector<data::AddedTokenSpec>& tokens) {
  Json list = Json::array();
  for (const data::AddedTokenSpec& token : tokens) list.push_back(token_to_json(token));
  return list;
}

Json datasets_to_json(const std::vector<Dataset>& datasets) {
  Json list = Json::array();
  for (const Dataset& dataset : datasets) list.push_back(dataset_to_json(dataset));
  return list;
}

// What of the datasets decides the result beside their content.
Json mix_to_json(const TrainConfig& config) {
  Json list = Json::array();
  for (const Dataset& dataset : config.datasets) {
    list.push_back(Json::array({dataset.repeat, dataset.weight, dataset.budget}));
  }
  return list;
}

Json read_tree(const std::string& path, const std::vector<std::string>& overrides) {
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
  return tree;
}

TrainConfig config_of(const Json& tree, const std::string& path) {
  ConfigReader reader(tree, path, "");
  TrainConfig config;
  config.base_model = reader.need_string("base_model", "add `base_model: DIRECTORY` to the config");
  config.random_weights = choose(reader, "base_weights", "pretrained", kWeights) == 1;
  config.method = static_cast<Method>(choose(reader, "adapter", "qlora", kMethods));
  config.quantized_cache = reader.get_bool("quantized_cache", true);
  read_lora(reader, config.lora);
  read_compute(reader, config);
  config.new_tokens = read_tokens(reader, path);
  config.datasets = read_datasets(reader, "datasets", path);
  config.test_datasets = read_datasets(reader, "test_datasets", path);
  config.sequence_len = reader.get_int("sequence_len", 2048, {2, 1048576});
  read_mask(reader, config.sequence_len, config.mask);
  read_optimizer(reader, config);
  read_loop(reader, config);
  reader.finish();
  if (config.datasets.empty()) {
    reader.fail_at("datasets", "no training data", "add `datasets: [clean.jsonl]` to the config");
  }
  for (const Dataset& test : config.test_datasets) {
    if (test.repeat > 0 || test.weight > 0 || test.budget > 0) {
      reader.fail_at("test_datasets", "held-out records are evaluated once, all of them",
                     "remove repeat, weight and budget of " + test.path);
    }
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

// "datasets" of "run.yaml:3:1: datasets[0].path".
std::string key_at(const std::string& where) {
  const size_t colon = where.rfind(": ");
  const std::string full = colon == std::string::npos ? where : where.substr(colon + 2);
  return full.substr(0, full.find_first_of(".["));
}

// A key that cannot be read, or a missing one that has no fallback: the rest is read without it.
void take_out(Json& tree, const std::string& key) {
  Json::Object& members = tree.as_object();
  const auto found = std::find_if(members.begin(), members.end(),
                                  [&](const Json::Member& member) { return member.first == key; });
  if (found != members.end()) {
    members.erase(found);
  } else {
    members.emplace_back(key, key == "datasets" ? Json::array({"-"}) : Json("-"));
  }
}

}  // namespace

std::span<const ConfigKey> config_keys() {
  return kKeys;
}

std::span<const ConfigKey> dataset_keys() {
  return kDatasetKeys;
}

std::span<const ConfigKey> token_keys() {
  return kTokenKeys;
}

TrainConfig read_train_config(const Args& args) {
  const std::vector<std::string>& words = args.positionals();
  return read_train_config(words[0], {words.begin() + 1, words.end()});
}

TrainConfig read_train_config(const std::string& path, const std::vector<std::string>& overrides) {
  return config_of(read_tree(path, overrides), path);
}

ConfigReport report_config(const std::string& path, const std::vector<std::string>& overrides) {
  Json tree = read_tree(path, overrides);
  ConfigReport report;
  while (true) {
    try {
      report.config = config_of(tree, path);
      return report;
    } catch (const Error& error) {
      const std::string key = key_at(error.text().where);
      const bool again = report.is_bad(key);
      if (again && tree.find(key) != nullptr) throw;  // it is not the key's value
      if (!again) {
        report.problems.push_back(error.text());
        report.bad_keys.push_back(key);
      }
      take_out(tree, key);
    }
  }
}

bool ConfigReport::is_bad(std::string_view key) const {
  return std::find(bad_keys.begin(), bad_keys.end(), key) != bad_keys.end();
}

bool may_round(const TrainConfig& config) {
  if (config.method == Method::kQlora) return true;
  return config.method == Method::kLora && !find_initialisation(config.lora.init).row->changes_base;
}

void run_on(TrainConfig& config, const Device& device) {
  config.device = device;
  if (config.auto_compute) config.operands = operands_of("auto", device);
}

Json config_to_json(const TrainConfig& config) {
  const OptimizerSettings& optimizer = config.optimizer;
  return Json::object({
      {"base_model", config.base_model},
      {"base_weights", kWeights[config.random_weights ? 1 : 0]},
      {"adapter", kMethods[static_cast<size_t>(config.method)]},
      {"quantized_cache", config.quantized_cache},
      {"compute", compute_name(config.operands)},
      {"lora_r", config.lora.rank},
      {"lora_alpha", config.lora.alpha},
      {"lora_dropout", config.lora.dropout},
      {"lora_target_modules", strings_to_json(config.lora.targets)},
      {"lora_exclude_modules", strings_to_json(config.lora.exclude)},
      {"lora_layers_to_transform", numbers_to_json(config.lora.layers)},
      {"lora_rank_pattern", patterns_to_json(config.lora.rank_pattern)},
      {"lora_alpha_pattern", patterns_to_json(config.lora.alpha_pattern)},
      {"use_rslora", config.lora.rslora},
      {"use_dora", config.lora.dora},
      {"init_lora_weights", config.lora.init},
      {"loftq_iter", config.lora.loftq_iter},
      {"lora_modules_to_save", strings_to_json(config.lora.saved)},
      {"loraplus_lr_ratio", config.lora.b_lr_ratio},
      {"new_tokens", tokens_to_json(config.new_tokens)},
      {"datasets", datasets_to_json(config.datasets)},
      {"test_datasets", datasets_to_json(config.test_datasets)},
      {"sequence_len", config.sequence_len},
      {"excess_length_strategy", data::kOverLongNames[static_cast<size_t>(config.mask.over_long)]},
      {"chunk_overlap", config.mask.chunk_overlap},
      {"train_on_turns", data::kTurnsNames[static_cast<size_t>(config.mask.turns)]},
      {"roles_to_train", strings_to_json(config.mask.roles_to_train)},
      {"train_on_eos", data::kTrainEosNames[static_cast<size_t>(config.mask.train_on_eos)]},
      {"train_on_inputs", config.mask.train_on_inputs},
      {"on_unstopped_turn",
       data::kFaultLevelNames[static_cast<size_t>(config.mask.faults.unstopped_turn)]},
      {"content_specials",
       data::kContentSpecialsNames[static_cast<size_t>(config.mask.content_specials)]},
      {"micro_batch_size",
       config.micro_batch_size > 0 ? Json(config.micro_batch_size) : Json("auto")},
      {"gradient_accumulation_steps", config.gradient_accumulation_steps},
      {"num_epochs", config.num_epochs},
      {"max_steps", config.max_steps},
      {"optimizer", kOptimizerNames[static_cast<size_t>(optimizer.moments)]},
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
      {"deterministic", config.deterministic},
      {"max_memory", config.max_memory > 0 ? Json(config.max_memory) : Json()},
  });
}

bool decides_result(std::string_view key) {
  constexpr std::string_view kIrrelevant[] = {
      "output_dir", "save_steps", "save_total_limit", "logging_steps",
      "threads",    "max_memory", "test_datasets",    "eval_steps",
      "base_model", "datasets",   "quantized_cache",  "deterministic"};
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
  deciding.set("mix", mix_to_json(config));
  return sha256_hex(dump_json(deciding));
}

}  // namespace graft::train
