#include "kernels/simd/weight_functions.h"

namespace graft::kernels::GRAFT_ISA {

const WeightTable& weight_table() {
  static constexpr WeightTable kTable = {
      .quant4_quantize = quant4_quantize,
      .quant4_decode_f32 = quant4_decode_f32,
      .quant4_decode_bf16 = quant4_decode_bf16,
      .quant4_decode_f16 = quant4_decode_f16,
      .small_product = small_product,
      .bf16_pack = bf16_pack,
      .bf16_block = bf16_block,
      .quant8_quantize = quant8_quantize,
      .quant8_decode = quant8_decode,
      .adamw8 = adamw8,
  };
  return kTable;
}

}  // namespace graft::kernels::GRAFT_ISA
