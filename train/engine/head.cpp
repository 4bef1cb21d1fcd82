#include "train/engine/head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
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
  const int64_t unit = std::min(chunk, kHeadChain);
  return row_begin + (end - row_begin) / unit * unit - begin;
}

}  // namespace

const void* Head::operand(const float* x, int64_t rows, int64_t columns) {
  if (model_.head_operands != GRAFT_BF16) return x;
  round_values(device_, x, rows, columns, buffers_.rounded);
  return buffers_.rounded;
}

void Head::forward(const float* rows, int64_t count, float* logits) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  check(graft_rmsnorm_forward(rows, f32(model_.final_norm.weight), config.rms_norm_eps, count,
                              hidden, buffers_.normed, buffers_.inv_rms, config.norm, GRAFT_F32, 0,
                              device_.kind, device_.stream));
  clock_.lap(Work::kRows);
  multiply(device_, {GRAFT_N, GRAFT_T, count, config.vocab_size, hidden, config.logit_scale,
                     operand(buffers_.normed, count, hidden), model_.head.data_ptr(), 0, logits,
                     model_.head_operands});
  clock_.lap(Work::kHead);
}

void Head::backward(int64_t count) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  // Of the whole head, or of the rows that are trained alone: the same bits.
  const auto add_weight_gradient = [&](int64_t first, const at::Tensor& grad) {
    ProductChain chain(device_);
    for_packed_rows(buffers_.row, count, [&](int64_t begin, int64_t rows) {
      chain.add({GRAFT_T, GRAFT_N, grad.size(0), hidden, rows, config.logit_scale,
                 buffers_.logits + begin * vocab + first, buffers_.normed + begin * hidden, 1,
                 f32(grad), GRAFT_F32, vocab});
    });
    chain.run();
  };
  if (model_.head_grad.defined()) add_weight_gradient(0, model_.head_grad);
  if (model_.head_rows.grad.defined()) {
    add_weight_gradient(config.added.first, model_.head_rows.grad);
  }
  multiply(device_, {GRAFT_N, GRAFT_N, count, hidden, vocab, config.logit_scale,
                     operand(buffers_.logits, count, vocab), model_.head.data_ptr(), 0,
                     buffers_.normed, model_.head_operands});
  clock_.lap(Work::kHead);
  device_.zero(buffers_.d_rows, static_cast<size_t>(count * hidden) * sizeof(float));
  const auto norm_backward = [&](int64_t begin, int64_t rows) {
    check(graft_rmsnorm_backward(buffers_.normed + begin * hidden, buffers_.rows + begin * hidden,
                                 f32(model_.final_norm.weight), buffers_.inv_rms + begin, rows,
                                 hidden, buffers_.d_rows + begin * hidden,
                                 f32_or_null(model_.final_norm.grad), config.norm, GRAFT_F32, 0,
                                 device_.kind, device_.stream));
  };
  if (model_.final_norm.grad.defined()) {
    for_packed_rows(buffers_.row, count, norm_backward);
  } else {
    norm_backward(0, count);
  }
  clock_.lap(Work::kRows);
}

HeadResult Head::loss(const Batch& batch,
                      const float* residual,
                      double scale,
                      float* d_residual,
                      float* row_loss,
                      const HeadResult& before,
                      uint8_t* row_correct) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  const bool gradient = d_residual != nullptr;
  if (gradient) device_.zero(d_residual, static_cast<size_t>(batch.tokens()) * row_bytes);
  HeadResult result = before;
  int64_t rows = 0;
  for (int64_t begin = 0; begin < batch.supervised(); begin += rows) {
    rows = chunk_rows(batch, begin, chunk_);
    const int32_t* places = batch.predicting.data() + begin;
    for (int64_t row = 0; row < rows; ++row) {
      device_.copy(buffers_.rows + row * hidden, residual + places[row] * hidden, row_bytes);
      buffers_.row[row] = batch.row[static_cast<size_t>(places[row])];
    }
    clock_.lap(Work::kRows);
    forward(buffers_.rows, rows, buffers_.logits);
    const float* weights = batch.weights.data() + begin;
    check(graft_cross_entropy(buffers_.logits, batch.labels.data() + begin, weights, rows,
                              config.vocab_size, static_cast<float>(scale), buffers_.loss,
                              buffers_.correct,
                              gradient ? GRAFT_CE_WITH_GRADIENT : GRAFT_CE_LOSS_ONLY, GRAFT_F32,
                              config.logit_cap, device_.kind, device_.stream));
    for (int64_t row = 0; row < rows; ++row) {
      result.loss_sum +=
          static_cast<double>(weights[row]) * static_cast<double>(buffers_.loss[row]);
      result.weight_sum += static_cast<double>(weights[row]);
      result.correct += buffers_.correct[row];
      if (row_loss != nullptr) row_loss[begin + row] = buffers_.loss[row];
      if (row_correct != nullptr) row_correct[begin + row] = buffers_.correct[row];
    }
    clock_.lap(Work::kLoss);
    if (!gradient) continue;
    backward(rows);
    for (int64_t row = 0; row < rows; ++row) {
      device_.copy(d_residual + places[row] * hidden, buffers_.d_rows + row * hidden, row_bytes);
    }
    clock_.lap(Work::kRows);
  }
  result.supervised += batch.supervised();
  return result;
}

void Head::logits(const float* residual, int64_t rows, float* logits) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  for (int64_t begin = 0; begin < rows; begin += chunk_) {
    const int64_t count = std::min(chunk_, rows - begin);
    float* to = logits + begin * config.vocab_size;
    forward(residual + begin * hidden, count, to);
    if (config.logit_cap > 0) {
      check(graft_softcap_forward(to, config.logit_cap, count * config.vocab_size, GRAFT_F32,
                                  device_.kind, device_.stream));
      clock_.lap(Work::kLoss);
    }
  }
}

}  // namespace graft::train
