#include "train/job/extent.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/progress.h"
#include "train/job/memory.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

// With so many weights in the blocks a step of these rows takes about two seconds on two cores, and
// the checks compute about fifteen.
constexpr int64_t kMostWeights = int64_t{1} << 27;

ModelConfig first_layers(ModelConfig config, int64_t layers) {
  config.layers.resize(static_cast<size_t>(layers));
  return config;
}

// The adapter of a config may name blocks that the first ones do not have.
bool adapts(const TrainConfig& config, const ModelConfig& part) {
  try {
    shapes_of(config, part);
    return true;
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUsage) throw;
    return false;
  }
}

int64_t weights_of(const ModelConfig& config) {
  int64_t count = 0;
  const auto model = empty_model(config);
  for (const Linear* linear : model->linears()) count += linear->in * linear->out;
  return count;
}

// Everything kept, every weight decoded: the most that a check needs.
MemoryPlan largest_plan(const TrainConfig& config,
                        const ModelConfig& part,
                        const PlanRequest& request) {
  const auto model = shapes_of(config, part);
  StepPlan plan = StepPlan::of(*model, request.rows * request.sequence_len, Keep::kForBackward);
  plan.quantizes = request.quantizes;
  for (LayerPlan& layer : plan.layers) layer.resident = request.quantizes;
  if (request.trains_everything) {
    plan.lowest = 0;
    plan.trains_head = true;
  }
  return price_plan(*model, request, plan);
}

}  // namespace

Extent choose_extent(const TrainConfig& config,
                     const ModelConfig& whole,
                     int64_t asked,
                     int64_t rows,
                     int64_t most_row_tokens) {
  Extent extent{whole, whole.layer_count(), plan_request(config)};
  extent.request.rows = rows;
  extent.request.sequence_len = std::min(config.sequence_len, most_row_tokens);
  if (asked > extent.layers) {
    fail(ExitCode::kUsage,
         "the model has " + std::to_string(extent.layers) + " blocks, got " + std::to_string(asked),
         "--layers");
  }
  shapes_of(config, whole);  // what is wrong with the adapter is wrong with all of it
  const auto with = [&](int64_t layers) { return first_layers(whole, layers); };
  const auto fits = [&](int64_t layers) {
    return largest_plan(config, with(layers), extent.request).fits;
  };
  int64_t least = 1;
  while (least < extent.layers && !adapts(config, with(least))) ++least;
  int64_t layers = asked > 0 ? std::max(asked, least) : extent.layers;
  while (asked == 0 && layers > least &&
         (weights_of(with(layers)) > kMostWeights || !fits(layers))) {
    --layers;
  }
  if (!fits(layers)) {
    const int64_t needed = largest_plan(config, with(layers), extent.request).total();
    fail(ExitCode::kDevice,
         "the checks of " + std::to_string(layers) + " blocks need " + format_bytes(needed) + ", " +
             format_bytes(extent.request.cap) +
             (config.max_memory > 0 ? " are allowed (max_memory)" : " are free"),
         "memory plan",
         layers > least ? "take fewer blocks: --layers " + std::to_string(least)
                        : "raise max_memory, or run on a machine with more memory");
  }
  extent.config = with(layers);
  return extent;
}

std::unique_ptr<Model> load_extent(const TrainConfig& config, const Extent& extent) {
  if (config.random_weights) return make_model(extent.config, config.seed);
  const Precision precision = config.precision();
  const Rounding rounding = {config.operands, config.lora.saved};
  if (extent.config.layer_count() < extent.layers) {
    return load_first_layers(extent.config, config.base_model, precision, rounding);
  }
  return load_model(extent.config, config.base_model, precision, {}, rounding);
}

}  // namespace graft::train
