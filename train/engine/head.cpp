#include "train/engine/head.h"

#include <algorithm>
#include <cstring>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/rmsnorm.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// Rows of logits at a time: bounds the buffer (1 MB at a vocabulary of 1,024, 131 MB at 128k) and
// is tall enough for the product to run at its full rate.
constexpr int64_t kChunk = 256;

}  // namespace

Head::Head(const Model& model, Keep keep, Buffers& buffers) : model_(model) {
  const int64_t hidden = model.config.hidden_size, vocab = model.config.vocab_size;
  rows_ = buffers.make({kChunk, hidden});
  normed_ = buffers.make({kChunk, hidden});
  inv_rms_ = buffers.make({kChunk});
  logits_ = buffers.make({kChunk, vocab});
  if (keep == Keep::kForBackward) {
    d_rows_ = buffers.make({kChunk, hidden});
    if (model.config.logit_cap > 0) capped_ = buffers.make({kChunk, vocab});
  }
  chunk_loss_.resize(kChunk);
  chunk_correct_.resize(kChunk);
}

void Head::forward(const float* rows, int64_t count, float* logits) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  check(graft_rmsnorm_forward(rows, f32(model_.final_norm.weight), config.rms_norm_eps, count,
                              hidden, f32(normed_), f32(inv_rms_), config.norm));
  check(graft_gemm_f32(GRAFT_N, GRAFT_T, count, vocab, hidden, config.logit_scale, f32(normed_),
                       hidden, f32(model_.head), hidden, 0, logits, vocab));
  if (config.logit_cap > 0) {
    check(graft_softcap_forward(logits, config.logit_cap, count * vocab));
  }
}

void Head::backward(int64_t count) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  if (config.logit_cap > 0) {
    check(graft_softcap_backward(f32(capped_), config.logit_cap, count * vocab, f32(logits_)));
  }
  if (model_.head_grad.defined()) {
    check(graft_gemm_f32(GRAFT_T, GRAFT_N, vocab, hidden, count, config.logit_scale, f32(logits_),
                         vocab, f32(normed_), hidden, 1, f32(model_.head_grad), hidden));
  }
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, count, hidden, vocab, config.logit_scale, f32(logits_),
                       vocab, f32(model_.head), hidden, 0, f32(normed_), hidden));
  std::memset(f32(d_rows_), 0, static_cast<size_t>(count * hidden) * sizeof(float));
  check(graft_rmsnorm_backward(f32(normed_), f32(rows_), f32(model_.final_norm.weight),
                               f32(inv_rms_), count, hidden, f32(d_rows_),
                               f32_or_null(model_.final_norm.grad), config.norm));
}

HeadResult Head::loss(
    const Batch& batch, const float* residual, double scale, float* d_residual, float* row_loss) {
  const int64_t hidden = model_.config.hidden_size;
  const int64_t vocab = model_.config.vocab_size;
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  const bool gradient = d_residual != nullptr;
  if (gradient) {
    std::memset(d_residual, 0, static_cast<size_t>(batch.tokens()) * row_bytes);
  }
  HeadResult result;
  for (int64_t begin = 0; begin < batch.supervised(); begin += kChunk) {
    const int64_t rows = std::min(kChunk, batch.supervised() - begin);
    const int32_t* places = batch.predicting.data() + begin;
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(f32(rows_) + row * hidden, residual + places[row] * hidden, row_bytes);
    }
    forward(f32(rows_), rows, f32(logits_));
    if (gradient && capped_.defined()) {
      std::memcpy(f32(capped_), f32(logits_), static_cast<size_t>(rows * vocab) * sizeof(float));
    }
    const float* weights = batch.weights.data() + begin;
    check(graft_cross_entropy(f32(logits_), batch.labels.data() + begin, weights, rows, vocab,
                              static_cast<float>(scale), chunk_loss_.data(), chunk_correct_.data(),
                              gradient ? GRAFT_CE_WITH_GRADIENT : GRAFT_CE_LOSS_ONLY));
    for (int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<size_t>(row);
      result.loss_sum += static_cast<double>(weights[row]) * static_cast<double>(chunk_loss_[at]);
      result.weight_sum += static_cast<double>(weights[row]);
      result.correct += chunk_correct_[at];
      if (row_loss != nullptr) {
        row_loss[begin + row] = chunk_loss_[at];
      }
    }
    if (!gradient) {
      continue;
    }
    backward(rows);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(d_residual + places[row] * hidden, f32(d_rows_) + row * hidden, row_bytes);
    }
  }
  result.supervised = batch.supervised();
  return result;
}

void Head::logits(const float* residual, int64_t rows, float* logits) {
  const int64_t hidden = model_.config.hidden_size;
  for (int64_t begin = 0; begin < rows; begin += kChunk) {
    forward(residual + begin * hidden, std::min(kChunk, rows - begin),
            logits + begin * model_.config.vocab_size);
  }
}

}  // namespace graft::train
