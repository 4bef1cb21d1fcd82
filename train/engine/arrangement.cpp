#include "train/engine/arrangement.h"

#include <algorithm>

#include <omp.h>

#include "train/engine/decoder.h"
#include "train/model/placed.h"

namespace graft::train {
namespace {

// Sets the number of threads while it lives.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) {
    if (count > 0) omp_set_num_threads(count);
  }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

HeadResult forward_and_backward(
    Decoder& decoder, const Batch& batch, uint64_t seed, double scale, const HeadResult& before) {
  const float* residual = decoder.forward(batch, seed);
  const HeadResult sums =
      decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr, before);
  decoder.backward(batch, decoder.gradient_buffer());
  return sums;
}

}  // namespace

HeadResult compute_step(Model& model, const StepRows& rows, const Arrangement& how) {
  const Threads threads(how.threads);
  const PlacedModel placed(model, how.device);
  const size_t at_once = how.rows > 0 ? how.rows : rows.count;
  std::vector<Batch> batches;
  int64_t tokens = 0;
  for (size_t row = 0; row < rows.count; row += at_once) {
    batches.push_back(rows.batch(row, std::min(row + at_once, rows.count)));
    tokens = std::max(tokens, batches.back().tokens());
  }
  StepPlan plan = StepPlan::of(model, tokens, Keep::kForBackward);
  plan.head_chunk = how.head_chunk;
  plan.poison = Poison::kYes;
  if (!how.layers.empty()) plan.layers = how.layers;
  for (const Parameter& parameter : model.trained) {
    how.device.zero(parameter.grad.data_ptr(), parameter.grad.nbytes());
  }
  Decoder decoder(model, plan, how.device);
  HeadResult sums;
  for (const Batch& batch : batches) {
    sums = forward_and_backward(decoder, batch, rows.dropout_seed, rows.scale, sums);
  }
  decoder.finish_gradients();
  return sums;
}

std::vector<float> input_gradient(Model& model, const Batch& batch, double scale) {
  StepPlan plan = StepPlan::of(model, batch.tokens(), Keep::kForBackward);
  plan.lowest = 0;
  plan.input_gradient = true;
  Decoder decoder(model, plan);
  forward_and_backward(decoder, batch, 0, scale, {});
  decoder.finish_gradients();
  const float* gradient = decoder.gradient_buffer();
  return {gradient, gradient + batch.tokens() * model.config.hidden_size};
}

std::vector<float> last_logits(Model& model, const Batch& batch) {
  Decoder decoder(model, StepPlan::of(model, batch.tokens(), Keep::kNothing));
  const float* residual = decoder.forward(batch, 0);
  const int64_t vocab = model.config.vocab_size;
  std::vector<float> logits(static_cast<size_t>(batch.documents() * vocab));
  for (int64_t document = 0; document < batch.documents(); ++document) {
    const int64_t last = int64_t{batch.cu_seqlens[static_cast<size_t>(document) + 1]} - 1;
    decoder.head_logits(residual + last * model.config.hidden_size, 1,
                        logits.data() + document * vocab);
  }
  return logits;
}

}  // namespace graft::train
