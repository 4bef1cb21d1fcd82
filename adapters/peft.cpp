#include "adapters/peft.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "adapters/pattern.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"

namespace graft::adapters {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight";
constexpr std::string_view kB = ".lora_B.weight";
// The first is PEFT's; the second older versions wrote.
constexpr std::string_view kMagnitudes[] = {".lora_magnitude_vector",
                                            ".lora_magnitude_vector.weight"};
// Behind the module's name, where PEFT stores a table beside its trained rows.
constexpr std::string_view kTableOfRows = ".token_adapter.base_layer";
constexpr std::string_view kConfigName = "adapter_config.json";
constexpr std::string_view kTensorsName = "adapter_model.safetensors";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

void refuse_pickle(const std::string& directory) {
  for (const std::string& name : list_directory(directory)) {
    if (name == "adapter_model.bin" || name == "adapter_model.pt") {
      fail(ExitCode::kData, "the adapter is a pickle file, which can run code when it is read",
           join_path(directory, name), "save it with PEFT and safe_serialization=True");
    }
  }
}

// The module of a tensor's name, when it is half of a pair.
std::optional<std::string> module_of(std::string_view tensor, std::string_view end) {
  if (tensor.substr(0, kPrefix.size()) != kPrefix || !ends_with(tensor, end)) return std::nullopt;
  const size_t length = tensor.size() - kPrefix.size();
  if (length <= end.size()) return std::nullopt;
  return std::string(tensor.substr(kPrefix.size(), length - end.size()));
}

std::vector<float> read_matrix(const SafetensorsFile& file, const TensorInfo& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.count()));
  convert_to_f32(tensor.dtype, file.bytes(tensor), values.data(), tensor.count());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail(ExitCode::kData, "value " + std::to_string(i) + " is not finite",
           file.path() + ": " + tensor.name, "the training diverged; use an earlier checkpoint");
    }
  }
  return values;
}

void check_pair(const SafetensorsFile& file, const TensorInfo& a, const TensorInfo* b) {
  const std::string where = file.path() + ": " + a.name;
  if (b == nullptr) fail(ExitCode::kData, "lora_A has no lora_B beside it", where);
  if (a.shape.size() != 2 || b->shape.size() != 2 || a.shape[0] != b->shape[1] || a.count() == 0 ||
      b->count() == 0) {
    fail(ExitCode::kData,
         "lora_A is " + shape_text(a.shape) + " and lora_B is " + shape_text(b->shape) +
             ", expected [r, in] and [out, r]",
         where);
  }
}

const TensorInfo* find_magnitude(const SafetensorsFile& file, const std::string& stem) {
  for (const std::string_view end : kMagnitudes) {
    if (const TensorInfo* found = file.find(stem + std::string(end))) return found;
  }
  return nullptr;
}

std::vector<float> read_magnitude(const SafetensorsFile& file,
                                  const std::string& stem,
                                  int64_t out,
                                  const AdapterSpec& spec) {
  const TensorInfo* tensor = find_magnitude(file, stem);
  if ((tensor != nullptr) != spec.use_dora) {
    fail(ExitCode::kData,
         spec.use_dora ? "the settings say use_dora, but there is no lora_magnitude_vector"
                       : "there is a lora_magnitude_vector, but the settings do not say use_dora",
         file.path() + ": " + stem, "the files belong to different adapters");
  }
  if (tensor == nullptr) return {};
  if (tensor->count() != out) {
    fail(ExitCode::kData,
         "the magnitudes are " + shape_text(tensor->shape) + ", expected one for each of " +
             std::to_string(out) + " rows",
         file.path() + ": " + tensor->name);
  }
  return read_matrix(file, *tensor);
}

AdapterModule read_module(const SafetensorsFile& file,
                          const std::string& name,
                          const AdapterSpec& spec) {
  const std::string stem = std::string(kPrefix) + name;
  const TensorInfo& a = file.at(stem + std::string(kA));
  const TensorInfo* b = file.find(stem + std::string(kB));
  check_pair(file, a, b);
  AdapterModule module;
  module.name = name;
  module.rank = a.shape[0];
  module.in = a.shape[1];
  module.out = b->shape[0];
  module.scale = spec.scale_of(name);
  module.all_experts = ends_with(name, ".experts") || ends_with(name, ".experts.base_layer");
  if (!module.all_experts && module.rank != spec.rank_of(name)) {
    fail(ExitCode::kData,
         "lora_A has rank " + std::to_string(module.rank) + ", adapter_config.json gives " +
             std::to_string(spec.rank_of(name)),
         file.path() + ": " + a.name, "the files belong to different adapters");
  }
  module.a = read_matrix(file, a);
  module.b = read_matrix(file, *b);
  module.magnitude = read_magnitude(file, stem, module.out, spec);
  return module;
}

// The name in the model of a tensor that belongs to a module trained whole. The embeddings and the
// head PEFT also stores unasked, when the vocabulary has grown.
std::optional<std::string> saved_name(std::string_view tensor, const AdapterSpec& spec) {
  if (tensor.substr(0, kPrefix.size()) != kPrefix) return std::nullopt;
  const std::string_view name = tensor.substr(kPrefix.size());
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  std::string_view module = name.substr(0, dot);
  const std::string_view kind = name.substr(dot + 1);
  if (ends_with(module, kTableOfRows)) module.remove_suffix(kTableOfRows.size());
  if (kind != "weight" && kind != "bias") return std::nullopt;
  // PEFT's rule, which takes any end of the name: "norm" is "input_layernorm" too.
  const auto matches = [&](std::string_view end) { return ends_with(module, end); };
  if (matches("embed_tokens") || matches("lm_head") ||
      std::any_of(spec.modules_to_save.begin(), spec.modules_to_save.end(), matches)) {
    return std::string(module) + "." + std::string(kind);
  }
  return std::nullopt;
}

// The rows of a tensor "X.token_adapter.trainable_tokens_delta".
TokenRows read_rows(const SafetensorsFile& file,
                    const TensorInfo& tensor,
                    const std::string& name,
                    const AdapterSpec& spec) {
  const auto& known = spec.trainable_token_indices;
  auto indices = std::find_if(known.begin(), known.end(),
                              [&](const auto& entry) { return ends_with(name, entry.first); });
  // A head that is tied to the embedding has its ids.
  if (indices == known.end() && known.size() == 1) indices = known.begin();
  const std::string where = file.path() + ": " + tensor.name;
  if (indices == known.end()) {
    fail(ExitCode::kData, "adapter_config.json has no trainable_token_indices for these rows",
         where, "the files belong to different adapters");
  }
  const std::vector<int64_t>& ids = indices->second;
  if (tensor.shape.size() != 2 || tensor.shape[0] != static_cast<int64_t>(ids.size()) ||
      tensor.shape[1] == 0) {
    fail(ExitCode::kData,
         "the rows are " + shape_text(tensor.shape) + ", trainable_token_indices names " +
             std::to_string(ids.size()) + " tokens",
         where, "the files belong to different adapters");
  }
  return {name, ids, tensor.shape[1], read_matrix(file, tensor)};
}

// Rows of a table that is stored whole beside them go into it.
void join_rows(Adapter& adapter, const std::string& where) {
  const auto joins = [&](const TokenRows& rows) {
    const auto saved =
        std::find_if(adapter.saved.begin(), adapter.saved.end(),
                     [&](const SavedTensor& one) { return one.name == rows.name + ".weight"; });
    if (saved == adapter.saved.end()) return false;
    for (size_t i = 0; i < rows.ids.size(); ++i) {
      if (saved->shape.size() != 2 || saved->shape[1] != rows.width ||
          rows.ids[i] >= saved->shape[0]) {
        fail(ExitCode::kData,
             "the table is " + shape_text(saved->shape) + ", its row " +
                 std::to_string(rows.ids[i]) + " is " + std::to_string(rows.width) + " wide",
             where + ": " + rows.name, "the files belong to different adapters");
      }
      std::copy_n(rows.values.begin() + static_cast<int64_t>(i) * rows.width, rows.width,
                  saved->values.begin() + rows.ids[i] * rows.width);
    }
    return true;
  };
  adapter.rows.erase(std::remove_if(adapter.rows.begin(), adapter.rows.end(), joins),
                     adapter.rows.end());
}

Json names_json(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  Json list = Json::array();
  for (const std::string& name : names) list.push_back(name);
  return list;
}

Json config_json(const AdapterSpec& spec) {
  Json config = Json::object();
  const auto optional_text = [](const std::string& text) {
    return text.empty() ? Json() : Json(text);
  };
  // An alpha that is a whole number is written as one: some servers read an integer only.
  const auto number = [](double value) {
    return value == std::floor(value) && std::fabs(value) < 1e15 ? Json(static_cast<int64_t>(value))
                                                                 : Json(value);
  };
  Json alphas = Json::object(), ranks = Json::object();
  for (const auto& [pattern, alpha] : spec.alpha_pattern) alphas.set(pattern, number(alpha));
  for (const auto& [pattern, rank] : spec.rank_pattern) ranks.set(pattern, rank);
  config.set("alpha_pattern", alphas);
  config.set("base_model_name_or_path", optional_text(spec.base_model_name_or_path));
  config.set("bias", "none");
  config.set("fan_in_fan_out", false);
  config.set("inference_mode", true);
  config.set("init_lora_weights", true);
  config.set("layers_pattern", Json());
  config.set("layers_to_transform", Json());
  config.set("lora_alpha", number(spec.lora_alpha));
  config.set("lora_dropout", spec.lora_dropout);
  config.set("modules_to_save",
             spec.modules_to_save.empty() ? Json() : names_json(spec.modules_to_save));
  if (spec.ensure_weight_tying) config.set("ensure_weight_tying", true);
  config.set("peft_type", "LORA");
  config.set("r", spec.r);
  config.set("rank_pattern", ranks);
  config.set("revision", Json());
  if (spec.target_is_pattern) {
    config.set("target_modules", spec.target_modules.at(0));
  } else {
    config.set("target_modules", names_json(spec.target_modules));
  }
  config.set("task_type", "CAUSAL_LM");
  if (!spec.trainable_token_indices.empty()) {
    Json tables = Json::object();
    for (const auto& [table, ids] : spec.trainable_token_indices) {
      Json list = Json::array();
      for (const int64_t id : ids) list.push_back(id);
      tables.set(table, std::move(list));
    }
    config.set("trainable_token_indices", std::move(tables));
  }
  config.set("use_dora", spec.use_dora);
  config.set("use_rslora", spec.use_rslora);
  return config;
}

std::span<const std::byte> bytes_of(const float* values, int64_t count) {
  return std::as_bytes(std::span<const float>(values, static_cast<size_t>(count)));
}

void check_finite(const float* values, int64_t count, const std::string& name) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) {
      fail(ExitCode::kData, "value " + std::to_string(i) + " is not finite", name);
    }
  }
}

}  // namespace

Adapter read_peft(const std::string& directory) {
  refuse_pickle(directory);
  Adapter adapter;
  adapter.spec = parse_adapter_config(read_json_file(join_path(directory, kConfigName)));
  const SafetensorsFile file(join_path(directory, kTensorsName));
  for (const TensorInfo& tensor : file.tensors()) {
    const auto of_a = module_of(tensor.name, kA);
    const auto of_b = module_of(tensor.name, kB);
    if (of_a) adapter.modules.push_back(read_module(file, *of_a, adapter.spec));
    std::optional<std::string> other = of_b;  // that needs a lora_A beside it
    for (const std::string_view end : kMagnitudes) {
      if (!other) other = module_of(tensor.name, end);
    }
    if (of_a || (other && file.find(std::string(kPrefix) + *other + std::string(kA)) != nullptr)) {
      continue;
    }
    if (const auto name = module_of(tensor.name, kTokenRows)) {
      adapter.rows.push_back(read_rows(file, tensor, *name, adapter.spec));
      continue;
    }
    if (const auto name = saved_name(tensor.name, adapter.spec)) {
      adapter.saved.push_back({*name, tensor.shape, read_matrix(file, tensor)});
      continue;
    }
    fail(ExitCode::kData,
         other ? "the tensor has no lora_A beside it"
               : "the tensor is no part of a LoRA pair of a linear layer, and not of a module of "
                 "modules_to_save",
         file.path() + ": " + tensor.name,
         "graft reads lora_A.weight, lora_B.weight, lora_magnitude_vector, modules_to_save and "
         "trainable_tokens_delta; "
         "merge other kinds with PEFT");
  }
  if (adapter.modules.empty() && adapter.saved.empty() && adapter.rows.empty())
    fail(ExitCode::kData, "the adapter holds no tensors", file.path());
  if (!adapter.spec.trainable_token_indices.empty() && adapter.rows.empty()) {
    fail(ExitCode::kData, "trainable_token_indices names tokens, but there are no rows of them",
         file.path(), "the files belong to different adapters");
  }
  join_rows(adapter, file.path());
  adapter.metadata = file.metadata();
  adapter.sha256 = sha256_file(file.path());
  return adapter;
}

int64_t first_missing(const TokenRows* rows, int64_t stored, int64_t vocab_size) {
  std::vector<int64_t> ids = rows != nullptr ? rows->ids : std::vector<int64_t>();
  std::sort(ids.begin(), ids.end());
  int64_t next = stored;
  for (auto id = std::lower_bound(ids.begin(), ids.end(), stored); id != ids.end(); ++id) {
    if (*id != next) break;
    ++next;
  }
  return std::min(next, vocab_size);
}

void refuse_missing_row(int64_t id, int64_t stored, int64_t vocab_size, const std::string& where) {
  fail(ExitCode::kData,
       "the adapter is for a vocabulary of " + std::to_string(vocab_size) + ", the model has " +
           std::to_string(stored) + " rows, and that of token " + std::to_string(id) +
           " is in neither",
       where, "use the model that the adapter was trained on");
}

std::string write_peft(const std::string& directory,
                       const AdapterSpec& spec,
                       std::span<const AdapterTensors> modules,
                       const std::map<std::string, std::string>& metadata,
                       std::span<const SavedView> saved,
                       std::span<const TokenRowsView> rows) {
  std::vector<TensorBytes> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, const float* values) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    check_finite(values, count, name);
    tensors.push_back({{name, DType::kF32, std::move(shape)}, bytes_of(values, count)});
  };
  for (const AdapterTensors& module : modules) {
    if (module.rank != spec.rank_of(module.name)) {
      fail(ExitCode::kData,
           "module has rank " + std::to_string(module.rank) + ", the settings give " +
               std::to_string(spec.rank_of(module.name)),
           module.name);
    }
    const std::string stem = std::string(kPrefix) + module.name;
    add(stem + std::string(kA), {module.rank, module.in}, module.a);
    add(stem + std::string(kB), {module.out, module.rank}, module.b);
    if (spec.use_dora) add(stem + std::string(kMagnitudes[0]), {module.out}, module.magnitude);
  }
  for (const SavedView& one : saved) add(std::string(kPrefix) + one.name, one.shape, one.values);
  for (const TokenRowsView& one : rows) {
    add(std::string(kPrefix) + one.name + std::string(kTokenRows),
        {static_cast<int64_t>(one.ids.size()), one.width}, one.values);
  }
  make_directories(directory);
  JsonStyle style;
  style.indent = 2;
  style.sort_keys = true;
  const std::string digest =
      write_safetensors(join_path(directory, kTensorsName), std::move(tensors), metadata);
  write_file_atomically(join_path(directory, kConfigName), dump_json(config_json(spec), style));
  return digest;
}

}  // namespace graft::adapters
