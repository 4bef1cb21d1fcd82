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

// How many of the supervised places from `begin` on make a chunk: whole packed rows, or whole
// chains of one, so that the chunk's size does not decide where sums begin.
int64_t chunk_rows(const Batch& batch, int64_t begin, int64_t chunk) {
  const int64_t end = std::min(begin + chunk, batch.supervised());
  const auto row_of = [&](int64_t at) {
    return batch.row[static_cast<size_t>(batch.predicting[static_cast<size_t>(at)])];
  };
  if (end == batch.supervised() || row_of(end) != row_of(end - 1)) return end - begin;
  int64_t row_begin = end - 1;  // of the row that is cut; it may have begun in an earlier chunk
  while (row_begin > 0 && row_of(row_begin - 1) == row_of(end)) --row_begin;
  const int64_t cut = row_begin + (end - row_begin) / kHeadChain * kHeadChain;
  return cut - begin;
}

}  // namespace

Head::Head(const Model& model, Keep keep, int64_t chunk, Buffers& buffers)
    : model_(model), chunk_(chunk) {
  const int64_t hidden = model.config.hidden_size, vocab = model.config.vocab_size;
  rows_ = buffers.make({chunk, hidden});
  normed_ = buffers.make({chunk, hidden});
  inv_rms_ = buffers.make({chunk});
  logits_ = buffers.make({chunk, vocab});
  if (keep == Keep::kForBackward) {
    d_rows_ = buffers.make({chunk, hidden});
    if (model.config.logit_cap > 0) capped_ = buffers.make({chunk, vocab});
  }
  chunk_loss_.resize(static_cast<size_t>(chunk));
  chunk_correct_.resize(static_cast<size_t>(chunk));
  chunk_row_.resize(static_cast<size_t>(chunk));
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

void Head::backward(int64_t count, const int32_t* row) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  if (config.logit_cap > 0) {
    check(graft_softcap_backward(f32(capped_), config.logit_cap, count * vocab, f32(logits_)));
  }
  if (model_.head_grad.defined()) {
    for_packed_rows(row, count, [&](int64_t begin, int64_t rows) {
      check(graft_gemm_f32(GRAFT_T, GRAFT_N, vocab, hidden, rows, config.logit_scale,
                           f32(logits_) + begin * vocab, vocab, f32(normed_) + begin * hidden,
                           hidden, 1, f32(model_.head_grad), hidden));
    });
  }
  check(graft_gemm_f32(GRAFT_N, GRAFT_N, count, hidden, vocab, config.logit_scale, f32(logits_),
                       vocab, f32(model_.head), hidden, 0, f32(normed_), hidden));
  std::memset(f32(d_rows_), 0, static_cast<size_t>(count * hidden) * sizeof(float));
  for_packed_rows(row, count, [&](int64_t begin, int64_t rows) {
    check(graft_rmsnorm_backward(f32(normed_) + begin * hidden, f32(rows_) + begin * hidden,
                                 f32(model_.final_norm.weight), f32(inv_rms_) + begin, rows, hidden,
                                 f32(d_rows_) + begin * hidden, f32_or_null(model_.final_norm.grad),
                                 config.norm));
  });
}

HeadResult Head::loss(const Batch& batch,
                      const float* residual,
                      double scale,
                      float* d_residual,
                      float* row_loss,
                      const HeadResult& before) {
  const int64_t hidden = model_.config.hidden_size;
  const int64_t vocab = model_.config.vocab_size;
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  const bool gradient = d_residual != nullptr;
  if (gradient) {
    std::memset(d_residual, 0, static_cast<size_t>(batch.tokens()) * row_bytes);
  }
  HeadResult result = before;
  int64_t rows = 0;
  for (int64_t begin = 0; begin < batch.supervised(); begin += rows) {
    rows = chunk_rows(batch, begin, chunk_);
    const int32_t* places = batch.predicting.data() + begin;
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(f32(rows_) + row * hidden, residual + places[row] * hidden, row_bytes);
      chunk_row_[static_cast<size_t>(row)] = batch.row[static_cast<size_t>(places[row])];
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
    backward(rows, chunk_row_.data());
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(d_residual + places[row] * hidden, f32(d_rows_) + row * hidden, row_bytes);
    }
  }
  result.supervised += batch.supervised();
  return result;
}

void Head::logits(const float* residual, int64_t rows, float* logits) {
  const int64_t hidden = model_.config.hidden_size;
  for (int64_t begin = 0; begin < rows; begin += chunk_) {
    forward(residual + begin * hidden, std::min(chunk_, rows - begin),
            logits + begin * model_.config.vocab_size);
  }
}

}  // namespace graft::train
