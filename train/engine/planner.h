// Chooses what a step keeps, recomputes and holds decoded, to be fastest within a number of bytes.
//
// Everything is known from names and shapes: a plan can be made, and refused, before a weight is
// loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/engine/optimizer.h"
#include "train/engine/plan.h"
#include "train/model/model.h"

namespace graft::train {

struct PlanRequest {
  int64_t rows = 1;                // packed rows of a micro-batch
  int64_t sequence_len = 0;        // tokens of a row
  bool quantizes = false;          // the linears will be in 4 bits; of a model without weights
  bool trains_everything = false;  // likewise: not adapters but every tensor of the base
  MomentType moments = MomentType::kFloat32;  // of AdamW
  graft_device device = GRAFT_CPU;
  bool deterministic = true;  // StepPlan's
  int64_t cap = 0;            // bytes of the device's memory; 0 = no limit
};

// Floating-point operations of one micro-batch of full rows; a product of m n k counts 2 m n k.
struct StepFlops {
  double forward = 0;
  double backward = 0;
  double again = 0;  // what is computed twice
  double total() const { return forward + backward + again; }
};

struct MemoryPlan {
  StepPlan training;
  StepPlan evaluation;  // shares the buffers' memory
  int64_t weights = 0;  // of the base, as they are held
  int64_t decoded = 0;  // weights that stay decoded
  int64_t trained = 0;  // adapters, with what belongs to them
  int64_t gradients = 0;
  int64_t moments = 0;       // of AdamW
  int64_t device_bytes = 0;  // of the arena
  int64_t host_bytes = 0;    // likewise, in the host's memory
  // Of the above, on the host where a device has memory of its own: an embedding whose rows are
  // gathered there, and moments in 8 bits.
  int64_t host_weights = 0;
  int64_t host_moments = 0;
  StepFlops flops;
  bool fits = true;

  int64_t buffers() const { return device_bytes + host_bytes; }
  int64_t total() const { return weights + decoded + trained + gradients + moments + buffers(); }
  // What lies in the host's memory where that is another, and what the device has to hold.
  int64_t on_host() const {
    return training.own_memory() ? host_bytes + host_weights + host_moments : 0;
  }
  int64_t on_device() const { return total() - on_host(); }
};

// The fastest plan that fits, with nothing on the host if that fits; when none does, the smallest
// one, with `fits` false. `model` may have weights or only names, shapes and adapters.
MemoryPlan choose_plan(const Model& model, const PlanRequest& request);

// How many of the `step_rows` rows of an optimizer step to compute at once, and the plan for them:
// what needs the least memory within 2 % of the fastest. `request.rows` is set to them; to 1, with
// `fits` false, when nothing fits. The rows of a step have the same result however they are parted.
MemoryPlan choose_rows(const Model& model, PlanRequest& request, int64_t step_rows);

// A plan for choices made by the caller: bytes and operations.
MemoryPlan price_plan(const Model& model, const PlanRequest& request, const StepPlan& training);

// "keep: blocks 0-11", "recompute mlp: blocks 0-3; keep: blocks 4-11".
std::string layers_text(const StepPlan& plan);

}  // namespace graft::train
