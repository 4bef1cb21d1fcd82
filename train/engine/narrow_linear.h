// The linears of one input of a narrow model (model.h): x, their outputs and their gradients in
// bfloat16, and the adapters' A and B inside the weight, so that the adapters' part of y costs no
// pass over memory. With the group's extended weight M (train/model/extended.h), whose linears'
// outputs lie side by side in the rows of y:
//
//     y = [x, u] M[:N]^T        u = x A^T = x M[N:, :K]^T
//    dx = [dy, du] M[:, :K]    du = dy s B = dy M[:N, K:]
//
// (LoRA, arXiv 2106.09685, section 4.1); the zeros beside B's blocks add nothing to any sum. u is
// written behind the rows of x, du behind those of dy. dA = du^T x of all linears at once and
// dB = s dy^T u of each are summed in float32, one packed row after another. Sums of all products
// are float32.
#pragma once

#include "train/engine/linear.h"

namespace graft::train {

// Rows of bfloat16, `stride` values from one to the next, with room for as many values behind each
// as the group's ranks add up to.
struct NarrowRows {
  uint16_t* values = nullptr;
  int64_t stride = 0;
};

// Rows of `type`, with any gap.
struct NarrowResult {
  void* values = nullptr;
  graft_float_type type = GRAFT_F32;
  int64_t stride = 0;
};

// y = values + scale * y, values [tokens, N] without gaps that are not y's; nullptr for none. Of a
// y in float32.
struct NarrowSum {
  const float* values = nullptr;
  float scale = 1;
};

// x [tokens, K], y [tokens, N]. Writes u behind the rows of x.
void narrow_forward(LinearGroup group,
                    const LinearWorkspace& workspace,
                    const NarrowRows& x,
                    int64_t tokens,
                    const NarrowResult& y,
                    const NarrowSum& sum = {});

// dy [tokens, N]; dx [tokens, K] is overwritten, or left out where it has no values. x with u
// behind it as the forward pass left it. Writes du behind the rows of dy and adds to the gradients
// of the adapters.
void narrow_backward(LinearGroup group,
                     const LinearWorkspace& workspace,
                     const NarrowRows& x,
                     int64_t tokens,
                     const NarrowRows& dy,
                     const NarrowResult& dx);

}  // namespace graft::train
