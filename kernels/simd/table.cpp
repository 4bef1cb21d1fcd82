#include "kernels/simd/functions.h"

namespace graft::kernels::GRAFT_ISA {

#define GRAFT_TEXT(name) #name
#define GRAFT_NAME(name) GRAFT_TEXT(name)

const Table& table() {
  static const Table kTable = {
      .name = GRAFT_NAME(GRAFT_ISA),
      .gemm_tile_rows = kTileRows,
      .gemm_tile_columns = kTileColumns,
      .gemm_scratch_floats = gemm_scratch_floats,
      .gemm_block = gemm_block,
      .attention_forward_scratch = attention_forward_scratch,
      .attention_backward_scratch = attention_backward_scratch,
      .attention_decode_scratch = attention_decode_scratch,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
      .attention_decode = attention_decode,
      .rmsnorm_forward = rmsnorm_forward,
      .rmsnorm_backward = rmsnorm_backward,
      .rmsnorm_weight_gradient = rmsnorm_weight_gradient,
      .rope_apply = rope_apply,
      .gate_forward = gate_forward,
      .gate_backward = gate_backward,
      .softcap_forward = softcap_forward,
      .softcap_backward = softcap_backward,
      .dropout = dropout,
      .cross_entropy = cross_entropy,
      .addition = addition,
      .conversion = conversion,
      .adamw = adamw,
      .sum_squares = sum_squares,
      .count_not_finite = count_not_finite,
      .weights = &weight_table(),
      .exponential = exponential_array,
      .hyperbolic_tangent = hyperbolic_tangent_array,
      .reciprocal_root = reciprocal_root_array,
      .logarithm = logarithm_array,
  };
  return kTable;
}

}  // namespace graft::kernels::GRAFT_ISA
