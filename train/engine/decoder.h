// The decoder's forward and backward pass over packed rows, written out by hand.
//
// Kept of each block for its backward pass: its two residual inputs, the norms' 1/rms, q, k and v
// after the rotation (before it where queries and keys are normed), the attention's output and
// log-sum-exp, gate and up, each adapter's u, and where a half's output is normed, that output. The
// normed inputs and activation(gate) * up are computed again: they cost one pass over memory.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/batch.h"
#include "train/engine/block.h"
#include "train/engine/head.h"
#include "train/engine/kv_cache.h"
#include "train/engine/rotation.h"
#include "train/model/model.h"

namespace graft::train {

class Decoder {
 public:
  using HeadResult = train::HeadResult;

  // Makes every buffer, for micro-batches of up to `max_tokens` tokens. The model must outlive the
  // decoder. `head_chunk`: see Head.
  Decoder(Model& model, int64_t max_tokens, Keep keep, int64_t head_chunk = kHeadChain);

  // Runs the blocks; returns the residual stream [T, D] before the final norm, which stays valid
  // until the next call. `dropout_seed` 0 = no dropout.
  // With a cache: the batch is one document when the cache is empty, else the one next token; its
  // keys and values are appended. Errors: kData (an id outside the vocabulary), kBug (more tokens
  // than max_tokens, or than the cache has room for).
  const float* forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache = nullptr);

  // [T, D] the residual stream as block `layer` got it in the last forward; of the first block the
  // embeddings. Needs Keep::kForBackward.
  const float* block_input(size_t layer) const;

  // d_residual [T, D], the loss's gradient by forward's result, is overwritten. Adds to the
  // gradients of everything trained. Needs Keep::kForBackward and the same batch as the last
  // forward.
  void backward(const Batch& batch, float* d_residual);

  // To be called when the last micro-batch of a step went backward: adds what a tied embedding got
  // as the head. Its two uses are summed apart, else their turns would decide the bits.
  void finish_gradients();

  // Final norm, head and loss of the batch's supervised places, in chunks of rows. With
  // d_residual (not nullptr), writes the gradient of scale * loss_sum there and adds to the head's
  // and the final norm's gradients. `row_loss` (or nullptr) takes each place's -log p. The result
  // goes on from `before`, the sums of the micro-batches before this one.
  HeadResult head_loss(const Batch& batch,
                       const float* residual,
                       double scale,
                       float* d_residual,
                       float* row_loss,
                       const HeadResult& before = {}) {
    return head_.loss(batch, residual, scale, d_residual, row_loss, before);
  }

  // logits [rows, V] of `rows` rows of a residual stream.
  void head_logits(const float* residual, int64_t rows, float* logits) {
    head_.logits(residual, rows, logits);
  }

  // [max_tokens, D] for head_loss and backward; nullptr with Keep::kNothing.
  float* gradient_buffer();
  int64_t max_tokens() const { return max_tokens_; }
  int64_t buffer_bytes() const { return buffers_.bytes() + rotation_.buffer_bytes(); }

 private:
  Pass make_pass(const Batch& batch, KvCache* cache);
  void check_batch(const Batch& batch, const KvCache* cache) const;
  BlockState& state(size_t layer) { return states_[keep_ == Keep::kForBackward ? layer : 0]; }

  Model& model_;
  int64_t max_tokens_;
  Keep keep_;
  Buffers buffers_;
  Rotation rotation_;
  std::vector<BlockState> states_;
  Scratch scratch_;
  Head head_;
  uint64_t dropout_seed_ = 0;  // of the last forward
  at::Tensor residual_;        // [T, D] output of the last block
  at::Tensor d_residual_;      // [T, D]
};

}  // namespace graft::train
