// A linear of a narrow model (model.h): x, y and their gradients in bfloat16, and the adapter's A
// and B inside the weight, so that the adapter's part of y costs no pass over memory.
//
// The weight lies extended, M [out + r, in + r] of bfloat16:
//
//     W   s B        y = [x, u] M[:out]^T           u = x A^T
//     A    -        dx = [dy, du] M[:, :in]        du = dy (s B)
//
// (LoRA, arXiv 2106.09685, section 4.1). u is written behind the rows of x, du behind those of dy
// where they have room; else dx takes two products. dB = s dy^T u and dA = du^T x are summed in
// float32, one packed row after another. Sums of all products are float32.
#pragma once

#include <span>

#include "train/engine/linear.h"

namespace graft::train {

// x [tokens, in], `stride` values from row to row: at least in + rank.
struct NarrowInput {
  uint16_t* x = nullptr;
  int64_t stride = 0;
};

// y[p] [tokens, parts[p]] of y_type, y_stride values from row to row (0: no gaps; of one part
// only). u [tokens, rank] is kept for the backward pass.
void narrow_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const NarrowInput& input,
                    int64_t tokens,
                    std::span<void* const> y,
                    graft_float_type y_type,
                    int64_t y_stride,
                    uint16_t* u);

// The gradient of y: one array for each part, or all parts in rows of `stride` values with room for
// du, at least out + rank.
struct NarrowGradient {
  std::span<uint16_t* const> parts;
  uint16_t* rows = nullptr;
  int64_t stride = 0;
};

// dx [tokens, in] of `type`, dx_stride from row to row; only float32 is added to.
struct NarrowInputGradient {
  void* dx = nullptr;
  graft_float_type type = GRAFT_F32;
  int64_t stride = 0;
  InputGrad mode = InputGrad::kOverwrite;
};

// Adds to the linear's gradients. What lies behind the rows of x need not be u any more.
void narrow_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const NarrowInput& input,
                     const uint16_t* u,
                     int64_t tokens,
                     const NarrowGradient& dy,
                     const NarrowInputGradient& result);

}  // namespace graft::train
