// The two halves of a decoder block, attention and MLP, forward and backward (internal to engine/).
//
// Shape letters as in step_buffers.h. What differs between families is in ModelConfig and in which
// tensors a Layer has; nothing here asks for a family.
#pragma once

#include <cstdint>

#include "kernels/swiglu.h"
#include "train/engine/batch.h"
#include "train/engine/clock.h"
#include "train/engine/device.h"
#include "train/engine/flash.h"
#include "train/engine/kv_cache.h"
#include "train/engine/linear.h"
#include "train/engine/rotation.h"
#include "train/engine/step_buffers.h"
#include "train/model/model.h"

namespace graft::train {

// One micro-batch on its way through the blocks.
struct Pass {
  const ModelConfig& config;
  const Batch& batch;
  const BatchArrays& arrays;
  const Rotation& rotation;
  const Device& device;
  StepClock& clock;
  const Scratch& scratch;  // of the half that runs
  LinearWorkspace linear;  // likewise
  KvCache* cache;          // or nullptr
  Flash* flash;            // or nullptr: attention by graft's own kernel
};

// Each function of a half has a narrow one beside it, of narrow models, which have no cache
// (narrow.cpp).

// output = x + half(x). output must not be x; it may be any buffer that no later half reads.
using AttentionForward = void(const Pass& pass,
                              const Layer& layer,
                              size_t index,
                              AttentionState& state,
                              const float* x,
                              float* output);
AttentionForward attention_half_forward, narrow_attention_forward;
using MlpForward = void(const Pass& pass,
                        const Layer& layer,
                        size_t index,
                        MlpState& state,
                        const float* x,
                        float* output);
MlpForward mlp_half_forward, narrow_mlp_forward;
// What of it the backward pass reads, made again: without `down` where its result need not be
// normed.
using MlpAgain =
    void(const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x);
MlpAgain mlp_half_again, narrow_mlp_again;

// d [T, D]: the gradient of the half's output, which becomes that of x, unless `input_grad` is
// false: then only the gradients of what the half trains are made and d is left undefined. The
// state is used up.
using AttentionBackward = void(const Pass& pass,
                               const Layer& layer,
                               size_t index,
                               AttentionState& state,
                               const float* x,
                               float* d,
                               bool input_grad);
AttentionBackward attention_half_backward, narrow_attention_backward;
using MlpBackward = void(
    const Pass& pass, const Layer& layer, size_t index, MlpState& state, const float* x, float* d);
MlpBackward mlp_half_backward, narrow_mlp_backward;

// What both halves share (block.cpp).

// Of Activation.
graft_gate gate_of(const Pass& pass);
// The half's input: x normed into scratch, or x itself.
const float* half_input(const Pass& pass, const Norm& norm, HalfState& state, const float* x);
// Where f writes: the branch to be normed, or the output itself.
float* half_target(const Norm& out_norm, HalfState& state, float* output);
// output = norm(branch).
void norm_branch(const Pass& pass, const Norm& out_norm, HalfState& state, float* output);
// output = x + residual_scale * norm(branch).
void half_join(
    const Pass& pass, const Norm& out_norm, HalfState& state, const float* x, float* output);
// The gradient of f's result, given that of the half's output.
const float* half_split(const Pass& pass, const Norm& out_norm, HalfState& state, const float* d);
// dx += the gradient of x, the input of a norm with `per_token` norms a token, given d, that of its
// output, all of `type`. The norm's own gradient is summed one packed row after another.
void norm_backward(const Pass& pass,
                   const Norm& norm,
                   int64_t per_token,
                   graft_float_type type,
                   const void* d,
                   const void* x,
                   const float* inv_rms,
                   void* dx);
// d += the gradient of x by way of f's input.
void half_input_backward(const Pass& pass,
                         const Norm& norm,
                         HalfState& state,
                         const float* x,
                         const float* d_input,
                         float* d);

}  // namespace graft::train
