#include "train/model/extended.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/decode_rows.h"
#include "kernels/elementwise.h"
#include "kernels/lora.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

static_assert(kMostLinears <= GRAFT_LORA_PAIRS && kMostLinears <= GRAFT_DECODE_TARGETS);

// A and scale * B of each linear, rounded, in their places, and zeros in the places of none.
void put_pairs(LinearGroup group, const Device& device, uint16_t* weight) {
  const GroupShape shape = shape_of(group);
  if (shape.rank == 0) return;
  std::array<graft_lora_pair, kMostLinears> pairs{};
  for (size_t i = 0; i < group.size(); ++i) {
    const Lora& lora = group[i].lora;
    pairs.at(i) = {f32_or_null(lora.a), f32_or_null(lora.b), group[i].out, lora.rank, lora.scale};
  }
  check(graft_lora_place_pairs(pairs.data(), static_cast<int64_t>(group.size()), shape.in, weight,
                               shape.stride(), device.kind, device.stream));
}

// The group's dense weights in out, and where those in 4 bits belong.
ExtendedTargets make_dense(LinearGroup group, const Device& device, uint16_t* out) {
  const int64_t stride = shape_of(group).stride();
  ExtendedTargets targets{};
  for (const Linear& linear : group) {
    if (linear.base.quantized()) {
      graft_decode_target& target = targets.target.at(static_cast<size_t>(targets.count++));
      target.weight = linear.base.nf4();
      target.columns = linear.in;
      target.row_stride = stride;
      target.out = out;
    } else {
      check(graft_convert(bf16(linear.base.dense), GRAFT_BF16, linear.in, out, GRAFT_BF16, stride,
                          linear.out, linear.in, 1, device.kind, device.stream));
    }
    out += linear.out * stride;
  }
  return targets;
}

}  // namespace

bool can_be_narrow(const Model& model) {
  for (const Layer& layer : model.layers) {
    if (layer.router || layer.q_norm.grad.defined() || layer.k_norm.grad.defined()) return false;
  }
  const std::vector<const Linear*> linears = model.linears();
  return std::all_of(linears.begin(), linears.end(), [](const Linear* linear) {
    const Lora& lora = linear->lora;
    return linear->operands == GRAFT_BF16 && !linear->has_bias && !linear->base_grad.defined() &&
           lora.rank % 8 == 0 && lora.dropout == 0 && !lora.magnitude.defined() &&
           linear->in % 8 == 0;
  });
}

void choose_width(Model& model) {
  model.narrow = can_be_narrow(model);
}

GroupShape shape_of(LinearGroup group) {
  GroupShape shape;
  for (const Linear& linear : group) {
    shape.in = linear.in;
    shape.out += linear.out;
    shape.rank += linear.lora.rank;
  }
  return shape;
}

int64_t extended_count(LinearGroup group) {
  const GroupShape shape = shape_of(group);
  return shape.wide() * shape.stride();
}

bool is_quantized(LinearGroup group) {
  return std::any_of(group.begin(), group.end(),
                     [](const Linear& linear) { return linear.base.quantized(); });
}

void extend_weights(Model& model) {
  for (Layer& layer : model.layers) {
    for (const std::span<Linear> group : layer.groups()) {
      if (is_quantized(group)) continue;
      const GroupShape shape = shape_of(group);
      const Device device = place_of(group[0].base.dense);
      at::Tensor extended = empty_on(device, at::kBFloat16, {shape.wide(), shape.stride()});
      make_extended(group, device, bf16(extended));
      for (Linear& linear : group) linear.base.dense = at::Tensor();
      group[0].base.extended = std::move(extended);
    }
  }
}

void separate_weights(Model& model) {
  for (Layer& layer : model.layers) {
    for (const std::span<Linear> group : layer.groups()) {
      at::Tensor& extended = group[0].base.extended;
      if (is_quantized(group) || !extended.defined()) continue;
      const int64_t stride = shape_of(group).stride();
      const Device device = place_of(extended);
      const uint16_t* rows = bf16(extended);
      for (Linear& linear : group) {
        at::Tensor dense = empty_on(device, at::kBFloat16, {linear.out, linear.in});
        check(graft_convert(rows, GRAFT_BF16, stride, bf16(dense), GRAFT_BF16, linear.in,
                            linear.out, linear.in, 1, device.kind, device.stream));
        linear.base.dense = std::move(dense);
        rows += linear.out * stride;
      }
      extended = at::Tensor();
    }
  }
}

void make_extended(LinearGroup group, const Device& device, uint16_t* out) {
  const ExtendedTargets targets = make_dense(group, device, out);
  check(
      graft_nf4_decode_rows_bf16(targets.target.data(), targets.count, device.kind, device.stream));
  put_pairs(group, device, out);
}

ExtendedTargets make_all_but_packed(LinearGroup group, uint16_t* out) {
  const Device host;
  const ExtendedTargets targets = make_dense(group, host, out);
  put_pairs(group, host, out);
  return targets;
}

void refresh_extended(Model& model) {
  for (const Layer& layer : std::as_const(model.layers)) {
    for (const LinearGroup group : layer.groups()) {
      const at::Tensor& extended = group[0].base.extended;
      if (extended.defined()) put_pairs(group, place_of(extended), bf16(extended));
    }
  }
}

}  // namespace graft::train
