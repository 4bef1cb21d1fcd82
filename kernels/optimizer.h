// AdamW and the sums that a training step needs over its gradients.
#pragma once

#include "kernels/status.h"

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

// out = sum of x^2 in double: 16 lanes by index inside tiles of 16384, lanes and then tiles in
// order. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_sum_squares(const float* x, int64_t count, double* out);

// out = how many of x are NaN or infinite. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_count_not_finite(const float* x, int64_t count, int64_t* out);

#ifdef __cplusplus
}
#endif
