// AdamW and the sums that a training step needs over its gradients.
#pragma once

#include "kernels/quant8.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct graft_adamw {
  float lr;
  float beta1;
  float beta2;
  float eps;
  float weight_decay;
  int64_t step;      // of this update, counted from 1
  float grad_scale;  // multiplies the gradient first: clipping and loss scaling in one factor
} graft_adamw;

// One step of torch.optim.AdamW (arXiv 1711.05101; decay first, decoupled), elementwise:
//   g = grad * grad_scale;  p *= 1 - lr * weight_decay
//   m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g * g
//   p -= (lr / (1 - beta1^step)) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//   param, m, v [count] updated; grad [count] is read only; no two may overlap
// The factors that do not depend on the element are computed in double and rounded once.
// Not-finite gradients are not looked for here: count them first (graft_count_not_finite).
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (step < 1, a beta outside [0, 1), eps < 0).
graft_status graft_adamw_step(
    float* param, const float* grad, float* m, float* v, int64_t count, const graft_adamw* options);

// 8-bit state: values of a block share their absmax. Smaller tensors keep float32 state, where 8
// bits would save nothing. Both as in bitsandbytes.
#define GRAFT_ADAMW8_BLOCK 256
#define GRAFT_ADAMW8_LEAST 4096

// One tensor of a step, with float32 state (m and v) or with 8-bit state (the other four).
typedef struct graft_adamw_tensor {
  float* param;       // [count] updated
  const float* grad;  // [count]
  int64_t count;
  float* m;  // [count] updated, or NULL
  float* v;
  uint8_t* m8;      // [count] updated, or NULL: index in GRAFT_MAP_DYNAMIC_SIGNED
  uint8_t* v8;      // index in the step's map
  float* m_absmax;  // [ceil(count / 256)] updated
  float* v_absmax;
} graft_adamw_tensor;

// graft_adamw_step for every tensor in one parallel region. With 8-bit state m and v are decoded,
// updated and, after the parameter's update, quantized to the nearest codes; a second moment above
// zero never takes code 0, because the step would be m / eps. State that is all zero begins a run.
//   v_map  GRAFT_MAP_LOG2 (the smaller error) or GRAFT_MAP_DYNAMIC_UNSIGNED (the files of
//          bitsandbytes); every step of a run takes the same
// Errors: as graft_adamw_step; GRAFT_BAD_ARGUMENT for a tensor with both or neither state and for
// another map, GRAFT_BAD_SHAPE for 8-bit state of less than GRAFT_ADAMW8_LEAST elements.
graft_status graft_adamw_step_all(const graft_adamw_tensor* tensors,
                                  int64_t tensor_count,
                                  const graft_adamw* options,
                                  graft_map8 v_map);

// Second moments [count] from one map to the other through float32: nearest codes, and none above
// zero becomes zero. absmax stays. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT (a signed map).
graft_status graft_adamw8_convert(graft_map8 from, graft_map8 to, int64_t count, uint8_t* v8);

// Elements of one partial sum of squares.
#define GRAFT_SQUARES_TILE 16384

// out = sum of x^2 in double: 16 lanes by index inside tiles, lanes and then tiles in order.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_sum_squares(const float* x, int64_t count, double* out);

// out = how many of x are NaN or infinite. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_count_not_finite(const float* x, int64_t count, int64_t* out);

#ifdef __cplusplus
}
#endif
