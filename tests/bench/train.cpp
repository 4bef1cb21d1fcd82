#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/hash.h"
#include "tests/bench/measure.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace graft::bench {
namespace {

using namespace graft::train;  // NOLINT(google-build-using-namespace)

// examples/quickstart: rows of 128 tokens, eight a step.
constexpr int64_t kLength = 128;
constexpr int64_t kRows = 8;

enum class Method { kQlora, kLora, kFull };

struct Step {
  std::unique_ptr<Model> model;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<Decoder> decoder;
  Batch batch;

  void run() {
    optimizer->zero_gradients();
    const float* residual = decoder->forward(batch, 1);
    const double scale = 1.0 / batch.weight_sum;
    const HeadResult head =
        decoder->head_loss(batch, residual, scale, decoder->gradient_buffer(), nullptr);
    decoder->backward(batch, decoder->gradient_buffer());
    decoder->finish_gradients();
    optimizer->step({}, 1e-4, head.loss_sum * scale);
  }
};

// Full rows of random tokens, every prediction supervised.
Batch random_batch(int64_t vocab_size) {
  const Philox random(1, 4);
  const float weights[2] = {0.0F, 1.0F};
  const std::vector<uint8_t> loss(kLength, 1);
  Batch batch;
  batch.clear();
  for (int64_t row = 0; row < kRows; ++row) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < kLength; ++t) {
      ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(row * kLength + t),
                                                      static_cast<uint64_t>(vocab_size))));
    }
    batch.begin_row();
    batch.add(ids, loss, weights, row * kLength);
  }
  return batch;
}

std::shared_ptr<Step> make_step(Method method) {
  const std::string base = std::string(GRAFT_SOURCE_DIR) + "/examples/quickstart/base";
  auto step = std::make_shared<Step>();
  step->model = load_model(base, method == Method::kQlora ? Precision::kNf4 : Precision::kFull);
  if (method == Method::kFull) {
    train_everything(*step->model);
  } else {
    LoraSettings settings;
    settings.targets = {"all-linear"};
    add_lora(*step->model, settings, 1);
  }
  step->optimizer = std::make_unique<AdamW>(step->model->trained);
  step->decoder = std::make_unique<Decoder>(
      *step->model, StepPlan::of(*step->model, kRows * kLength, Keep::kForBackward));
  step->batch = random_batch(step->model->config.vocab_size);
  return step;
}

}  // namespace

void add_training(Bench& bench) {
  const std::pair<const char*, Method> kMethods[] = {{"train step, qlora rank 16", Method::kQlora},
                                                     {"train step, lora rank 16", Method::kLora},
                                                     {"train step, every tensor", Method::kFull}};
  for (const auto& [name, method] : kMethods) {
    if (bench.wants(name)) {
      const std::shared_ptr<Step> step = make_step(method);
      bench.add({name,
                 Unit::kTokens,
                 static_cast<double>(step->batch.tokens()),
                 {{"graft", [step] { step->run(); }}},
                 {}});
    }
  }
}

}  // namespace graft::bench
