#include "adapters/peft.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"

namespace graft::adapters {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight";
constexpr std::string_view kB = ".lora_B.weight";
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
  return module;
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
  config.set("modules_to_save", Json());
  config.set("peft_type", "LORA");
  config.set("r", spec.r);
  config.set("rank_pattern", ranks);
  config.set("revision", Json());
  if (spec.target_is_pattern) {
    config.set("target_modules", spec.target_modules.at(0));
  } else {
    std::vector<std::string> names = spec.target_modules;
    std::sort(names.begin(), names.end());
    Json list = Json::array();
    for (const std::string& name : names) list.push_back(name);
    config.set("target_modules", list);
  }
  config.set("task_type", "CAUSAL_LM");
  config.set("use_dora", false);
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
    if (of_a || (of_b && file.find(std::string(kPrefix) + *of_b + std::string(kA)) != nullptr)) {
      continue;
    }
    fail(ExitCode::kData,
         of_b ? "lora_B has no lora_A beside it"
              : "the tensor is not half of a LoRA pair of a linear layer",
         file.path() + ": " + tensor.name,
         "graft reads lora_A.weight and lora_B.weight; merge other kinds with PEFT");
  }
  if (adapter.modules.empty()) fail(ExitCode::kData, "the adapter holds no tensors", file.path());
  adapter.metadata = file.metadata();
  adapter.sha256 = sha256_file(file.path());
  return adapter;
}

std::string write_peft(const std::string& directory,
                       const AdapterSpec& spec,
                       std::span<const AdapterTensors> modules,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorBytes> tensors;
  for (const AdapterTensors& module : modules) {
    if (module.rank != spec.rank_of(module.name)) {
      fail(ExitCode::kData,
           "module has rank " + std::to_string(module.rank) + ", the settings give " +
               std::to_string(spec.rank_of(module.name)),
           module.name);
    }
    const std::string stem = std::string(kPrefix) + module.name;
    const int64_t a_count = module.rank * module.in, b_count = module.out * module.rank;
    check_finite(module.a, a_count, stem + std::string(kA));
    check_finite(module.b, b_count, stem + std::string(kB));
    tensors.push_back({{stem + std::string(kA), DType::kF32, {module.rank, module.in}},
                       bytes_of(module.a, a_count)});
    tensors.push_back({{stem + std::string(kB), DType::kF32, {module.out, module.rank}},
                       bytes_of(module.b, b_count)});
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
