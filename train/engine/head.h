// Final norm, head and loss, in chunks of rows.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/batch.h"
#include "train/engine/block.h"
#include "train/model/model.h"

namespace graft::train {

struct HeadResult {
  double loss_sum = 0;  // sum of weight * -log p, added in the order of the tokens
  double weight_sum = 0;
  int64_t supervised = 0;
  int64_t correct = 0;  // predictions whose largest logit is the label
};

// A head's weight gradient is summed in chains of so many supervised tokens, from the first of each
// packed row: the depth of a chain of graft_gemm_f32, and a multiple of graft_rmsnorm_backward's.
constexpr int64_t kHeadChain = 256;

class Head {
 public:
  // `chunk` rows of logits are held at a time, a multiple of kHeadChain; no result depends on it.
  Head(const Model& model, Keep keep, int64_t chunk, Buffers& buffers);

  // See Decoder::head_loss and head_logits.
  HeadResult loss(const Batch& batch,
                  const float* residual,
                  double scale,
                  float* d_residual,
                  float* row_loss,
                  const HeadResult& before);
  void logits(const float* residual, int64_t rows, float* logits);

 private:
  // logits = cap(logit_scale * norm(rows) W^T) of `count` rows; the normed rows stay in normed_.
  void forward(const float* rows, int64_t count, float* logits);
  // d_rows: the gradient of `count` rows, from that of the logits in logits_. `row` [count] are
  // their packed rows.
  void backward(int64_t count, const int32_t* row);

  const Model& model_;
  int64_t chunk_;
  at::Tensor rows_;    // [chunk, D] gathered residual rows
  at::Tensor normed_;  // [chunk, D]
  at::Tensor d_rows_;  // [chunk, D]
  at::Tensor inv_rms_;
  at::Tensor logits_;  // [chunk, V]
  at::Tensor capped_;  // [chunk, V] kept of the capped logits; undefined without a cap
  std::vector<float> chunk_loss_;
  std::vector<uint8_t> chunk_correct_;
  std::vector<int32_t> chunk_row_;
};

}  // namespace graft::train
