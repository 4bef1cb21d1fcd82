// The serial inner functions that exist once per instruction set (internal). The C functions check
// their arguments, cut the work into pieces and call these on each.
#pragma once

#include <stdint.h>

#include "kernels/operators.h"
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

// One head of one document; pointers at its first token. Strides in elements from token to token.
struct AttentionHead {
  graft_float_type type;  // of q, k, v, out and dout
  const void *q, *k, *v;
  void* out;
  float* lse;  // lse[token * lse_stride]
  int64_t q_stride, k_stride, v_stride, out_stride, lse_stride;
  int64_t length, head_dim;
  int64_t window;  // keys that a query sees, itself among them; at least 1
  float scale;
  float softcap;  // 0 for none
};

struct AttentionHeadGradient {
  AttentionHead forward;  // out is read
  const void* dout;
  float *dq, *dk, *dv;
  int64_t dq_stride, dk_stride, dv_stride;
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

  int64_t (*attention_forward_scratch)(int64_t head_dim, graft_float_type type);
  int64_t (*attention_backward_scratch)(int64_t head_dim, graft_float_type type);
  int64_t (*attention_decode_scratch)(const AttentionDecode& call);
  void (*attention_forward)(const AttentionHead& head,
                            int64_t q_begin,
                            int64_t q_end,
                            float* scratch);
  void (*attention_backward)(const AttentionHeadGradient& head, float* scratch);
  // Heads [begin, end) of a decode step.
  void (*attention_decode)(const AttentionDecode& call, int64_t begin, int64_t end, float* scratch);

  // Rows, tokens or elements [begin, end) of the call.
  void (*rmsnorm_forward)(const NormForward& call, int64_t begin, int64_t end);
  void (*rmsnorm_backward)(const NormBackward& call, int64_t begin, int64_t end);
  // Columns [begin, end) of dweight over all rows.
  void (*rmsnorm_weight_gradient)(const NormBackward& call,
                                  int64_t rows,
                                  int64_t begin,
                                  int64_t end);
  void (*rope_apply)(const RopeTurn& call, int64_t begin, int64_t end);
  void (*gate_forward)(const GateForward& call, int64_t begin, int64_t end);
  void (*gate_backward)(const GateBackward& call, int64_t begin, int64_t end);
  void (*softcap_forward)(void* x, graft_float_type type, float cap, int64_t begin, int64_t end);
  void (*softcap_backward)(
      const void* y, void* dx, graft_float_type type, float cap, int64_t begin, int64_t end);
  void (*dropout)(const DropoutRows& call, int64_t begin, int64_t end);
  void (*cross_entropy)(const CrossEntropyRows& call, int64_t begin, int64_t end);
  void (*addition)(const Addition& call, int64_t begin, int64_t end);
  void (*conversion)(const Conversion& call, int64_t begin, int64_t end);
  void (*adamw)(float* param,
                const float* grad,
                float* m,
                float* v,
                int64_t count,
                const AdamFactors& factors);
  double (*sum_squares)(const float* x, int64_t count);
  int64_t (*count_not_finite)(const float* x, int64_t count);

  const WeightTable* weights;

  // For their tests.
  void (*exponential)(const float* x, int64_t count, float* out);
  void (*hyperbolic_tangent)(const float* x, int64_t count, float* out);
  void (*reciprocal_root)(const float* x, int64_t count, float* out);
  void (*logarithm)(const float* x, int64_t count, float* out);
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
