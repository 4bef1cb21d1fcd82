// graft-gradients: what graft computes of a batch - loss, logits, every gradient - as a safetensors
// file, for tests/peers/families.py. Not installed.
//
// usage: graft-gradients MODEL BATCH OUT [--adapter DIR | --new-adapter DIR] [--load-in-4bit]
//   BATCH          input_ids and labels, I64 [B, T]; -100: not trained on; not shifted
//   OUT            loss [1], logits [B, T, V], grad.NAME of everything trained
//   --adapter      trains the pairs of this PEFT directory
//   --new-adapter  trains fresh pairs of rank 3 on every linear, with random B, and writes them
//   there neither        trains every tensor of the model
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/hash.h"
#include "core/safetensors.h"
#include "tests/peers/batches.h"
#include "train/engine/decoder.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

struct Options {
  std::string model, batch, out, adapter, new_adapter;
  bool four_bits = false;
};

Options read_options(int argc, char** argv) {
  Options options;
  std::vector<std::string> places;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool value = (word == "--adapter" || word == "--new-adapter") && i + 1 < argc;
    if (value) {
      (word == "--adapter" ? options.adapter : options.new_adapter) = argv[++i];
    } else if (word == "--load-in-4bit") {
      options.four_bits = true;
    } else {
      places.push_back(word);
    }
  }
  if (places.size() != 3) {
    fail(ExitCode::kUsage,
         "usage: graft-gradients MODEL BATCH OUT [--adapter DIR | "
         "--new-adapter DIR] [--load-in-4bit]");
  }
  options.model = places[0];
  options.batch = places[1];
  options.out = places[2];
  return options;
}

void make_pairs(Model& model, const std::string& directory) {
  const LoraSettings settings = {
      .rank = 3, .alpha = 5, .dropout = 0, .rslora = false, .targets = {"all-linear"}};
  add_lora(model, settings, 1);
  for (const Parameter& parameter : model.trained) {
    const Philox random(2, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      f32(parameter.value)[i] = 0.2F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  save_adapter(model, settings, "base", directory);
}

TensorBytes bytes_of(const std::string& name, std::vector<int64_t> shape, const float* values) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return {{name, DType::kF32, std::move(shape)},
          std::as_bytes(std::span(values, static_cast<size_t>(count)))};
}

int run(const Options& options) {
  const auto model =
      load_model(options.model, options.four_bits ? Precision::kNf4 : Precision::kFull);
  if (!options.adapter.empty()) {
    load_adapter(*model, options.adapter);
    train_pairs(*model);
  } else if (!options.new_adapter.empty()) {
    make_pairs(*model, options.new_adapter);
  } else {
    train_everything(*model);
  }
  const SafetensorsFile file(options.batch);
  const Batch batch = test::read_batches(file, 1).front();
  Decoder decoder(*model, StepPlan::of(*model, batch.tokens(), Keep::kForBackward));
  for (const Parameter& parameter : model->trained) {
    std::memset(parameter.grad.data_ptr(), 0, parameter.grad.nbytes());
  }
  const float* residual = decoder.forward(batch, 0);
  const double scale = 1 / batch.weight_sum;
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model->config.vocab_size));
  decoder.head_logits(residual, batch.tokens(), logits.data());
  const HeadResult head =
      decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  const auto loss = static_cast<float>(head.loss_sum * scale);
  const std::vector<int64_t>& shape = file.at("input_ids").shape;
  std::vector<TensorBytes> tensors = {
      bytes_of("loss", {1}, &loss),
      bytes_of("logits", {shape[0], shape[1], model->config.vocab_size}, logits.data())};
  for (const Parameter& parameter : model->trained) {
    tensors.push_back(test::bytes_of("grad." + parameter.name, parameter.grad));
  }
  write_safetensors(options.out, std::move(tensors));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_main([&] { return run(read_options(argc, argv)); });
}
