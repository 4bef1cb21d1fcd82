// Final norm, head and loss, in chunks of rows.
#pragma once

#include <cstdint>
#include <vector>

#include "train/engine/batch.h"
#include "train/engine/clock.h"
#include "train/engine/device.h"
#include "train/engine/step_buffers.h"
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
  // Of at most `tokens` supervised places. `chunk` rows of logits are held at a time; no result
  // depends on it, but where the head is trained it must be a multiple of kHeadChain.
  Head(const Model& model,
       const HeadBuffers& buffers,
       int64_t chunk,
       const Device& device,
       StepClock& clock,
       int64_t tokens);

  // See Decoder::head_loss and head_logits.
  HeadResult loss(const Batch& batch,
                  const BatchArrays& arrays,
                  const float* residual,
                  double scale,
                  float* d_residual,
                  float* row_loss,
                  const HeadResult& before,
                  uint8_t* row_correct);
  void logits(const float* residual, int64_t rows, float* logits);

 private:
  // logits = logit_scale * norm(rows) W^T of `count` rows, not capped; the normed rows stay.
  void forward(const float* rows, int64_t count, float* logits);
  // x [rows, columns] as the products with the head take it.
  const void* operand(const float* x, int64_t rows, int64_t columns);
  // d_rows: the gradient of `count` rows, from that of the logits; `row` are their packed rows.
  void backward(int64_t count, const int32_t* row);

  const Model& model_;
  HeadBuffers buffers_;
  int64_t chunk_;
  Device device_;
  StepClock& clock_;
  std::vector<int32_t> row_;  // packed rows of a chunk
  // Of a device with memory of its own: what it says of all supervised places.
  std::vector<float> loss_;
  std::vector<uint8_t> correct_;
};

}  // namespace graft::train
