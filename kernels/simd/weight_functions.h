// The functions of one instruction set, as weight_table.cpp collects them (internal). Included only
// by the files that are compiled once per instruction set, with GRAFT_ISA naming the namespace.
#pragma once

#include "kernels/simd/table.h"

namespace graft::kernels::GRAFT_ISA {

const WeightTable& weight_table();

bool quant4_quantize(const Quant4Input& input, uint8_t* packed, float* absmax);
void quant4_decode_f32(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, float* out, Stores stores);
void quant4_decode_bf16(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores);
void quant4_decode_f16(
    const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores);
void small_product(const SmallProduct& product, int64_t begin, int64_t end, float* absmax);

void bf16_pack(
    const uint16_t* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t n, uint16_t* panels);
void bf16_block(const Bf16Block& block);

bool quant8_quantize(
    const Map8& map, const float* x, int64_t count, int block_size, uint8_t* codes, float* absmax);
void quant8_decode(const Map8& map,
                   const uint8_t* codes,
                   const float* absmax,
                   int64_t count,
                   int block_size,
                   float* out);
void adamw8(const Adam8Run& run, const AdamFactors& factors, const Map8& m, const Map8& v);

}  // namespace graft::kernels::GRAFT_ISA
