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
  kRecomputeInput,  // not even its input (StepPlan::drops_input)
  kOffloadInput,    // as kRecomputeBlock, with the input on the host
};
constexpr const char* kLayerMemoryNames[] = {"keep", "recompute mlp", "recompute block",
                                             "recompute input", "offload input"};

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
  bool embeds_on_host = false;  // as the model's
  bool quantizes = false;       // the model has no weights yet and its linears will be in 4 bits
  graft_device device = GRAFT_CPU;  // what it runs on
  bool deterministic = true;        // the same bits every time, where a GPU could do without
  Poison poison = Poison::kNo;

  // Whether the device has memory that the host cannot reach: what both need is there twice.
  bool own_memory() const { return device != GRAFT_CPU; }

  // Whether the input of a block with kRecomputeInput is let go of after its forward pass. Before
  // the backward pass of a run of such blocks, those from the nearest block below that has its
  // input, or of block 0 from the embedding, run forward again, and each input is kept until its
  // block has gone backward. The lowest block that goes backward keeps its input unless it is block
  // 0, whose input is gathered again.
  bool drops_input(size_t layer) const {
    return keep == Keep::kForBackward && layers[layer].memory == LayerMemory::kRecomputeInput &&
           (layer > lowest || lowest == 0);
  }
  // Whether the backward pass of a block begins with its attention half forward again.
  bool attends_again(size_t layer) const {
    return layers[layer].memory != LayerMemory::kKeep &&
           layers[layer].memory != LayerMemory::kRecomputeMlp;
  }
  // Whether a block runs forward a second time for the input of the next.
  bool runs_again(size_t layer) const {
    return layer >= lowest && layer + 1 < layers.size() && drops_input(layer + 1);
  }
  // Whether the backward pass of a block has to be prepared for: it is the last of a run.
  bool ends_run(size_t layer) const { return drops_input(layer) && !runs_again(layer); }
  // The first block that runs again before that.
  size_t run_begin(size_t last) const {
    while (last > 0 && drops_input(last)) --last;
    return last;
  }

  // Everything kept, nothing decoded for good.
  static StepPlan of(const Model& model, int64_t tokens, Keep keep);
};

// The phases of a step: each half of each block forward; the head; each half of each block
// backward, before them its attention half where that is computed again, and before the last block
// of a run without inputs each half of those that run again; what follows.
class Timeline {
 public:
  explicit Timeline(const StepPlan& plan);
  int forward_attention(size_t layer) const { return 2 * static_cast<int>(layer); }
  int forward_mlp(size_t layer) const { return forward_attention(layer) + 1; }
  int head() const { return 2 * static_cast<int>(backward_.size()); }
  // Of a block that runs again.
  int again_attention(size_t layer) const { return again_[layer]; }
  int again_mlp(size_t layer) const { return again_[layer] + 1; }
  // Where its attention is computed again; else backward_mlp.
  int backward_begin(size_t layer) const { return begin_[layer]; }
  int backward_mlp(size_t layer) const { return backward_[layer]; }
  int backward_attention(size_t layer) const { return backward_[layer] + 1; }
  int end() const { return end_; }
  // "forward of block 3, MLP"
  std::string name(int phase) const;

 private:
  // The phase of the first half that runs; -1 of a block that does not run again.
  std::vector<int> again_, begin_, backward_;
  int end_ = 0;
};

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
