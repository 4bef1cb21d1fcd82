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
  // No gradient is needed below the first block that trains something.
  while (!model.trains_embedding() && plan.lowest < model.layers.size() &&
         !model.layers[plan.lowest].trains()) {
    ++plan.lowest;
  }
  return plan;
}

std::string phase_name(const Timeline& timeline, int phase) {
  const auto half = [](int at) { return at % 2 == 0 ? ", attention" : ", MLP"; };
  if (phase < timeline.head()) {
    return "forward of block " + std::to_string(phase / 2) + half(phase);
  }
  if (phase == timeline.head()) return "head and loss";
  if (phase == timeline.end()) return "end";
  const int at = phase - timeline.head() - 1;
  return "backward of block " + std::to_string(timeline.layers - 1 - at / 2) + half(at + 1);
}

Layout plan_layout(const Model& model, const StepPlan& plan) {
  Layout layout;
  Buffers buffers(layout);
  StepBuffers(model, plan, buffers);
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
