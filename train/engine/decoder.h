// The decoder's forward and backward pass over packed rows, written out by hand.
//
// Shape letters: T tokens of the micro-batch, D hidden size, F intermediate size, H query heads,
// G key/value heads, E head size, R rank, V vocabulary.
//
// Kept of each block for its backward pass: its two residual inputs, the norms' 1/rms, q, k and v
// after the rotation, the attention's output and log-sum-exp, gate and up, and each adapter's u.
// The normed inputs and silu(gate) * up are computed again: they cost one pass over memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/batch.h"
#include "train/engine/linear.h"
#include "train/model/model.h"

namespace graft::train {

enum class Keep { kNothing, kForBackward };

// Keys (after the rotation) and values of one text's positions so far, for generation.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int64_t max_positions);
  void clear() { positions_ = 0; }
  int64_t positions() const { return positions_; }

 private:
  friend class Decoder;
  int64_t max_positions_;
  int64_t positions_ = 0;
  std::vector<at::Tensor> keys_;  // a layer each: [max_positions, G, E]
  std::vector<at::Tensor> values_;
};

class Decoder {
 public:
  // Makes every buffer, for micro-batches of up to `max_tokens` tokens. The model must outlive the
  // decoder.
  Decoder(Model& model, int64_t max_tokens, Keep keep);

  // Runs the blocks; returns the residual stream [T, D] before the final norm, which stays valid
  // until the next call. `dropout_seed` 0 = no dropout.
  // With a cache: the batch is one document when the cache is empty, else the one next token; its
  // keys and values are appended. Errors: kData (an id outside the vocabulary), kBug (more tokens
  // than max_tokens, or than the cache has room for).
  const float* forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache = nullptr);

  // d_residual [T, D], the loss's gradient by forward's result, is overwritten. Adds to the
  // gradients of everything trained. Needs Keep::kForBackward and the same batch as the last
  // forward.
  void backward(const Batch& batch, float* d_residual);

  struct HeadResult {
    double loss_sum = 0;  // sum of weight * -log p
    double weight_sum = 0;
    int64_t supervised = 0;
    int64_t correct = 0;  // predictions whose largest logit is the label
  };
  // Final norm, head and loss of the batch's supervised places, in chunks of rows. With
  // d_residual (not nullptr), writes the gradient of scale * loss_sum there and adds to the head's
  // and the final norm's gradients. `row_loss` (or nullptr) takes each place's -log p.
  HeadResult head_loss(
      const Batch& batch, const float* residual, double scale, float* d_residual, float* row_loss);

  // logits [rows, V] of `rows` rows of a residual stream.
  void head_logits(const float* residual, int64_t rows, float* logits);

  // [max_tokens, D] for head_loss and backward; nullptr with Keep::kNothing.
  float* gradient_buffer();
  int64_t max_tokens() const { return max_tokens_; }
  int64_t buffer_bytes() const { return buffer_bytes_; }

 private:
  // What one block keeps; with Keep::kNothing all blocks share one.
  struct BlockState {
    at::Tensor input;                        // [T, D]
    at::Tensor middle;                       // [T, D] residual after attention
    at::Tensor qkv;                          // [T, (H + 2G) E]
    at::Tensor attended;                     // [T, H E]
    at::Tensor lse;                          // [T, H]
    at::Tensor gate;                         // [T, F]
    at::Tensor up;                           // [T, F]
    at::Tensor inv_rms_attention;            // [T]
    at::Tensor inv_rms_mlp;                  // [T]
    std::array<at::Tensor, kProjections> u;  // [T, R]
  };

  at::Tensor make(std::initializer_list<int64_t> shape);
  BlockState& state(size_t layer);
  void block_forward(
      const Batch& batch, size_t layer_index, BlockState& state, KvCache* cache, float* output);
  void attend(const Batch& batch, size_t layer_index, BlockState& state, KvCache* cache);
  void block_backward(const Batch& batch,
                      const Layer& layer,
                      BlockState& state,
                      float* d_residual,
                      bool needs_input_grad);

  Model& model_;
  int64_t max_tokens_;
  Keep keep_;
  int64_t buffer_bytes_ = 0;
  std::vector<BlockState> states_;
  LinearWorkspace workspace_;
  at::Tensor residual_;    // [T, D] output of the last block
  at::Tensor d_residual_;  // [T, D]
  at::Tensor normed_;      // [T, D]
  at::Tensor d_normed_;    // [T, D]
  at::Tensor product_;     // [T, F] silu(gate) * up
  at::Tensor d_product_;   // [T, F]
  at::Tensor d_gate_;      // [T, F]
  at::Tensor d_up_;        // [T, F]
  at::Tensor d_qkv_;       // [T, (H + 2G) E]
  at::Tensor d_attended_;  // [T, H E]
  at::Tensor cos_;         // [T, E/2]
  at::Tensor sin_;
  at::Tensor weight_;  // scratch of LinearWorkspace
  at::Tensor low_rank_;
  at::Tensor dropped_;
  at::Tensor attention_workspace_;
  at::Tensor head_rows_;    // [chunk, D] gathered residual rows
  at::Tensor head_normed_;  // [chunk, D]
  at::Tensor d_head_rows_;  // [chunk, D]
  at::Tensor head_inv_rms_;
  at::Tensor logits_;  // [chunk, V]
  std::vector<float> chunk_loss_;
  std::vector<uint8_t> chunk_correct_;
};

}  // namespace graft::train
