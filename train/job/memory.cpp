#include "train/job/memory.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <omp.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"
#include "kernels/memory.h"
#include "train/engine/device.h"
#include "train/engine/tensor.h"
#include "train/job/compute.h"
#include "train/job/device_option.h"
#include "train/job/vocabulary.h"
#include "train/model/extended.h"
#include "train/model/lora.h"

namespace graft::train {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr Unit kUnits[] = {{"", 1},         {"B", 1},       {"KB", 1e3},     {"MB", 1e6},
                           {"GB", 1e9},     {"TB", 1e12},   {"KiB", 1024.0}, {"MiB", 0x1p20},
                           {"GiB", 0x1p30}, {"TiB", 0x1p40}};

// The number behind `key` in a file of "key: number kB" lines, in bytes; -1 without.
int64_t kilobytes_at(const std::string& path, std::string_view key) {
  if (!file_exists(path)) return -1;
  const std::string text = read_file(path);
  const size_t at = text.find(std::string(key) + ":");
  if (at == std::string::npos) return -1;
  return std::strtoll(text.c_str() + at + key.size() + 1, nullptr, 10) * 1024;
}

// A number that is a file's whole content; -1 for "max" and where there is no such file.
int64_t number_in(const std::string& path) {
  if (!file_exists(path)) return -1;
  const std::string text = read_file(path);
  return text.empty() || text[0] < '0' || text[0] > '9' ? -1
                                                        : std::strtoll(text.c_str(), nullptr, 10);
}

// Limit less use, of the process's own control group (version 2, or version 1).
int64_t left_in_group() {
  constexpr std::pair<const char*, const char*> kFiles[] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
       "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  int64_t left = std::numeric_limits<int64_t>::max();
  for (const auto& [limit_path, use_path] : kFiles) {
    const int64_t limit = number_in(limit_path), use = number_in(use_path);
    if (limit >= 0 && use >= 0) left = std::min(left, std::max<int64_t>(limit - use, 0));
  }
  return left;
}

struct DeviceMemory {
  size_t free, total;
};

DeviceMemory memory_of(const Device& device) {
  DeviceMemory memory{};
  check(graft_device_memory(device.kind, &memory.free, &memory.total));
  return memory;
}

// `request.rows` becomes what is computed at once.
MemoryPlan plan_shapes(const TrainConfig& config, const Model& shapes, PlanRequest& request) {
  return config.micro_batch_size > 0 ? choose_plan(shapes, request)
                                     : choose_rows(shapes, request, config.rows_per_step());
}

// One change of a config, and the plan that it would give.
struct Change {
  std::string text;
  TrainConfig config;
};

std::vector<Change> changes_of(const TrainConfig& config) {
  std::vector<Change> changes;
  const auto add = [&](std::string text, const auto& change) {
    changes.push_back({std::move(text), config});
    change(changes.back().config);
  };
  if (config.micro_batch_size > 1) {
    const std::string rows = std::to_string(config.rows_per_step());
    add("micro_batch_size: 1 with gradient_accumulation_steps: " + rows + " (the same result)",
        [](TrainConfig& c) { c.micro_batch_size = 1; });
  }
  if (config.method != Method::kQlora) {
    add("adapter: qlora", [](TrainConfig& c) { c.method = Method::kQlora; });
  }
  if (config.operands == GRAFT_F32 && may_round(config)) {
    add("compute: bf16", [](TrainConfig& c) { c.operands = GRAFT_BF16; });
  }
  for (int64_t length = config.sequence_len / 2; length >= 128; length /= 2) {
    add("sequence_len: " + std::to_string(length),
        [&](TrainConfig& c) { c.sequence_len = length; });
  }
  if (config.optimizer.moments != MomentType::k8Bit) {
    add("optimizer: adamw_8bit", [](TrainConfig& c) { c.optimizer.moments = MomentType::k8Bit; });
  }
  if (config.method != Method::kFull && config.lora.rank > 8) {
    add("lora_r: 8", [](TrainConfig& c) { c.lora.rank = 8; });
  }
  return changes;
}

// The longest sequence_len and each other change that fits.
std::vector<std::string> fitting_changes(const TrainConfig& config,
                                         const ModelConfig& model,
                                         const RunPlan& plan) {
  std::vector<std::string> texts;
  bool shortened = false;
  for (const Change& change : changes_of(config)) {
    const bool shortens = change.config.sequence_len != config.sequence_len;
    if (shortens && shortened) continue;
    const RunPlan other = plan_run(change.config, model);
    if (!other.memory.fits) continue;
    shortened = shortened || shortens;
    texts.push_back(change.text + " needs " + format_bytes(other.memory.total()));
  }
  texts.push_back((config.max_memory > 0              ? "max_memory: "
                   : config.device.kind == GRAFT_CUDA ? "a GPU with "
                                                      : "a machine with ") +
                  std::to_string(plan.memory.on_device()) +
                  (config.max_memory > 0 ? "" : " bytes free") +
                  ", all that this config needs when blocks keep the least");
  if (texts.size() > 3) texts.erase(texts.begin() + 2, texts.end() - 1);
  return texts;
}

struct Estimate {
  double flops_per_s = 0;
  double seconds = 0;  // of an optimizer step
  int64_t tokens = 0;
};

Estimate estimate_of(const TrainConfig& config, const MemoryPlan& plan) {
  Estimate estimate;
  estimate.flops_per_s = product_rate(config.operands, config.device);
  estimate.tokens = config.rows_per_step() * config.sequence_len;
  estimate.seconds = plan.flops.total() * static_cast<double>(estimate.tokens) /
                     static_cast<double>(plan.training.tokens) / estimate.flops_per_s;
  return estimate;
}

int64_t bytes_in_use(const Layout& layout, int phase) {
  return layout.live(phase, Place::kDevice) + layout.live(phase, Place::kHost);
}

// The largest phase of each kind.
struct PhaseUse {
  std::string name;
  int64_t bytes = 0;
};

std::vector<PhaseUse> phase_uses(const Model& model, const MemoryPlan& plan) {
  const Timeline time(plan.training);
  const Layout layout = plan_layout(model, plan.training);
  std::vector<PhaseUse> uses = {{"forward", 0}, {"head and loss", 0}, {"backward", 0}};
  for (int phase = 0; phase < layout.phases; ++phase) {
    PhaseUse& use = uses[phase < time.head() ? 0 : phase == time.head() ? 1 : 2];
    use.bytes = std::max(use.bytes, bytes_in_use(layout, phase));
  }
  return uses;
}

}  // namespace

int64_t parse_bytes(std::string_view text) {
  const std::string copy(text);
  char* end = nullptr;
  const double number = std::strtod(copy.c_str(), &end);
  std::string_view unit = end;
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  for (const Unit& known : kUnits) {
    if (known.name != unit) continue;
    const double bytes = number * known.bytes;
    return end != copy.c_str() && bytes >= 1 && bytes < 0x1p62 ? static_cast<int64_t>(bytes) : -1;
  }
  return -1;
}

int64_t free_memory() {
  const int64_t available = kilobytes_at("/proc/meminfo", "MemAvailable");
  const int64_t group = left_in_group();
  return available < 0 ? group : std::min(available, group);
}

int64_t free_memory(const Device& device) {
  if (device.kind != GRAFT_CUDA) return free_memory();
  const auto [free, total] = memory_of(device);
  // LibTorch's attention, cuBLASLt and the driver take some of it, and allocations are rounded up.
  constexpr size_t kReserve = size_t{1} << 30;
  const size_t reserve = std::max(kReserve, total / 32);
  return static_cast<int64_t>(free > reserve ? free - reserve : 0);
}

int64_t memory_in_use(const Device& device) {
  if (device.kind != GRAFT_CUDA) return anonymous_memory();
  const auto [free, total] = memory_of(device);
  return static_cast<int64_t>(total - free);
}

int64_t total_memory() {
  return kilobytes_at("/proc/meminfo", "MemTotal");
}

int64_t anonymous_memory() {
  return std::max<int64_t>(kilobytes_at("/proc/self/status", "RssAnon"), 0);
}

PlanRequest plan_request(const TrainConfig& config) {
  PlanRequest request;
  request.rows = std::max<int64_t>(config.micro_batch_size, 1);
  request.sequence_len = config.sequence_len;
  const Json content = read_json_file(join_path(config.base_model, "config.json"));
  request.quantizes =
      config.method == Method::kQlora || content.find("quantization_config") != nullptr;
  request.trains_everything = config.method == Method::kFull;
  request.moments = config.optimizer.moments;
  request.device = config.device.kind;
  request.deterministic = config.deterministic;
  request.cap = config.max_memory > 0 ? config.max_memory : free_memory(config.device);
  return request;
}

std::unique_ptr<Model> shapes_of(const TrainConfig& config, const ModelConfig& model) {
  auto shapes = empty_model(model);
  if (config.operands == GRAFT_BF16) round_operands(*shapes, config.lora.saved);
  if (config.method != Method::kFull) add_lora_shapes(*shapes, config.lora, config.precision());
  choose_width(*shapes);
  return shapes;
}

RunPlan plan_run(const TrainConfig& config, const ModelConfig& model) {
  RunPlan plan;
  plan.request = plan_request(config);
  plan.memory = plan_shapes(config, *shapes_of(config, model), plan.request);
  return plan;
}

void refuse_unfit(const TrainConfig& config, const ModelConfig& model, const RunPlan& plan) {
  if (plan.memory.fits) return;
  std::string fix = "any of these would fit:";
  for (const std::string& text : fitting_changes(config, model, plan)) fix += "\n         " + text;
  fail(ExitCode::kDevice,
       "this run needs at least " + format_bytes(plan.memory.on_device()) + ", " +
           format_bytes(plan.request.cap) +
           (config.max_memory > 0 ? " are allowed (max_memory)" : " are free"),
       "memory plan", fix);
}

double product_rate(graft_float_type operands, const Device& device) {
  const int64_t size = device.kind == GRAFT_CUDA ? 8192 : 768;
  const at::ScalarType type = operands == GRAFT_BF16 ? at::kBFloat16 : at::kFloat;
  // Products of zeros are faster on a GPU: less of it changes.
  const auto fill = [&] {
    at::Tensor values = empty_on({}, type, {size, size});
    const Philox random(1, 1);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < values.numel(); ++i) {
      const float value = random.uniform(static_cast<uint64_t>(i)) - 0.5F;
      if (operands == GRAFT_BF16) {
        values.data_ptr<at::BFloat16>()[i] = static_cast<at::BFloat16>(value);
      } else {
        f32(values)[i] = value;
      }
    }
    return on_device(device, values);
  };
  const at::Tensor a = fill(), b = fill(), c = zeros_on(device, at::kFloat, {size, size});
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto since = [](auto from) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
  };
  while (since(start) < 0.1) {
    const auto begin = std::chrono::steady_clock::now();
    multiply(device, {GRAFT_N, GRAFT_T, size, size, size, 1, a.data_ptr(), b.data_ptr(), 0, f32(c),
                      operands});
    device.wait();
    best = std::max(best, 2.0 * static_cast<double>(size * size * size) / since(begin));
  }
  return best;
}

std::vector<MemoryPart> parts_of(const MemoryPlan& plan) {
  const bool apart = plan.training.own_memory();
  return {{"base weights", plan.weights, plan.host_weights},
          {"weights kept decoded", plan.decoded},
          {"adapters", plan.trained},
          {"gradients", plan.gradients},
          {"moments of AdamW", plan.moments, plan.host_moments},
          {"buffers", plan.buffers(), apart ? plan.host_bytes : 0}};
}

Json parts_to_json(const MemoryPlan& plan) {
  Json bytes = Json::object(), on_host = Json::object();
  for (const MemoryPart& part : parts_of(plan)) {
    bytes.set(part.name, part.bytes);
    if (part.on_host > 0) on_host.set(part.name, part.on_host);
  }
  return Json::object({{"bytes", bytes}, {"on_host", on_host}});
}

Json plan_to_json(const MemoryPlan& plan) {
  const Json parts = parts_to_json(plan);
  Json layers = Json::array();
  for (const LayerPlan& layer : plan.training.layers) {
    layers.push_back(Json::object({{"memory", kLayerMemoryNames[static_cast<size_t>(layer.memory)]},
                                   {"decoded", layer.resident}}));
  }
  return Json::object({{"total_bytes", plan.total()},
                       {"on_device_bytes", plan.on_device()},
                       {"bytes", parts.at("bytes")},
                       {"on_host", parts.at("on_host")},
                       {"embedding_on_host", plan.training.embeds_on_host},
                       {"fits", plan.fits},
                       {"layers", layers},
                       {"head_rows", plan.training.head_chunk},
                       {"micro_batch_tokens", plan.training.tokens},
                       {"flops", Json::object({{"forward", plan.flops.forward},
                                               {"backward", plan.flops.backward},
                                               {"again", plan.flops.again}})}});
}

std::string fullest_phase(const Model& model, const MemoryPlan& plan) {
  const Layout layout = plan_layout(model, plan.training);
  int fullest = 0;
  for (int phase = 1; phase < layout.phases; ++phase) {
    if (bytes_in_use(layout, phase) > bytes_in_use(layout, fullest)) fullest = phase;
  }
  return Timeline(plan.training).name(fullest);
}

int run_plan(const Args& args) {
  TrainConfig config = read_train_config(args);
  run_on(config, device_of(args));
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
  const ModelConfig model_config = read_vocabulary(config).model;
  const auto model = shapes_of(config, model_config);
  RunPlan plan;
  plan.request = plan_request(config);
  plan.memory = plan_shapes(config, *model, plan.request);
  const PlanRequest& request = plan.request;
  refuse_unfit(config, model_config, plan);
  const MemoryPlan& memory = plan.memory;
  const std::vector<PhaseUse> uses = phase_uses(*model, memory);
  const Estimate estimate = estimate_of(config, memory);
  if (args.json()) {
    Json json = plan_to_json(memory);
    Json phases = Json::object();
    for (const PhaseUse& use : uses) phases.set(use.name, use.bytes);
    json.set("buffers_by_phase", phases);
    json.set("compute", compute_name(config.operands));
    json.set("fullest_phase", fullest_phase(*model, memory));
    json.set("limit_bytes", request.cap);
    json.set("micro_batch_rows", request.rows);
    json.set("tokens_per_step", estimate.tokens);
    json.set("product_flops_per_s", estimate.flops_per_s);
    json.set("least_seconds_per_step", estimate.seconds);
    std::printf("%s\n", dump_json(json, {.indent = 2}).c_str());
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {{"memory", "bytes", ""}};
  const auto add = [&](const std::string& name, int64_t bytes) {
    if (bytes > 0) rows.push_back({name, format_count(bytes), format_bytes(bytes)});
  };
  for (const MemoryPart& part : parts_of(memory)) {
    add(part.name, part.bytes);
    add("  of them on the host", part.on_host);
  }
  add("together", memory.total());
  if (memory.on_host() > 0) add("together on the device", memory.on_device());
  for (const PhaseUse& use : uses) {
    rows.push_back({"buffers in " + use.name, format_count(use.bytes), format_bytes(use.bytes)});
  }
  std::printf("%s", format_table("<>>", rows).c_str());
  std::printf("fullest  %s\n", fullest_phase(*model, memory).c_str());
  std::printf("limit    %s (%s)\n", format_bytes(request.cap).c_str(),
              config.max_memory > 0 ? "max_memory" : "what is free now");
  std::printf("compute  %s operands of the products with frozen weights\n",
              compute_name(config.operands));
  std::printf("rows     %s of the %s of a step at once%s\n", format_count(request.rows).c_str(),
              format_count(config.rows_per_step()).c_str(),
              config.micro_batch_size > 0 ? "" : " (micro_batch_size: auto)");
  std::printf("blocks   %s\n", layers_text(memory.training).c_str());
  if (memory.training.embeds_on_host) {
    std::printf("tables   the embedding stays in the host's memory\n");
  }
  std::printf("head     %s rows of logits at a time\n",
              format_count(memory.training.head_chunk).c_str());
  std::printf("work     %s GFLOP a micro-batch of %s tokens, %s %% of it computed twice\n",
              format_fixed(memory.flops.total() / 1e9, 1).c_str(),
              format_count(memory.training.tokens).c_str(),
              format_fixed(100 * memory.flops.again / memory.flops.total(), 1).c_str());
  std::printf(
      "time     at least %s s a step of %s tokens (%s tokens/s) at the %s GFLOP/s of this "
      "machine's matrix product\n",
      format_fixed(estimate.seconds, 2).c_str(), format_count(estimate.tokens).c_str(),
      format_count(static_cast<int64_t>(static_cast<double>(estimate.tokens) / estimate.seconds))
          .c_str(),
      format_fixed(estimate.flops_per_s / 1e9, 0).c_str());
  return 0;
}

}  // namespace graft::train
