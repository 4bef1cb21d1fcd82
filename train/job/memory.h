// How much memory a run may have, will need, and had.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/args.h"
#include "core/json.h"
#include "train/engine/planner.h"
#include "train/job/config.h"

namespace graft::train {

// "8GiB", "900 MB", "1073741824": a number and a unit of powers of 1024 or 1000. -1 for anything
// else, and for less than one byte.
int64_t parse_bytes(std::string_view text);

// What the system could still give to this process: the least of MemAvailable and what its control
// groups leave. INT64_MAX where nobody says.
int64_t free_memory();

// Of a GPU what its driver says is free, less a 32nd of it all, at least 1 GiB, for what nobody
// plans; else the above.
int64_t free_memory(const Device& device);

// What this process has of the device's memory: RssAnon, or what is in use of a GPU by anyone.
int64_t memory_in_use(const Device& device);

// What the machine has. -1 where nobody says.
int64_t total_memory();

// RssAnon of this process.
int64_t anonymous_memory();

// What a plan of the config has to keep to; reads the model's config.json.
PlanRequest plan_request(const TrainConfig& config);

struct RunPlan {
  MemoryPlan memory;
  PlanRequest request;  // its cap is max_memory, or what is free
};

// Names, shapes and adapters of a config's model, of which `model` may be the first blocks.
std::unique_ptr<Model> shapes_of(const TrainConfig& config, const ModelConfig& model);

// The plan of a run of `model` (read_vocabulary), made before any weight is read. `fits` may be
// false.
RunPlan plan_run(const TrainConfig& config, const ModelConfig& model);

// Throws kDevice for a plan that does not fit, with the changes of the config that would make it
// fit and what each would need.
void refuse_unfit(const TrainConfig& config, const ModelConfig& model, const RunPlan& plan);

// Operations a second of a large matrix product, measured for about a tenth of a second.
double product_rate(graft_float_type operands, const Device& device = {});

// One part of what a plan needs.
struct MemoryPart {
  std::string name;  // "base weights"
  int64_t bytes = 0;
  int64_t on_host = 0;  // of them, in the host's memory where the device has its own
};
std::vector<MemoryPart> parts_of(const MemoryPlan& plan);
// {"base weights": bytes, ...}, and {"buffers": bytes, ...} of what lies on the host.
Json parts_to_json(const MemoryPlan& plan);
Json plan_to_json(const MemoryPlan& plan);

// The phase of a training step in which the most bytes of buffers are in use: "forward of block 3,
// MLP".
std::string fullest_phase(const Model& model, const MemoryPlan& plan);

// graft plan CONFIG.yaml
int run_plan(const Args& args);

}  // namespace graft::train
