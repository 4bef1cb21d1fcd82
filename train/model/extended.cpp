#include "train/model/extended.h"

#include <algorithm>

#include "kernels/decode_rows.h"
#include "kernels/elementwise.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

int64_t stride_of(const Linear& linear) {
  return linear.in + linear.lora.rank;
}

// A and scale * B, rounded, in their places.
void put_pair(const Linear& linear, const Device& device, uint16_t* weight) {
  const Lora& lora = linear.lora;
  if (lora.rank == 0) return;
  const int64_t stride = stride_of(linear);
  check(graft_convert(f32(lora.a), GRAFT_F32, linear.in, weight + linear.out * stride, GRAFT_BF16,
                      stride, lora.rank, linear.in, 1, device.kind, device.stream));
  check(graft_convert(f32(lora.b), GRAFT_F32, lora.rank, weight + linear.in, GRAFT_BF16, stride,
                      linear.out, lora.rank, lora.scale, device.kind, device.stream));
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

void choose_width(Model& model, const Device& device) {
  model.narrow = !device.is_host() && can_be_narrow(model);
}

int64_t extended_count(const Linear& linear) {
  return (linear.out + linear.lora.rank) * stride_of(linear);
}

void extend_weights(Model& model) {
  for (Linear* const linear : model.linears()) {
    BaseWeight& base = linear->base;
    if (base.quantized()) continue;
    const Device device = place_of(base.dense);
    base.extended =
        empty_on(device, at::kBFloat16, {linear->out + linear->lora.rank, stride_of(*linear)});
    check(graft_convert(bf16(base.dense), GRAFT_BF16, linear->in, bf16(base.extended), GRAFT_BF16,
                        stride_of(*linear), linear->out, linear->in, 1, device.kind,
                        device.stream));
    base.dense = at::Tensor();
    put_pair(*linear, device, bf16(base.extended));
  }
}

void decode_extended(const Linear& linear, const Device& device, uint16_t* out) {
  graft_decode_target target{};
  target.weight = linear.base.nf4();
  target.columns = linear.in;
  target.row_stride = stride_of(linear);
  target.out = out;
  check(graft_nf4_decode_rows_bf16(&target, 1, device.kind, device.stream));
  put_pair(linear, device, out);
}

void refresh_extended(Model& model) {
  for (const Linear* const linear : model.linears()) {
    const at::Tensor& extended = linear->base.extended;
    if (extended.defined()) put_pair(*linear, place_of(extended), bf16(extended));
  }
}

}  // namespace graft::train
