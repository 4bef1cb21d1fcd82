#include "train/engine/head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
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

Head::Head(const Model& model,
           const HeadBuffers& buffers,
           int64_t chunk,
           const Device& device,
           StepClock& clock,
           int64_t tokens)
    : model_(model),
      buffers_(buffers),
      chunk_(chunk),
      device_(device),
      clock_(clock),
      row_(static_cast<size_t>(chunk)) {
  if (device.is_host()) return;
  loss_.resize(static_cast<size_t>(tokens));
  correct_.resize(static_cast<size_t>(tokens));
}

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

void Head::backward(int64_t count, const int32_t* row) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  // Of the whole head, or of the rows that are trained alone: the same bits.
  const auto add_weight_gradient = [&](int64_t first, const at::Tensor& grad) {
    ProductChain chain(device_);
    for_packed_rows(row, count, [&](int64_t begin, int64_t rows) {
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
    for_packed_rows(row, count, norm_backward);
  } else {
    norm_backward(0, count);
  }
  clock_.lap(Work::kRows);
}

HeadResult Head::loss(const Batch& batch,
                      const BatchArrays& arrays,
                      const float* residual,
                      double scale,
                      float* d_residual,
                      float* row_loss,
                      const HeadResult& before,
                      uint8_t* row_correct) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  const int64_t supervised = batch.supervised();
  const bool gradient = d_residual != nullptr;
  if (gradient) {
    device_.zero(d_residual, static_cast<size_t>(batch.tokens() * hidden) * sizeof(float));
  }
  int64_t rows = 0;
  for (int64_t begin = 0; begin < supervised; begin += rows) {
    rows = chunk_rows(batch, begin, chunk_);
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t place = batch.predicting[static_cast<size_t>(begin + row)];
      row_[static_cast<size_t>(row)] = batch.row[static_cast<size_t>(place)];
    }
    const int32_t* const places = arrays.predicting + begin;
    check(graft_embedding_forward(places, rows, residual, batch.tokens(), hidden, buffers_.rows,
                                  GRAFT_F32, device_.kind, device_.stream));
    clock_.lap(Work::kRows);
    forward(buffers_.rows, rows, buffers_.logits);
    check(graft_cross_entropy(buffers_.logits, arrays.labels + begin, arrays.weights + begin, rows,
                              config.vocab_size, static_cast<float>(scale), buffers_.loss + begin,
                              buffers_.correct + begin,
                              gradient ? GRAFT_CE_WITH_GRADIENT : GRAFT_CE_LOSS_ONLY, GRAFT_F32,
                              config.logit_cap, device_.kind, device_.stream));
    clock_.lap(Work::kLoss);
    if (!gradient) continue;
    backward(rows, row_.data());
    check(graft_rows_scatter(buffers_.d_rows, places, rows, batch.tokens(), hidden, d_residual,
                             GRAFT_F32, device_.kind, device_.stream));
    clock_.lap(Work::kRows);
  }
  const float* loss = buffers_.loss;
  const uint8_t* correct = buffers_.correct;
  if (!device_.is_host()) {
    const auto count = static_cast<size_t>(supervised);
    device_.copy(loss_.data(), loss, count * sizeof(float));
    device_.copy(correct_.data(), correct, count);
    device_.wait();
    loss = loss_.data();
    correct = correct_.data();
  }
  HeadResult result = before;
  for (int64_t at = 0; at < supervised; ++at) {
    const auto weight = static_cast<double>(batch.weights[static_cast<size_t>(at)]);
    result.loss_sum += weight * static_cast<double>(loss[at]);
    result.weight_sum += weight;
    result.correct += correct[at];
  }
  if (row_loss != nullptr) std::copy_n(loss, supervised, row_loss);
  if (row_correct != nullptr) std::copy_n(correct, supervised, row_correct);
  result.supervised += supervised;
  clock_.lap(Work::kLoss);
  return result;
}

void Head::logits(const float* residual, int64_t rows, float* logits) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  for (int64_t begin = 0; begin < rows; begin += chunk_) {
    const int64_t count = std::min(chunk_, rows - begin);
    float* const here = logits + begin * config.vocab_size;
    float* const to = device_.is_host() ? here : buffers_.logits;
    forward(residual + begin * hidden, count, to);
    if (config.logit_cap > 0) {
      check(graft_softcap_forward(to, config.logit_cap, count * config.vocab_size, GRAFT_F32,
                                  device_.kind, device_.stream));
      clock_.lap(Work::kLoss);
    }
    if (to == here) continue;
    device_.copy(here, to, static_cast<size_t>(count * config.vocab_size) * sizeof(float));
    device_.wait();
  }
}

}  // namespace graft::train
