#include "train/job/bench_step.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <omp.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"
#include "core/safetensors.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/job/compute.h"
#include "train/job/device_option.h"
#include "train/job/memory.h"
#include "train/job/scratch.h"
#include "train/model/extended.h"
#include "train/model/lora.h"
#include "train/model/placed.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

using Clock = std::chrono::steady_clock;

// The config.json of known models.
struct Shape {
  std::string_view name;
  std::string_view config;
};
constexpr Shape kShapes[] = {
    {"134m", R"({"model_type": "llama", "hidden_size": 768, "num_hidden_layers": 12,
"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2048,
"vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": false})"},
    {"1b", R"({"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
"vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": false})"},
    {"qwen2.5-7b", R"({"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28,
"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
"vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
"rms_norm_eps": 1e-6, "tie_word_embeddings": false})"},
    {"llama3-8b", R"({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
"rms_norm_eps": 1e-5, "tie_word_embeddings": false})"},
    {"llama3-70b", R"({"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
"rms_norm_eps": 1e-5, "tie_word_embeddings": false})"},
};

std::string shape_names() {
  std::string names;
  for (const Shape& shape : kShapes) names += (names.empty() ? "" : "|") + std::string(shape.name);
  return names;
}

ModelConfig config_of_shape(const std::string& name) {
  std::vector<std::string_view> known;
  if (directory_exists(name)) return read_model_config(name);
  for (const Shape& shape : kShapes) {
    known.push_back(shape.name);
    if (shape.name != name) continue;
    const ScratchDirectory directory;
    write_file_atomically(join_path(directory.path(), "config.json"), shape.config);
    return read_model_config(directory.path());
  }
  fail(ExitCode::kUsage, unknown_name("shape", name, known), "--shape");
}

// Random weights, uniform in +-0.03, about the spread of trained ones, and random 4-bit codes. A
// tensor in host memory has values of its own; in a device's memory tensors are copies of a few
// millions of values, each from another place on, so that tens of gigabytes are there in a moment.
class RandomWeights {
 public:
  explicit RandomWeights(const Device& device) : device_(device) {}

  at::Tensor dense(uint64_t stream, graft_float_type type, at::IntArrayRef shape) {
    return type == GRAFT_BF16 ? make<at::BFloat16>(stream, at::kBFloat16, shape, weight)
                              : make<float>(stream, at::kFloat, shape, weight);
  }

  // In host memory, for a device: copies too.
  at::Tensor dense_on_host(uint64_t stream, graft_float_type type, at::IntArrayRef shape) {
    const int64_t rows = std::min(shape[0], std::max<int64_t>(kPool / shape[1], 1));
    const at::ScalarType scalar = type == GRAFT_BF16 ? at::kBFloat16 : at::kFloat;
    at::Tensor tensor = empty_on({}, scalar, shape);
    at::Tensor first = tensor.narrow(0, 0, rows);
    if (type == GRAFT_BF16) {
      fill<at::BFloat16>(stream, first, weight);
    } else {
      fill<float>(stream, first, weight);
    }
    auto* const bytes = static_cast<std::byte*>(tensor.data_ptr());
    for (size_t done = first.nbytes(); done < tensor.nbytes(); done += first.nbytes()) {
      std::memcpy(bytes + done, bytes, std::min(first.nbytes(), tensor.nbytes() - done));
    }
    return tensor;
  }

  at::Tensor norm(uint64_t stream, at::IntArrayRef shape) {
    at::Tensor values = empty_on({}, at::kFloat, shape);
    fill<float>(stream, values, weight);
    values.add_(1);
    return on_device(device_, values);
  }

  // A weight in 4 bits whose blocks all have the absmax 0.04: the work of decoding it is that of
  // any other.
  BaseWeight packed(uint64_t stream, int64_t count) {
    BaseWeight base;
    base.block_size = 64;
    base.count = count;
    base.offset = 0.04F;
    const int64_t blocks = graft_nf4_block_count(count, base.block_size);
    base.packed =
        make<uint8_t>(stream, at::kByte, {graft_nf4_packed_bytes(count)},
                      [](const Philox& random, uint64_t i) { return random.below(i, 256); });
    base.absmax8 = zeros_on(device_, at::kByte, {blocks});
    base.nested_absmax =
        zeros_on(device_, at::kFloat, {graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK)});
    return base;
  }

 private:
  static constexpr int64_t kPool = 1 << 22;

  static float weight(const Philox& random, uint64_t i) {
    return 0.06F * (random.uniform(i) - 0.5F);
  }

  template <typename Value, typename Next>
  static void fill(uint64_t stream, at::Tensor& tensor, const Next& next) {
    const Philox random(1, stream);
    auto* values = tensor.data_ptr<Value>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      values[i] = static_cast<Value>(next(random, static_cast<uint64_t>(i)));
    }
  }

  template <typename Value, typename Next>
  at::Tensor make(uint64_t stream, at::ScalarType type, at::IntArrayRef shape, const Next& next) {
    at::Tensor tensor = empty_on(device_, type, shape);
    if (device_.is_host()) {
      fill<Value>(stream, tensor, next);
      return tensor;
    }
    at::Tensor& pool = pools_[type];
    if (!pool.defined()) {
      at::Tensor values = empty_on({}, type, {kPool});
      fill<Value>(1, values, next);
      pool = on_device(device_, values);
    }
    auto* const to = tensor.data_ptr<Value>();
    int64_t from = static_cast<int64_t>(stream % kPool);
    for (int64_t done = 0, count = 0; done < tensor.numel(); done += count, from = 0) {
      count = std::min(kPool - from, tensor.numel() - done);
      device_.copy(to + done, pool.data_ptr<Value>() + from,
                   static_cast<size_t>(count) * sizeof(Value));
    }
    return tensor;
  }

  Device device_;
  std::map<at::ScalarType, at::Tensor> pools_;
};

// On the device, but for an embedding that may stay on the host.
std::unique_ptr<Model> random_model(const ModelConfig& config,
                                    Precision precision,
                                    graft_float_type operands,
                                    const Device& device) {
  auto model = empty_model(config);
  if (operands == GRAFT_BF16) round_operands(*model, {});
  RandomWeights random(device);
  for (const BaseTensor& tensor : base_tensors(*model)) {
    const uint64_t stream = xxh3_64(tensor.name);
    if (precision == Precision::kNf4 && tensor.linear != nullptr && tensor.linear->quantizes) {
      tensor.linear->base = random.packed(stream, tensor.count());
    } else if (tensor.shape.size() == 1) {
      *tensor.value = random.norm(stream, tensor.shape);
    } else {
      const graft_float_type type = tensor.type != nullptr ? *tensor.type : GRAFT_F32;
      const bool may_stay = tensor.value == &model->embedding && model->can_embed_on_host();
      *tensor.value = may_stay && !device.is_host()
                          ? random.dense_on_host(stream, type, tensor.shape)
                          : random.dense(stream, type, tensor.shape);
    }
  }
  if (config.tied_embeddings) model->head = model->embedding;
  return model;
}

// Token ids [steps, batch, length], all supervised: of a file, or random.
class Tokens {
 public:
  Tokens(const std::string& path, int64_t vocab) : vocab_(vocab) {
    if (path.empty()) return;
    file_ = std::make_unique<SafetensorsFile>(path);
    const TensorInfo& info = file_->at("input_ids");
    if (info.dtype != DType::kI64 || info.shape.size() != 3) {
      fail(ExitCode::kData, "expected I64 [steps, batch, length], got " + shape_text(info.shape),
           path + ": input_ids");
    }
    shape_ = info.shape;
    ids_.resize(static_cast<size_t>(info.count()));
    std::memcpy(ids_.data(), file_->bytes(info).data(), file_->bytes(info).size());
  }

  void fill(int64_t step, int64_t rows, int64_t length, Batch& batch) const {
    const float weights[2] = {0.0F, 1.0F};
    const Philox random(1, static_cast<uint64_t>(step));
    if (!shape_.empty() && (shape_[1] != rows || shape_[2] != length || step >= shape_[0])) {
      fail(ExitCode::kUsage,
           "the ids are " + shape_text(shape_) + ", step " + std::to_string(step + 1) + " needs " +
               std::to_string(rows) + " x " + std::to_string(length),
           "--ids");
    }
    batch.clear();
    const std::vector<uint8_t> loss(static_cast<size_t>(length), 1);
    std::vector<int32_t> row_ids(loss.size());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t t = 0; t < length; ++t) {
        const int64_t at = row * length + t;
        row_ids[static_cast<size_t>(t)] =
            shape_.empty()
                ? static_cast<int32_t>(
                      random.below(static_cast<uint64_t>(at), static_cast<uint64_t>(vocab_)))
                : static_cast<int32_t>(ids_[static_cast<size_t>(step * rows * length + at)]);
      }
      batch.begin_row();
      batch.add(row_ids, loss, weights, row * length);
    }
  }

 private:
  int64_t vocab_;
  std::unique_ptr<SafetensorsFile> file_;
  std::vector<int64_t> shape_;
  std::vector<int64_t> ids_;
};

// Seconds since the process began, in whole ticks of the system (10 ms).
double process_age() {
  const std::string stat = read_file("/proc/self/stat");
  // The 22nd field; the second may hold blanks and ends in ")".
  std::string_view rest = stat;
  rest.remove_prefix(stat.rfind(')') + 2);
  for (int field = 3; field < 22; ++field) rest.remove_prefix(rest.find(' ') + 1);
  const double started =
      std::strtod(std::string(rest).c_str(), nullptr) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return std::strtod(read_file("/proc/uptime").c_str(), nullptr) - started;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

MomentType moments_of(const Args& args) {
  const std::string name = args.text("--optimizer");
  const auto* const found = std::find(kOptimizerNames.begin(), kOptimizerNames.end(), name);
  if (found == kOptimizerNames.end()) {
    fail(ExitCode::kUsage, unknown_name("optimizer", name, kOptimizerNames), "--optimizer");
  }
  return static_cast<MomentType>(found - kOptimizerNames.begin());
}

// "base weights 3.3 GiB, adapters 80 MiB, ...", with what of it lies on the host.
std::string parts_text(const MemoryPlan& plan) {
  std::string text;
  for (const MemoryPart& part : parts_of(plan)) {
    if (part.bytes == 0) continue;
    text += (text.empty() ? "" : ", ") + part.name + " " + format_bytes(part.bytes);
    if (part.on_host > 0) text += " (" + format_bytes(part.on_host) + " on the host)";
  }
  return text;
}

int run_bench_step(const Args& args) {
  const Device device = device_of(args);
  const int64_t memory_before = memory_in_use(device), free_before = free_memory(device);
  const int64_t threads = args.integer("--threads", 0, 1024);
  if (threads > 0) omp_set_num_threads(static_cast<int>(threads));
  const bool quantizes = args.flag("--load-in-4bit");
  const int64_t rank = args.integer("--lora-r", 0, 512);
  const int64_t rows = args.integer("--batch", 1, 4096);
  const int64_t length = args.integer("--seq", 2, 1 << 20);
  const int64_t steps = args.integer("--steps", 2, 1000000);
  const std::string directory = args.text("--model"), shape = args.text("--shape");
  if (directory.empty() == shape.empty()) {
    fail(ExitCode::kUsage, "give --model DIR or --shape " + shape_names(), "command line");
  }
  const Precision precision = quantizes ? Precision::kNf4 : Precision::kFull;
  graft_float_type operands = operands_of(args, device);
  if (rank == 0) {
    if (args.text("--compute") == "bf16") {
      fail(ExitCode::kUsage, "--compute bf16 where every weight is trained", "command line",
           "leave out --compute, or give --lora-r");
    }
    operands = GRAFT_F32;
  }
  const auto model = shape.empty()
                         ? load_model(directory, precision,
                                      args.flag("--no-quantized-cache") ? QuantizedCache{}
                                                                        : QuantizedCache::in_home(),
                                      {operands})
                         : random_model(config_of_shape(shape), precision, operands, device);
  if (rank > 0) {
    LoraSettings settings;
    settings.rank = rank;
    settings.alpha = 2.0 * static_cast<double>(rank);
    settings.targets = {"all-linear"};
    add_lora(*model, settings, 1);
  } else {
    train_everything(*model);
  }
  choose_width(*model);
  PlanRequest request;
  request.device = device.kind;
  request.moments = moments_of(args);
  request.deterministic = !args.flag("--any-order");
  request.rows = rows;
  request.sequence_len = length;
  request.trains_everything = rank == 0;
  const std::string limit = args.text("--max-memory");
  request.cap = limit.empty() ? free_before : parse_bytes(limit);
  if (request.cap < 0) {
    fail(ExitCode::kUsage, "expected a size, got \"" + limit + "\"", "--max-memory",
         "write a number and a unit: 8GiB");
  }
  const MemoryPlan plan = choose_plan(*model, request);
  if (!plan.fits) {
    fail(ExitCode::kDevice,
         "the step needs at least " + format_bytes(plan.on_device()) + ", " +
             format_bytes(request.cap) + " are allowed",
         "memory plan", "lower --batch or --seq");
  }
  model->embeds_on_host = plan.training.embeds_on_host;
  const PlacedModel placed(*model, device);
  Decoder decoder(*model, plan.training, device);
  AdamW optimizer(model->trained, request.moments);
  const Tokens tokens(args.text("--ids"), model->config.vocab_size);
  const double first_begins = process_age();
  bool clock_waits = false;

  Batch batch;
  std::vector<double> seconds;  // of the steps that are counted
  double wall = 0;              // of those whose parts are told apart
  Json losses = Json::array();
  double first_ends = 0, data_seconds = 0, optimizer_seconds = 0;
  int64_t peak = 0, allocated = 0;
  const auto since = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  const auto run_step = [&](int64_t step) {
    const auto start = Clock::now();
    tokens.fill(step, rows, length, batch);
    data_seconds += since(start);
    const auto begin = Clock::now();
    optimizer.zero_gradients();
    if (clock_waits) device.wait();
    optimizer_seconds += since(begin);
    const double scale = 1 / batch.weight_sum;
    const float* residual = decoder.forward(batch, 0);
    const HeadResult head =
        decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
    decoder.backward(batch, decoder.gradient_buffer());
    decoder.finish_gradients();
    const auto update = Clock::now();
    optimizer.step({}, 1e-4, head.loss_sum * scale);
    refresh_trained(*model);
    if (clock_waits) device.wait();
    optimizer_seconds += since(update);
    losses.push_back(head.loss_sum * scale);
    peak = std::max(peak, memory_in_use(device) - memory_before);
    allocated = std::max(allocated, device_bytes().now);
    return since(start);
  };
  const auto clear_parts = [&] {
    decoder.clock().clear();
    data_seconds = optimizer_seconds = wall = 0;
  };
  for (int64_t step = 0; step < steps; ++step) {
    if (step == 1) clear_parts();
    const double taken = run_step(step);
    wall += taken;
    if (step > 0) seconds.push_back(taken);
    if (step == 0) first_ends = process_age();
  }
  auto counted = static_cast<double>(seconds.size());
  if (device.kind == GRAFT_CUDA) {
    // A GPU works behind the host's back: its parts are told apart in steps of their own that wait
    // for each of them.
    clear_parts();
    decoder.clock().wait_for(&device);
    clock_waits = true;
    counted = 3;
    for (int64_t step = 0; step < 3; ++step) wall += run_step(steps + step);
  }
  wall /= counted;
  Json breakdown = Json::object();
  double known = 0;
  const auto part = [&](const char* name, double sum) {
    breakdown.set(name, sum / counted);
    known += sum / counted;
  };
  part("data", data_seconds);
  for (size_t work = 0; work < kWorkNames.size(); ++work) {
    const double own = decoder.clock().seconds(static_cast<Work>(work));
    part(kWorkNames[work], static_cast<Work>(work) == Work::kOptimizer ? optimizer_seconds : own);
  }
  const double step_seconds = median(seconds);
  const auto per_step = static_cast<double>(rows * length);
  const int64_t most_allocated = device_bytes().most;  // before the rate's own matrices
  const double rate = product_rate(operands, device);
  const double mfu = plan.flops.total() / step_seconds / rate;
  const int64_t planned =
      device.is_host() ? plan.total() - model->mapped_bytes() : plan.on_device();
  if (args.json()) {
    std::printf("%s\n", dump_json(Json::object({{"tokens_per_s", per_step / step_seconds},
                                                {"step_s", step_seconds},
                                                {"peak_rss_bytes", peak},
                                                {"planned_bytes", planned},
                                                {"allocated_bytes", allocated},
                                                {"most_allocated_bytes", most_allocated},
                                                {"planned_parts", parts_to_json(plan)},
                                                {"embedding_on_host", plan.training.embeds_on_host},
                                                {"fullest_phase", fullest_phase(*model, plan)},
                                                {"first_step_begins_s", first_begins},
                                                {"first_step_s", first_ends},
                                                {"breakdown", breakdown},
                                                {"breakdown_share", known / wall},
                                                {"mfu", mfu},
                                                {"product_flops_per_s", rate},
                                                {"threads", omp_get_max_threads()},
                                                {"compute", compute_name(operands)},
                                                {"blocks", layers_text(plan.training)},
                                                {"losses", losses}}))
                            .c_str());
    return 0;
  }
  std::printf("%s tokens/s, %s s a step, %s %% of the %s product's rate (%s GFLOP/s)\n",
              format_count(static_cast<int64_t>(per_step / step_seconds)).c_str(),
              format_fixed(step_seconds, 3).c_str(), format_fixed(100 * mfu, 1).c_str(),
              compute_name(operands), format_fixed(rate / 1e9, 0).c_str());
  std::printf(
      "memory %s used, %s planned, most in %s; first step from %s s to %s s after the start\n",
      format_bytes(peak).c_str(), format_bytes(planned).c_str(),
      fullest_phase(*model, plan).c_str(), format_fixed(first_begins, 2).c_str(),
      format_fixed(first_ends, 2).c_str());
  if (!device.is_host()) {
    std::printf("       %s of the device asked for by graft itself, %s while loading\n",
                format_bytes(allocated).c_str(), format_bytes(most_allocated).c_str());
  }
  std::printf("parts  %s\n", parts_text(plan).c_str());
  std::printf("blocks %s\n", layers_text(plan.training).c_str());
  std::vector<std::vector<std::string>> table = {{"part of a step", "ms", "share"}};
  for (const auto& [name, value] : breakdown.as_object()) {
    if (value.as_double() == 0) continue;
    table.push_back({name, format_fixed(1e3 * value.as_double(), 1),
                     format_fixed(100 * value.as_double() / wall, 1) + " %"});
  }
  table.push_back({"together", format_fixed(1e3 * known, 1),
                   format_fixed(100 * known / wall, 1) + " % of " + format_fixed(1e3 * wall, 1)});
  std::printf("%s", format_table("<>>", table).c_str());
  return 0;
}

}  // namespace

Command bench_step_command() {
  static const std::string shape_help =
      "random weights of a known shape, or of a directory's config.json: " + shape_names();
  static const Option shape = {"--shape", "NAME|DIR", "", shape_help.c_str()};
  return {"bench step",
          "",
          0,
          0,
          "speed, memory and breakdown of training steps on random tokens, all supervised",
          {{"--model", "DIR", "", "Hugging Face directory of the base"},
           shape,
           {"--load-in-4bit", "", "", "quantize the linears to NF4 while loading"},
           {"--no-quantized-cache", "", "",
            "neither use nor keep 4-bit weights in $XDG_CACHE_HOME/graft"},
           {"--lora-r", "N", "16", "rank on all linears; 0 = train every tensor"},
           {"--batch", "N", "4", "packed rows of a step"},
           {"--seq", "N", "256", "tokens of a row"},
           {"--steps", "N", "20", "steps; the first is not counted"},
           {"--ids", "FILE", "", "safetensors file with input_ids I64 [steps, batch, length]"},
           {"--max-memory", "SIZE", "", "what weights, optimizer and buffers may take"},
           {"--optimizer", "adamw|adamw_8bit", "adamw", "as a config's optimizer"},
           compute_option("auto"),
           kDeviceOption,
           {"--any-order", "", "",
            "let a GPU's attention add gradients in any order: faster, and the last bits differ "
            "from run to run"},
           {"--threads", "N", "0", "CPU threads; 0 = every processor"}},
          {"graft bench step --shape 134m --load-in-4bit"},
          run_bench_step};
}

}  // namespace graft::train
