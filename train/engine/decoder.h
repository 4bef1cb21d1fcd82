// The decoder's forward and backward pass over packed rows, written out by hand.
//
// What a block keeps for its backward pass and what it computes again is the plan's choice
// (plan.h). The normed inputs and activation(gate) * up are always computed again, as they cost one
// pass over memory, but in a narrow model, where that is more of a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/engine/arena.h"
#include "train/engine/batch.h"
#include "train/engine/block.h"
#include "train/engine/head.h"
#include "train/engine/kv_cache.h"
#include "train/engine/plan.h"
#include "train/engine/step_buffers.h"
#include "train/model/model.h"

namespace graft::train {

class Decoder {
 public:
  using HeadResult = train::HeadResult;

  // Makes every buffer. The model must outlive the decoder. Decoders that do not run at the same
  // time may share an arena that has room for each of their layouts; nullptr = one of its own.
  Decoder(Model& model,
          const StepPlan& plan,
          const Device& device = {},
          std::shared_ptr<const Arena> arena = nullptr);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Runs the blocks; returns the residual stream [T, D] before the final norm, which stays valid
  // until the next call. `dropout_seed` 0 = no dropout.
  // With a cache: the batch is one document when the cache is empty, else the one next token; its
  // keys and values are appended. Errors: kData (an id outside the vocabulary), kBug (more tokens
  // than planned, or than the cache has room for).
  const float* forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache = nullptr);

  // [T, D] the residual stream as block `layer` got it in the last forward; of the first block the
  // embeddings. Of a plan that keeps it.
  const float* block_input(size_t layer) const;

  // d_residual [T, D], the loss's gradient by forward's result, is overwritten. Adds to the
  // gradients of everything trained. Needs Keep::kForBackward and the same batch as the last
  // forward. With StepPlan::input_gradient it is left as the gradient by what entered block 0.
  void backward(const Batch& batch, float* d_residual);

  // To be called when the last micro-batch of a step went backward: adds what a tied embedding got
  // as the head. Its two uses are summed apart, else their turns would decide the bits.
  void finish_gradients();

  // Final norm, head and loss of the batch's supervised places, in chunks of rows. With
  // d_residual (not nullptr), writes the gradient of scale * loss_sum there and adds to the head's
  // and the final norm's gradients. `row_loss` and `row_correct` (or nullptr) take each place's
  // -log p and whether its label has the largest logit. The result goes on from `before`, the sums
  // of the micro-batches before this one.
  HeadResult head_loss(const Batch& batch,
                       const float* residual,
                       double scale,
                       float* d_residual,
                       float* row_loss,
                       const HeadResult& before = {},
                       uint8_t* row_correct = nullptr);

  // logits [rows, V], in host memory, of `rows` rows of a residual stream.
  void head_logits(const float* residual, int64_t rows, float* logits) {
    head_.logits(residual, rows, logits);
  }
  const Device& device() const { return device_; }
  // Whose attention a narrow model takes, and why: "LibTorch's flash attention, deterministic".
  std::string attention_text() const;

  // [tokens of the plan, D] for head_loss and backward; nullptr with Keep::kNothing.
  float* gradient_buffer() { return buffers_.d_residual; }
  int64_t max_tokens() const { return plan_.tokens; }
  int64_t buffer_bytes() const;
  StepClock& clock() { return clock_; }

 private:
  // Copies the batch's arrays to a device with memory of its own.
  void place(const Batch& batch);
  Pass make_pass(const Batch& batch, const Scratch& scratch, KvCache* cache);
  void check_batch(const Batch& batch, const KvCache* cache) const;
  void keep_decoded(std::span<Linear> group) const;
  // The rows of the batch's ids, scaled.
  void embed(const Batch& batch, const EmbeddingBuffers& rows, float* embedded);
  void add_row_gradients(const Batch& batch, const float* d_embedded);
  void send_to_host(size_t index, const Batch& batch);
  void bring_from_host(size_t index, const Batch& batch);
  // The inputs that a run of blocks dropped, of which `last` is the last.
  void make_inputs(const Batch& batch, size_t last);
  // What the block did not keep, into its backward buffers.
  void run_again(const Batch& batch, size_t index);
  void end_phase(int phase) const { arena_->end_phase(layout_, phase); }

  Model& model_;
  StepPlan plan_;
  Timeline time_;
  Device device_;
  Layout layout_;
  std::shared_ptr<const Arena> arena_;
  StepBuffers buffers_;
  StepClock clock_;
  Head head_;
  std::unique_ptr<Flash> flash_;
  std::string no_flash_;       // why there is none
  BatchArrays arrays_;         // of the last forward
  uint64_t dropout_seed_ = 0;  // likewise
};

}  // namespace graft::train
