#include "train/engine/plan.h"

#include <algorithm>

#include "train/engine/head.h"
#include "train/engine/step_buffers.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {

StepPlan StepPlan::of(const Model& model, int64_t tokens, Keep keep) {
  StepPlan plan;
  plan.tokens = tokens;
  plan.keep = keep;
  plan.layers.resize(model.layers.size());
  plan.head_chunk = kHeadChain;
  plan.trains_head = model.trains_head();
  plan.embeds_on_host = model.embeds_on_host;
  // No gradient is needed below the first block that trains something.
  while (!model.trains_embedding() && plan.lowest < model.layers.size() &&
         !model.layers[plan.lowest].trains()) {
    ++plan.lowest;
  }
  return plan;
}

Timeline::Timeline(const StepPlan& plan)
    : again_(plan.layers.size(), -1),
      begin_(plan.layers.size(), -1),
      backward_(plan.layers.size(), -1),
      end_(head()) {
  if (plan.keep == Keep::kNothing) return;
  for (size_t layer = plan.layers.size(); layer-- > 0;) {
    if (plan.ends_run(layer)) {
      for (size_t again = plan.run_begin(layer); again < layer; ++again) {
        again_[again] = end_ + 1;
        end_ += 2;
      }
    }
    begin_[layer] = end_ + 1;
    if (plan.attends_again(layer)) ++end_;
    backward_[layer] = end_ + 1;
    end_ += 2;
  }
  ++end_;
}

std::string Timeline::name(int phase) const {
  const auto half = [](const char* what, size_t layer, const char* of) {
    return what + std::to_string(layer) + of;
  };
  if (phase == head()) return "head and loss";
  for (size_t layer = 0; layer < backward_.size(); ++layer) {
    if (phase == forward_attention(layer)) return half("forward of block ", layer, ", attention");
    if (phase == forward_mlp(layer)) return half("forward of block ", layer, ", MLP");
    if (again_[layer] >= 0 && phase == again_attention(layer)) {
      return half("forward again of block ", layer, ", attention");
    }
    if (again_[layer] >= 0 && phase == again_mlp(layer)) {
      return half("forward again of block ", layer, ", MLP");
    }
    if (phase == backward_begin(layer) && phase != backward_mlp(layer)) {
      return half("backward of block ", layer, ", attention again");
    }
    if (phase == backward_mlp(layer)) return half("backward of block ", layer, ", MLP");
    if (phase == backward_attention(layer)) return half("backward of block ", layer, ", attention");
  }
  return "end";
}

Layout plan_layout(const Model& model, const StepPlan& plan) {
  Layout layout;
  Buffers buffers(layout);
  [[maybe_unused]] const StepBuffers declared(model, plan, buffers);
  pack(layout);
  return layout;
}

bool in_4_bits(const StepPlan& plan, const Linear& linear) {
  return linear.base.quantized() || (plan.quantizes && linear.quantizes);
}

bool in_4_bits(const StepPlan& plan, LinearGroup group) {
  return std::any_of(group.begin(), group.end(),
                     [&](const Linear& linear) { return in_4_bits(plan, linear); });
}

int64_t decoded_bytes(const Model& model, const StepPlan& plan, const Layer& layer) {
  int64_t bytes = 0;
  for (const LinearGroup group : layer.groups()) {
    if (model.narrow) {
      if (in_4_bits(plan, group)) bytes += 2 * extended_count(group);
      continue;
    }
    for (const Linear& linear : group) {
      if (in_4_bits(plan, linear)) bytes += linear.in * linear.out * size_of(linear.operands);
    }
  }
  return bytes;
}

}  // namespace graft::train
