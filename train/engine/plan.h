// What a step keeps in memory, and when each buffer is in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/engine/arena.h"
#include "train/model/model.h"

namespace graft::train {

enum class Keep { kNothing, kForBackward };

// What a block keeps from its forward to its backward pass. What is not kept is computed again by
// the same functions, so no choice changes a bit of the result.
enum class LayerMemory {
  kKeep,            // all that its backward pass reads
  kRecomputeMlp,    // all but gate, up and what their adapters keep
  kRecomputeBlock,  // its input, and what the adapter of `down` keeps
  kOffloadInput,    // likewise, with the input on the host
};
constexpr const char* kLayerMemoryNames[] = {"keep", "recompute mlp", "recompute block",
                                             "offload input"};

struct LayerPlan {
  LayerMemory memory = LayerMemory::kKeep;
  bool resident = false;  // its 4-bit weights are decoded once and stay decoded
};

struct StepPlan {
  int64_t tokens = 0;   // of the largest micro-batch
  int64_t longest = 0;  // of its longest document; 0 = as many
  Keep keep = Keep::kForBackward;
  std::vector<LayerPlan> layers;
  int64_t head_chunk = 0;       // rows of logits at a time
  size_t lowest = 0;            // the first block that the backward pass reaches
  bool input_gradient = false;  // it goes on to what enters block 0; `lowest` must be 0
  bool trains_head = false;
  bool quantizes = false;  // the model has no weights yet and its linears will be in 4 bits
  graft_device device = GRAFT_CPU;  // what it runs on
  bool deterministic = true;        // the same bits every time, where a GPU could do without
  Poison poison = Poison::kNo;

  // Whether the device has memory that the host cannot reach: what both need is there twice.
  bool own_memory() const { return device != GRAFT_CPU; }

  // Everything kept, nothing decoded for good.
  static StepPlan of(const Model& model, int64_t tokens, Keep keep);
};

// The phases of a step: each half of each block forward, the head, each half of each block
// backward, and what follows.
struct Timeline {
  int layers = 0;
  bool backward = false;

  Timeline(const Model& model, const StepPlan& plan)
      : layers(static_cast<int>(model.layers.size())), backward(plan.keep == Keep::kForBackward) {}
  int forward_attention(size_t layer) const { return 2 * static_cast<int>(layer); }
  int forward_mlp(size_t layer) const { return forward_attention(layer) + 1; }
  int head() const { return 2 * layers; }
  int backward_mlp(size_t layer) const {
    return head() + 1 + 2 * (layers - 1 - static_cast<int>(layer));
  }
  int backward_attention(size_t layer) const { return backward_mlp(layer) + 1; }
  int end() const { return backward ? 4 * layers + 1 : head(); }
};

// "forward of block 3, MLP"
std::string phase_name(const Timeline& timeline, int phase);

// The regions of a decoder's buffers, packed. Reads names, shapes and adapters of the model, not
// its weights.
Layout plan_layout(const Model& model, const StepPlan& plan);

// Whether a linear's weight is, or will be, in 4 bits.
bool in_4_bits(const StepPlan& plan, const Linear& linear);
// Whether that of any linear of the group is.
bool in_4_bits(const StepPlan& plan, LinearGroup group);

// Bytes of the weights of a layer that are decoded for good.
int64_t decoded_bytes(const Model& model, const StepPlan& plan, const Layer& layer);

}  // namespace graft::train
