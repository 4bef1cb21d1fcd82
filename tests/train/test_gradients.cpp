// The hand-written backward pass against autograd and against finite differences.
#include <cmath>
#include <cstring>
#include <string>

#include "core/hash.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

enum class Training { kLora, kFull };

// Adapters whose B is not zero, so that every product of the backward pass matters.
void add_rough_lora(Model& model) {
  add_lora(model, {.rank = 3, .alpha = 7, .dropout = 0, .rslora = false, .targets = {"all-linear"}},
           5);
  for (Parameter& parameter : model.trained) {
    const Philox random(11, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      f32(parameter.value)[i] = 0.3F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
}

std::unique_ptr<Model> with(std::unique_ptr<Model> model, Training training) {
  if (training == Training::kFull) {
    train_everything(*model);
  } else {
    add_rough_lora(*model);
  }
  return model;
}

std::unique_ptr<Model> tiny_model(Training training, bool tied) {
  const test::TempDir dir;
  return with(test::make_rough_model(test::write_tiny_config(dir.path(), tied), 7), training);
}

std::unique_ptr<Model> family_model(const test::TinyFamily& family, Training training) {
  const test::TempDir dir;
  return with(test::make_rough_model(test::write_family_config(dir.path(), family), 7), training);
}

double run_backward(Decoder& decoder, const Batch& batch, double scale, uint64_t dropout_seed = 0) {
  const float* residual = decoder.forward(batch, dropout_seed);
  const auto head = decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  return head.loss_sum * scale;
}

void zero(Model& model) {
  for (Parameter& parameter : model.trained) {
    std::memset(parameter.grad.data_ptr(), 0, parameter.grad.nbytes());
  }
}

// |a - b| / |b|; where b is zero, a must be.
double relative_difference(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor a = got.to(at::kDouble);
  const at::Tensor b = expected.to(at::kDouble);
  const auto size = b.norm().item<double>();
  const auto distance = (a - b).norm().item<double>();
  return size > 0 ? distance / size : distance;
}

}  // namespace

TEST_CASE("gradients: every trained tensor equals autograd within 1e-5", "[train][gradients]") {
  const Training training = GENERATE(Training::kLora, Training::kFull);
  const bool tied = GENERATE(false, true);
  const auto model = tiny_model(training, tied);
  const Batch batch = test::tiny_batch(37, {9, 1, 17, 2}, 3);
  Decoder decoder(*model, test::poisoned(*model, batch.tokens(), Keep::kForBackward));
  const double scale = 1 / batch.weight_sum;
  zero(*model);
  const double loss = run_backward(decoder, batch, scale);
  const auto expected = test::reference(*model, batch, scale, at::kFloat);
  CHECK(loss == Approx(expected.loss).epsilon(1e-6));
  REQUIRE(expected.gradients.size() == model->trained.size());
  for (size_t i = 0; i < model->trained.size(); ++i) {
    CAPTURE(model->trained[i].name);
    CHECK(relative_difference(model->trained[i].grad, expected.gradients[i].second) <= 1e-5);
  }
}

TEST_CASE("gradients: of every family, every trained tensor equals autograd within 1e-5",
          "[train][gradients][families][slow]") {
  // The documents are longer than the windows, and some than the lengths at which rotations change.
  const Batch batch = test::tiny_batch(37, {9, 1, 17, 2, 13}, 3);
  const double scale = 1 / batch.weight_sum;
  for (const test::TinyFamily& family : test::tiny_families()) {
    for (const Training training : {Training::kLora, Training::kFull}) {
      CAPTURE(family.name, training == Training::kFull);
      const auto model = family_model(family, training);
      Decoder decoder(*model, test::poisoned(*model, batch.tokens(), Keep::kForBackward));
      zero(*model);
      const double loss = run_backward(decoder, batch, scale);
      const auto expected = test::reference(*model, batch, scale, at::kFloat);
      CHECK(loss == Approx(expected.loss).epsilon(1e-6));
      REQUIRE(expected.gradients.size() == model->trained.size());
      for (size_t i = 0; i < model->trained.size(); ++i) {
        CAPTURE(model->trained[i].name);
        CHECK(relative_difference(model->trained[i].grad, expected.gradients[i].second) <= 1e-5);
      }
    }
  }
}

TEST_CASE("gradients: of experts that no token chose are exactly zero", "[train][gradients][moe]") {
  const Training training = GENERATE(Training::kLora, Training::kFull);
  const auto model = family_model(test::tiny_family("mixtral"), training);
  // Two tokens with three choices of six experts.
  Batch batch;
  batch.clear();
  const float weights[2] = {0.0F, 1.0F};
  const int32_t ids[2] = {5, 9};
  const uint8_t loss[2] = {0, 1};
  batch.add(ids, loss, weights, 0);
  Decoder decoder(*model, test::poisoned(*model, 2, Keep::kForBackward));
  zero(*model);
  run_backward(decoder, batch, 1);
  const auto expected = test::reference(*model, batch, 1, at::kFloat);
  int64_t unused = 0;
  for (size_t i = 0; i < model->trained.size(); ++i) {
    const Parameter& parameter = model->trained[i];
    if (parameter.name.find(".experts.") == std::string::npos) continue;
    CAPTURE(parameter.name);
    const bool is_zero = expected.gradients[i].second.abs().max().item<float>() == 0;
    CHECK((parameter.grad.abs().max().item<float>() == 0) == is_zero);
    unused += is_zero ? 1 : 0;
  }
  CHECK(unused > 0);
}

TEST_CASE("gradients: loss rows beyond the first chunk of the head count alike",
          "[train][gradients]") {
  // The head works on 256 places at a time; about 430 of these 660 are supervised.
  const auto model = tiny_model(Training::kFull, true);
  const Batch batch = test::tiny_batch(37, {300, 260, 100}, 21);
  REQUIRE(batch.supervised() > 300);
  Decoder decoder(*model, test::poisoned(*model, batch.tokens(), Keep::kForBackward));
  const double scale = 1 / batch.weight_sum;
  zero(*model);
  std::vector<float> row_loss(static_cast<size_t>(batch.supervised()));
  const float* residual = decoder.forward(batch, 0);
  const auto head =
      decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), row_loss.data());
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  const auto expected = test::reference(*model, batch, scale, at::kFloat);
  CHECK(head.loss_sum * scale == Approx(expected.loss).epsilon(1e-6));
  CHECK(head.weight_sum == Approx(batch.weight_sum));
  CHECK(head.supervised == batch.supervised());
  int64_t correct = 0;
  float largest = 0;
  for (size_t row = 0; row < row_loss.size(); ++row) {
    const at::Tensor logits = expected.logits[batch.predicting[row]];
    const float loss = -logits.log_softmax(-1)[batch.labels[row]].item<float>();
    largest = std::max(largest, std::fabs(loss - row_loss[row]));
    correct += logits.argmax().item<int64_t>() == batch.labels[row] ? 1 : 0;
  }
  CHECK(largest <= 2e-5F);
  CHECK(head.correct == correct);
  for (size_t i = 0; i < model->trained.size(); ++i) {
    CAPTURE(model->trained[i].name);
    CHECK(relative_difference(model->trained[i].grad, expected.gradients[i].second) <= 1e-5);
  }
}

TEST_CASE("gradients: with dropout they equal autograd's under the same masks",
          "[train][gradients]") {
  const auto model = tiny_model(Training::kLora, true);
  for (Linear* const linear : model->linears()) linear->lora.dropout = 0.4F;
  // Two micro-batches of one step: the second one's tokens have indices of their own.
  const Batch first = test::tiny_batch(37, {9, 1, 17}, 3);
  Batch second = test::tiny_batch(37, {12, 5}, 4);
  for (int64_t& index : second.token_index) {
    index += 1000;
  }
  Decoder decoder(*model, test::poisoned(*model, first.tokens(), Keep::kForBackward));
  const double scale = 1 / (first.weight_sum + second.weight_sum);
  zero(*model);
  const double loss =
      run_backward(decoder, first, scale, 77) + run_backward(decoder, second, scale, 77);
  const auto expected_first = test::reference(*model, first, scale, at::kFloat, 77);
  const auto expected_second = test::reference(*model, second, scale, at::kFloat, 77);
  CHECK(loss == Approx(expected_first.loss + expected_second.loss).epsilon(1e-6));
  const auto undropped = test::reference(*model, first, scale, at::kFloat);
  CHECK(std::fabs(undropped.loss - expected_first.loss) > 1e-3 * undropped.loss);
  for (size_t i = 0; i < model->trained.size(); ++i) {
    CAPTURE(model->trained[i].name);
    CHECK(relative_difference(
              model->trained[i].grad,
              expected_first.gradients[i].second + expected_second.gradients[i].second) <= 1e-5);
  }
}

TEST_CASE("gradients: they equal central differences in float64", "[train][gradients]") {
  // The oracle's loss in float64, moved along each tensor's own gradient direction: the slope must
  // be the gradient's norm. h = 1e-4 leaves a truncation error of order h^2 = 1e-8 of the third
  // derivative; the gradient itself is float32, so 1e-5 relative is what can be asked.
  const Training training = GENERATE(Training::kLora, Training::kFull);
  const auto model = tiny_model(training, true);
  const Batch batch = test::tiny_batch(37, {9, 17, 2}, 4);
  Decoder decoder(*model, test::poisoned(*model, batch.tokens(), Keep::kForBackward));
  const double scale = 1 / batch.weight_sum;
  zero(*model);
  run_backward(decoder, batch, scale);
  for (const Parameter& parameter : model->trained) {
    CAPTURE(parameter.name);
    const at::Tensor value = parameter.value.clone();
    const at::Tensor gradient = parameter.grad.to(at::kDouble);
    const double norm = gradient.norm().item<double>();
    // A direction that float32 weights can hold exactly: the difference of the two moved copies.
    const at::Tensor direction = gradient / norm;
    const double h = 3e-3;
    const auto loss_at = [&](double step) {
      parameter.value.copy_(value.to(at::kDouble) + step * direction);
      const at::Tensor moved = parameter.value.to(at::kDouble);
      return std::pair(test::reference(*model, batch, scale, at::kDouble).loss, moved);
    };
    const auto [high, high_value] = loss_at(h);
    const auto [low, low_value] = loss_at(-h);
    parameter.value.copy_(value);
    const double slope_expected = ((high_value - low_value) * gradient).sum().item<double>();
    CHECK(high - low == Approx(slope_expected).epsilon(2e-4));
  }
}

TEST_CASE("gradients: one batch of 8 equals 8 batches of 1", "[train][gradients]") {
  const Training training = GENERATE(Training::kLora, Training::kFull);
  const std::vector<int64_t> lengths = {5, 9, 3, 12, 7, 2, 30, 4};
  const auto whole_model = tiny_model(training, true);
  const auto split_model = tiny_model(training, true);
  const Batch whole = test::tiny_batch(37, lengths, 9);
  const double scale = 1 / whole.weight_sum;
  Decoder whole_decoder(*whole_model,
                        test::poisoned(*whole_model, whole.tokens(), Keep::kForBackward));
  Decoder split_decoder(*split_model, test::poisoned(*split_model, 30, Keep::kForBackward));
  zero(*whole_model);
  zero(*split_model);
  const double whole_loss = run_backward(whole_decoder, whole, scale);
  double split_loss = 0;
  for (size_t d = 0; d < lengths.size(); ++d) {
    // The same documents one at a time, cut out of the whole batch.
    Batch one;
    one.clear();
    const int32_t begin = whole.cu_seqlens[d];
    const int32_t end = whole.cu_seqlens[d + 1];
    std::vector<uint8_t> loss(static_cast<size_t>(end - begin), 0);
    std::vector<float> weights(256, 0.0F);
    for (size_t row = 0; row < whole.predicting.size(); ++row) {
      if (whole.predicting[row] >= begin && whole.predicting[row] < end) {
        const auto place = static_cast<size_t>(whole.predicting[row] - begin + 1);
        loss[place] = whole.weights[row] == 1.0F ? 1 : 2;
      }
    }
    weights[1] = 1.0F;
    weights[2] = 0.5F;
    one.add(std::span(whole.ids).subspan(static_cast<size_t>(begin), loss.size()), loss, weights,
            0);
    split_loss += run_backward(split_decoder, one, scale);
  }
  CHECK(split_loss == Approx(whole_loss).epsilon(1e-6));
  for (size_t i = 0; i < whole_model->trained.size(); ++i) {
    CAPTURE(whole_model->trained[i].name);
    CHECK(relative_difference(split_model->trained[i].grad, whole_model->trained[i].grad) <= 1e-6);
  }
}
