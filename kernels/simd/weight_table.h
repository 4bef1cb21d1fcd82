// The inner functions of quantized weights, bfloat16 products and 8-bit state, once per instruction
// set (internal). They have a table of their own because they alone gain from the bfloat16
// instructions, so that the rest is not compiled a fourth time.
#pragma once

#include <stdint.h>

#include "kernels/linear4.h"
#include "kernels/nf4.h"
#include "kernels/quant8.h"

namespace graft::kernels {

struct AdamFactors;

// Weights from the start of a block.
struct Quant4Input {
  const void* weight;
  int64_t count;
  int block_size;
  graft_float_type weight_type;
  graft_quant4_type type;
};

// A product of up to kSmallRows rows of x with every row of a packed weight [n, k].
constexpr int64_t kSmallRows = GRAFT_LINEAR4_ROWS;
// Rows of the weight that small_product may take at once.
constexpr int64_t kSmallColumns = 2;
struct SmallProduct {
  const graft_nf4_weight* weight;
  int64_t m, n, k;
  // x as the codes lie: [m, k / 2] of elements 0, 2, 4, ... and of 1, 3, 5, ... where rows are
  // whole units (small_unit); else x [m, k] in `even`.
  const float *even, *odd;
  float beta;
  void* y;
  int64_t ldy;
  graft_float_type y_type;
};

// Depth of one chain of sums of a bfloat16 product before it meets C. Part of the result's
// definition. 512 x 32 values of B are 32 KiB, two thirds of a 48 KiB first-level cache.
constexpr int64_t kBf16Depth = 512;
constexpr int64_t kBf16PanelColumns = 32;
// Rows of A that stay in the second-level cache while all columns of a task pass: whole tiles
// of 12.
constexpr int64_t kBf16BlockRows = 132;

// C [m, n] = alpha A [m, depth] B [depth, n] + beta C for one chain.
struct Bf16Block {
  const uint16_t* a;  // depth rounded up to an even number, zeros at the end
  int64_t a_row;
  const uint16_t* panels;  // as bf16_pack gives them
  int64_t m, n, depth;
  float* c;
  int64_t ldc;
  float alpha, beta;
};

// How the codes of a map may be had by arithmetic.
enum class Map8Rule {
  kBuckets,  // by none
  kRatio,    // the log2 map
  kRuns      // Map8Runs
};

// A signed map by magnitude: run r holds the magnitudes above above[r]. In 65536ths, the place
// scale[r] * |x| + offset[r], last[r] at most, is a whole number at a midpoint and has the code of
// x, less 127, as its whole part.
struct Map8Runs {
  alignas(32) float above[8];
  alignas(32) float scale[8];
  alignas(32) float offset[8];
  alignas(32) float last[8];
};

// An 8-bit map and the search in it (quant8.cpp builds them). A magnitude's upper 16 bits name a
// bucket with at most one midpoint: entry = lower 16 bits of it << 8 | code below it.
struct Map8 {
  float value[256];
  const uint32_t* entry;  // [2, keys]: x >= 0, then x < 0
  uint32_t first_key;     // of `least`
  uint32_t keys;
  uint32_t least;  // bits; a smaller magnitude has the same code
  Map8Rule rule;
  const Map8Runs* runs;  // with kRuns
};

// One run of an 8-bit AdamW step: whole blocks of 256, the last may be short.
struct Adam8Run {
  float* param;
  const float* grad;
  uint8_t *m, *v;
  float *m_absmax, *v_absmax;
  int64_t count;
};

// kStreamed writes past the caches: for arrays that they cannot hold, which would be read before
// they are overwritten and push out what is still needed.
enum class Stores { kCached, kStreamed };

struct WeightTable {
  // False when a weight is not finite.
  bool (*quant4_quantize)(const Quant4Input& input, uint8_t* packed, float* absmax);
  // Elements [begin, end) of the weight to out[0] on; any begin.
  void (*quant4_decode_f32)(
      const graft_nf4_weight& weight, int64_t begin, int64_t end, float* out, Stores stores);
  void (*quant4_decode_bf16)(
      const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores);
  void (*quant4_decode_f16)(
      const graft_nf4_weight& weight, int64_t begin, int64_t end, uint16_t* out, Stores stores);
  // Rows [begin, end) of the weight; `absmax` has room for the blocks of kSmallColumns rows.
  void (*small_product)(const SmallProduct& product, int64_t begin, int64_t end, float* absmax);

  // op(B)[p, j] at b[p * b_row + j * b_col], one stride 1, to panels
  // [ceil(n / 32), ceil(depth / 2), 32, 2].
  void (*bf16_pack)(
      const uint16_t* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t n, uint16_t* panels);
  void (*bf16_block)(const Bf16Block& block);

  // False when a value is not finite.
  bool (*quant8_quantize)(const Map8& map,
                          const float* x,
                          int64_t count,
                          int block_size,
                          uint8_t* codes,
                          float* absmax);
  void (*quant8_decode)(const Map8& map,
                        const uint8_t* codes,
                        const float* absmax,
                        int64_t count,
                        int block_size,
                        float* out);
  void (*adamw8)(const Adam8Run& run, const AdamFactors& factors, const Map8& m, const Map8& v);
};

// Weights of one step of small_product, or 0 where rows do not begin and end at one.
inline int64_t small_unit(int64_t k, int block_size) {
  const int64_t unit = block_size < 64 ? block_size : 64;
  return k % unit == 0 ? unit : 0;
}

#if defined(__x86_64__)
namespace avx512bf16 {
const WeightTable& weight_table();
}
#endif

}  // namespace graft::kernels
