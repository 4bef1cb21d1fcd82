// The engine against Hugging Face's own numbers (tests/golden/make_llama.py), in float64 there.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/safetensors.h"
#include "tests/support/support.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/weights.h"

namespace {

using graft::SafetensorsFile;
using graft::TensorInfo;

std::vector<double> doubles(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  REQUIRE(info.dtype == graft::DType::kF64);
  std::vector<double> values(static_cast<size_t>(info.count()));
  std::memcpy(values.data(), file.bytes(info).data(), file.bytes(info).size());
  return values;
}

std::vector<int64_t> integers(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  REQUIRE(info.dtype == graft::DType::kI64);
  std::vector<int64_t> values(static_cast<size_t>(info.count()));
  std::memcpy(values.data(), file.bytes(info).data(), file.bytes(info).size());
  return values;
}

// |a - b| / |b|
double distance(const float* got, const std::vector<double>& expected) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(got[i]) - expected[i];
    difference += d * d;
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

TEST_CASE("golden: logits, loss and every gradient of a Llama equal Hugging Face's",
          "[train][golden]") {
  const std::string directory = graft::test::source_path("tests/golden/llama_tiny");
  const auto model = graft::train::load_model(directory, graft::train::Precision::kFull);
  graft::train::train_everything(*model);
  const SafetensorsFile golden(directory + "/golden.safetensors");
  const float weights[2] = {0.0F, 1.0F};
  graft::train::Batch batch;
  batch.clear();
  std::vector<double> expected_logits;
  for (const char* number : {"0", "1"}) {
    const std::vector<int64_t> ids = integers(golden, std::string("ids.") + number);
    const auto begin = static_cast<size_t>(integers(golden, std::string("begin.") + number)[0]);
    std::vector<uint8_t> loss(ids.size(), 0);
    std::fill(loss.begin() + static_cast<int64_t>(begin), loss.end(), uint8_t{1});
    batch.add(std::vector<int32_t>(ids.begin(), ids.end()), loss, weights, 0);
    const std::vector<double> logits = doubles(golden, std::string("logits.") + number);
    expected_logits.insert(expected_logits.end(), logits.begin(), logits.end());
  }
  graft::train::Decoder decoder(
      *model, graft::test::poisoned(*model, batch.tokens(), graft::train::Keep::kForBackward));
  const float* residual = decoder.forward(batch, 0);
  std::vector<float> logits(expected_logits.size());
  decoder.head_logits(residual, batch.tokens(), logits.data());
  CHECK(distance(logits.data(), expected_logits) <= 1e-6);

  graft::train::AdamW(model->trained).zero_gradients();
  const double scale = 1 / batch.weight_sum;
  const auto head = decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  CHECK(head.loss_sum * scale == Approx(doubles(golden, "loss")[0]).epsilon(1e-6));
  for (const graft::train::Parameter& parameter : model->trained) {
    CAPTURE(parameter.name);
    CHECK(distance(graft::train::f32(parameter.grad), doubles(golden, "grad." + parameter.name)) <=
          1e-5);
  }
}
