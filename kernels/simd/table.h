// The serial inner functions that exist once per instruction set (internal). The C functions check
// their arguments, cut the work into pieces and call these on each.
#pragma once

#include <stdint.h>

#include "kernels/simd/weight_table.h"

namespace graft::kernels {

// One block of C = alpha * op(A) * op(B) + beta * C; strides in floats.
struct GemmBlock {
  const float* a;  // op(A)[i, p] at a[i * a_row + p * a_col]
  int64_t a_row, a_col;
  const float* b;  // op(B)[p, j] at b[p * b_row + j * b_col]; one of b_row, b_col is 1
  int64_t b_row, b_col;
  float* c;
  int64_t ldc;
  int64_t m, n, k;
  float alpha, beta;
};

// One head of one document; pointers at its first token. Strides in floats from token to token.
struct AttentionHead {
  const float *q, *k, *v;
  float* out;
  float* lse;  // lse[token * lse_stride]
  int64_t q_stride, k_stride, v_stride, out_stride, lse_stride;
  int64_t length, head_dim;
  float scale;
};

struct AttentionHeadGradient {
  AttentionHead forward;  // out is read
  const float* dout;
  float *dq, *dk, *dv;
  int64_t dk_stride, dv_stride;  // dq has q_stride
};

struct AdamFactors {
  float grad_scale, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, bias2_root,
      eps;
};

struct Table {
  const char* name;

  int64_t gemm_tile_rows, gemm_tile_columns;
  int64_t (*gemm_scratch_floats)(int64_t n);
  void (*gemm_block)(const GemmBlock& block, float* scratch);

  int64_t (*attention_forward_scratch)(int64_t head_dim);
  int64_t (*attention_backward_scratch)(int64_t head_dim);
  void (*attention_forward)(const AttentionHead& head,
                            int64_t q_begin,
                            int64_t q_end,
                            float* scratch);
  void (*attention_backward)(const AttentionHeadGradient& head, float* scratch);
  // One head of a decode step; scores [positions] is scratch.
  void (*attention_decode)(const float* q,
                           const float* k,
                           const float* v,
                           int64_t stride,
                           int64_t positions,
                           int64_t head_dim,
                           float scale,
                           float* scores,
                           float* out);

  void (*rmsnorm_forward)(const float* x,
                          const float* weight,
                          float eps,
                          int64_t rows,
                          int64_t dim,
                          float* out,
                          float* inv_rms);
  void (*rmsnorm_backward)(const float* dout,
                           const float* x,
                           const float* weight,
                           const float* inv_rms,
                           int64_t rows,
                           int64_t dim,
                           float* dx);
  // Columns [begin, end) of dweight over all rows.
  void (*rmsnorm_weight_gradient)(const float* dout,
                                  const float* x,
                                  const float* inv_rms,
                                  int64_t rows,
                                  int64_t dim,
                                  int64_t begin,
                                  int64_t end,
                                  float* dweight);
  void (*rope_apply)(float* x,
                     int64_t tokens,
                     int64_t heads,
                     int64_t head_dim,
                     int64_t row_stride,
                     const float* cos,
                     const float* sin,
                     float sign);
  void (*swiglu_forward)(const float* gate, const float* up, int64_t count, float* out);
  void (*swiglu_backward)(const float* dout,
                          const float* gate,
                          const float* up,
                          int64_t count,
                          float* dgate,
                          float* dup);
  // gradient_scale NULL: loss only.
  void (*cross_entropy_row)(float* logits,
                            int32_t label,
                            int64_t vocab,
                            const float* gradient_scale,
                            float* loss,
                            uint8_t* correct);
  void (*adamw)(float* param,
                const float* grad,
                float* m,
                float* v,
                int64_t count,
                const AdamFactors& factors);
  double (*sum_squares)(const float* x, int64_t count);
  int64_t (*count_not_finite)(const float* x, int64_t count);
  void (*add)(float* x, const float* y, int64_t count);
  void (*scale)(float* x, float s, int64_t count);
  void (*dropout_row)(float* x,
                      int64_t dim,
                      int64_t row_index,
                      uint64_t seed,
                      uint64_t stream,
                      uint32_t threshold,
                      float keep_scale);

  const WeightTable* weights;

  void (*exponential)(const float* x, int64_t count, float* out);  // for its test
};

enum class InstructionSet { kGeneric = 0, kAvx2, kAvx512, kAvx512Bf16 };

// The best one that this processor has, chosen at the first call.
const Table& table();
bool instruction_set_available(InstructionSet set);
// For tests: every later call of any kernel uses this one. Not while a kernel runs.
void use_instruction_set(InstructionSet set);

namespace generic {
const Table& table();
}
#if defined(__x86_64__)
namespace avx2 {
const Table& table();
}
namespace avx512 {
const Table& table();
}
#endif

}  // namespace graft::kernels
