// The functions of one instruction set, as table.cpp collects them (internal). Included only by the
// files that are compiled once per instruction set, with GRAFT_ISA naming the namespace.
#pragma once

#include "kernels/simd/table.h"

namespace graft::kernels::GRAFT_ISA {

// C tile = op(A) rows x op(B) columns, the unit that the GEMM and attention are made of.
struct Tile {
  int64_t k;
  const float* a;  // element (i, p) at a[i * a_row + p * a_col]
  int64_t a_row, a_col;
  const float* b;  // element (p, j) at b[p * b_row + j]
  int64_t b_row;
  float* c;
  int64_t ldc;
};

// How a tile's sum meets what C holds. Every element is one chain of fused multiply-adds over p in
// order, so its value does not depend on the tile's shape or place.
enum class TileStart {
  kZero,     // c = sum
  kContinue  // c = the chain continued from c
};

constexpr int64_t kTileRows =
#if defined(__AVX512F__)
    12;  // 12 x 2 accumulators + 2 columns + 1 broadcast = 27 of 32 registers
#else
    6;  // 6 x 2 AVX2 registers + 2 + 1 = 15 of 16
#endif
constexpr int64_t kTileColumns =
#if defined(__AVX512F__)
    32;
#else
    16;
#endif

// rows in 1..kTileRows, columns in 1..kTileColumns; nothing outside is read or written.
void multiply_tile(int64_t rows, int64_t columns, const Tile& tile, TileStart start);
// c = alpha * sum + beta * c; c is not read when beta is 0.
void multiply_tile_scaled(int64_t rows, int64_t columns, const Tile& tile, float alpha, float beta);
// The same for kTileRows x kTileColumns of packed operands, a [k, kTileRows] and b [k,
// kTileColumns] whatever the tile's strides say. Reads ahead of both: made for a loop over
// neighbouring tiles.
void multiply_packed_tile(const Tile& tile, float alpha, float beta);

// pack.cpp
// to[j * to_row + i] = from[i * from_row + j], i < rows, j < columns.
void transpose(
    const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row);
// kTileRows rows of a, each `depth` long, as a panel [depth, kTileRows]. Up to kPanelSlack floats
// behind the panel are written too.
void pack_tile_rows(const float* a, int64_t a_row, int64_t depth, float* panel);
constexpr int64_t kPanelSlack = 16;

int64_t gemm_scratch_floats(int64_t n);
void gemm_block(const GemmBlock& block, float* scratch);

int64_t attention_forward_scratch(int64_t head_dim, graft_float_type type);
int64_t attention_backward_scratch(int64_t head_dim, graft_float_type type);
int64_t attention_decode_scratch(const AttentionDecode& call);
void attention_forward(const AttentionHead& head, int64_t q_begin, int64_t q_end, float* scratch);
void attention_backward(const AttentionHeadGradient& head, float* scratch);
void attention_decode(const AttentionDecode& call, int64_t begin, int64_t end, float* scratch);

void rmsnorm_forward(const NormForward& call, int64_t begin, int64_t end);
void rmsnorm_backward(const NormBackward& call, int64_t begin, int64_t end);
void rmsnorm_weight_gradient(const NormBackward& call, int64_t rows, int64_t begin, int64_t end);
void rope_apply(const RopeTurn& call, int64_t begin, int64_t end);
void gate_forward(const GateForward& call, int64_t begin, int64_t end);
void gate_backward(const GateBackward& call, int64_t begin, int64_t end);
void softcap_forward(void* x, graft_float_type type, float cap, int64_t begin, int64_t end);
void softcap_backward(
    const void* y, void* dx, graft_float_type type, float cap, int64_t begin, int64_t end);
void dropout(const DropoutRows& call, int64_t begin, int64_t end);
void hyperbolic_tangent_array(const float* x, int64_t count, float* out);
void reciprocal_root_array(const float* x, int64_t count, float* out);
void logarithm_array(const float* x, int64_t count, float* out);
void cross_entropy(const CrossEntropyRows& call, int64_t begin, int64_t end);
void adamw(
    float* param, const float* grad, float* m, float* v, int64_t count, const AdamFactors& factors);
double sum_squares(const float* x, int64_t count);
int64_t count_not_finite(const float* x, int64_t count);
void addition(const Addition& call, int64_t begin, int64_t end);
void conversion(const Conversion& call, int64_t begin, int64_t end);
void exponential_array(const float* x, int64_t count, float* out);

const WeightTable& weight_table();

}  // namespace graft::kernels::GRAFT_ISA
