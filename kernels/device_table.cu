// The device's table: what the other .cu files define.
#include "kernels/device_functions.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {

const DeviceTable& device_table() {
  static constexpr DeviceTable kTable = {
      .quant4_quantize = quant4_quantize,
      .nf4_compress_absmax = nf4_compress_absmax,
      .nf4_decode_f32 = nf4_decode_f32,
      .nf4_decode_bf16 = nf4_decode_bf16,
      .nf4_decode_f16 = nf4_decode_f16,
      .rmsnorm_forward = rmsnorm_forward,
      .rmsnorm_backward = rmsnorm_backward,
      .rope_apply = rope_apply,
      .gate_forward = gate_forward,
      .gate_backward = gate_backward,
      .addition = addition,
      .conversion = conversion,
      .softcap_forward = softcap_forward,
      .softcap_backward = softcap_backward,
      .dropout = dropout,
      .embedding_forward = embedding_forward,
      .embedding_backward = embedding_backward,
      .bias_add = bias_add,
      .bias_backward = bias_backward,
      .gain_forward = gain_forward,
      .gain_backward = gain_backward,
      .moe_route = moe_route,
      .moe_route_backward = moe_route_backward,
      .moe_sort = moe_sort,
      .moe_gather = moe_gather,
      .moe_combine = moe_combine,
      .moe_weigh = moe_weigh,
      .moe_weigh_backward = moe_weigh_backward,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
      .attention_decode = attention_decode,
      .cross_entropy = cross_entropy,
      .decode_rows = decode_rows,
      .place_pairs = place_pairs,
      .multiply = multiply,
      .small_product = small_product,
      .scatter_rows = scatter_rows,
      .loss_sums = loss_sums,
      .adamw_parts = adamw_parts,
      .allocate = allocate,
      .release = release,
      .copy = copy,
      .fill = fill,
      .memory = memory,
      .synchronize = synchronize,
      .describe = describe,
  };
  return kTable;
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
