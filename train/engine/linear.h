// A linear layer's forward and backward pass: frozen or trained base, optional bias and A/B pair.
//
// With u = drop(x) A^T:      y  = x W^T + s u B^T + bias
// and, given dy, du = s dy B: dB = s dy^T u    dA = du^T drop(x)    dx = dy W + drop'(du A)
// (LoRA, arXiv 2106.09685, section 4.1). dW = dy^T x and dbias = sum dy in full-parameter training
// only: a frozen base costs 4 flops a weight and token, not 6.
//
// With DoRA: h = drop(x) W^T + s u B^T and y = (x - drop(x)) W^T + gain h + bias, as PEFT has it;
// dh = gain dy takes the place of dy above, and dx = dy W + drop'((dh - dy) W + du A).
//
// Where Linear::operands is bfloat16, the products with W take x and dy rounded to it (to nearest,
// ties to even) and W as it is held or decoded; their sums, and everything else, stay float32.
//
// y and dy are one array for each part of the linear (Linear::parts), so that the parts of a fused
// weight lie as those of separate ones do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "train/engine/clock.h"
#include "train/engine/device.h"
#include "train/model/model.h"

namespace graft::train {

// What the linears of a half share: where they compute, their scratch, and dropout's place in the
// run.
struct LinearWorkspace {
  Device device;
  StepClock* clock = nullptr;
  std::byte* weight = nullptr;           // for the largest 4-bit base, decoded
  uint16_t* rounded = nullptr;           // [tokens, max in] x, backward [tokens, max part] dy
  uint16_t* rounded_dropped = nullptr;   // [tokens, max in]; with DoRA and dropout
  float* low_rank = nullptr;             // [tokens, max rank]: du
  float* dropped = nullptr;              // [tokens, max in]: drop(x), then du A; only with dropout
  float* weighed = nullptr;              // [tokens, max out]: dh; only with DoRA
  const int64_t* token_index = nullptr;  // [tokens] index of each row's token in the whole step
  const int32_t* row = nullptr;          // [tokens] its packed row (Batch::row)
  uint64_t dropout_seed = 0;             // of this step; 0 = dropout off (evaluation)
};

// x [tokens, in], and the same in bfloat16 where a linear's product takes it.
struct LinearInput {
  const float* x = nullptr;
  const uint16_t* rounded = nullptr;
};

// The input of linears that share it, rounded once for all of them; it lasts until the next call
// with this workspace.
LinearInput round_input(std::span<const Linear> linears,
                        const LinearWorkspace& workspace,
                        const float* x,
                        int64_t tokens);

// x [tokens, in] -> y[p] [tokens, parts[p]]. Kept for the backward, tokens * kept_width() values:
// u [tokens, rank], then with DoRA h, part after part as y is.
void linear_forward(const Linear& linear,
                    const LinearWorkspace& workspace,
                    const LinearInput& input,
                    int64_t tokens,
                    std::span<float* const> y,
                    float* kept);

enum class InputGrad { kSkip, kOverwrite, kAdd };

// dy[p] [tokens, parts[p]]. Adds to the linear's gradients, one packed row after another, so that
// their bits do not depend on how many rows are computed at once; dx [tokens, in].
void linear_backward(const Linear& linear,
                     const LinearWorkspace& workspace,
                     const float* x,
                     const float* kept,
                     int64_t tokens,
                     std::span<const float* const> dy,
                     float* dx,
                     InputGrad input_grad);

}  // namespace graft::train
