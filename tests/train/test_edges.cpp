// Edge cases of the engine, over the families: what must be equal to the bit, or exactly zero, or
// leave everything as it was.
#include <cmath>
#include <cstring>

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

std::unique_ptr<Model> family_model(const test::TinyFamily& family) {
  const test::TempDir dir;
  return test::make_rough_model(test::write_family_config(dir.path(), family), 7);
}

void add_rough_lora(Model& model, int64_t rank = 3) {
  add_lora(model,
           {.rank = rank, .alpha = 7, .dropout = 0, .rslora = false, .targets = {"all-linear"}}, 5);
  for (Parameter& parameter : model.trained) {
    const Philox random(11, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      f32(parameter.value)[i] = 0.3F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
}

void zero(Model& model) {
  for (Parameter& parameter : model.trained) {
    std::memset(parameter.grad.data_ptr(), 0, parameter.grad.nbytes());
  }
}

struct Outcome {
  std::vector<float> logits;
  double loss = 0;
};

// Forward, loss and backward; adds to the model's gradients.
Outcome run(Model& model, const Batch& batch, double scale) {
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kForBackward));
  const float* residual = decoder.forward(batch, 0);
  Outcome outcome;
  outcome.logits.resize(static_cast<size_t>(batch.tokens() * model.config.vocab_size));
  decoder.head_logits(residual, batch.tokens(), outcome.logits.data());
  outcome.loss =
      decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr).loss_sum *
      scale;
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  return outcome;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

// Ids in [first, last), all supervised.
void add_document(Batch& batch, int64_t length, int32_t first, int32_t last, bool supervised) {
  const float weights[2] = {0.0F, 1.0F};
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) {
    ids.push_back(first + static_cast<int32_t>(i * 7) % (last - first));
  }
  const std::vector<uint8_t> loss(ids.size(), supervised ? 1 : 0);
  batch.add(ids, loss, weights, batch.tokens());
}

}  // namespace

TEST_CASE("edges: QLoRA on NF4 equals LoRA on the decoded weights to the bit, in every family",
          "[train][edges][families]") {
  const graft_float_type operands = GENERATE(GRAFT_F32, GRAFT_BF16);
  const Batch batch = test::tiny_batch(37, {9, 17, 2}, 3);
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name, operands);
    const test::TempDir dir;
    const std::string made = test::write_family_config(dir.path(), family);
    save_model(*test::make_rough_model(made, 7), made, dir.file("base"));
    const auto packed = load_model(dir.file("base"), Precision::kNf4, {}, {operands});
    const auto decoded = load_model(dir.file("base"), Precision::kFull, {}, {operands});
    const std::vector<Linear*> from = packed->linears(), to = decoded->linears();
    for (size_t i = 0; i < from.size(); ++i) {
      CHECK(from[i]->base.quantized() == from[i]->quantizes);
      if (!from[i]->base.quantized()) continue;
      REQUIRE(to[i]->operands == operands);
      decode({}, from[i]->base.nf4(), operands, to[i]->base.dense.data_ptr());
    }
    add_rough_lora(*packed);
    add_rough_lora(*decoded);
    zero(*packed);
    zero(*decoded);
    const Outcome a = run(*packed, batch, 0.1), b = run(*decoded, batch, 0.1);
    CHECK(a.loss == b.loss);
    CHECK(std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0);
    for (size_t i = 0; i < packed->trained.size(); ++i) {
      CAPTURE(packed->trained[i].name);
      CHECK(same_bits(packed->trained[i].grad, decoded->trained[i].grad));
    }
  }
}

TEST_CASE("edges: a packed document equals itself alone to the bit, in every family",
          "[train][edges][families]") {
  // Among them documents on both sides of the lengths at which rotations change.
  const std::vector<int64_t> lengths = {9, 21, 1, 13, 5};
  const Batch packed = test::tiny_batch(37, lengths, 3);
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = family_model(family);
    Decoder decoder(*model, test::poisoned(*model, packed.tokens(), Keep::kNothing));
    const auto vocab = static_cast<size_t>(model->config.vocab_size);
    std::vector<float> all(static_cast<size_t>(packed.tokens()) * vocab);
    decoder.head_logits(decoder.forward(packed, 0), packed.tokens(), all.data());
    for (size_t d = 0; d < lengths.size(); ++d) {
      CAPTURE(d);
      const auto begin = static_cast<size_t>(packed.cu_seqlens[d]);
      const auto length = static_cast<size_t>(lengths[d]);
      const float weights[1] = {0.0F};
      Batch one;
      one.clear();
      one.add(std::span(packed.ids).subspan(begin, length), std::vector<uint8_t>(length), weights,
              0);
      std::vector<float> alone(length * vocab);
      decoder.head_logits(decoder.forward(one, 0), one.tokens(), alone.data());
      CHECK(std::memcmp(alone.data(), all.data() + begin * vocab, alone.size() * 4) == 0);
    }
  }
}

TEST_CASE("edges: a document's loss has a gradient of exactly zero for its packed neighbours",
          "[train][edges][families]") {
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = family_model(family);
    // Tied embeddings are the head as well, whose gradient is of every id.
    if (model->config.tied_embeddings) continue;
    train_everything(*model);
    zero(*model);
    Batch batch;
    batch.clear();
    add_document(batch, 11, 0, 12, false);
    add_document(batch, 9, 12, 24, true);
    add_document(batch, 7, 24, 37, false);
    run(*model, batch, 1);
    const float* grad = f32(model->embedding_grad);
    const auto row_size = [&](int64_t id) {
      double sum = 0;
      for (int64_t i = 0; i < model->config.hidden_size; ++i) {
        sum += std::fabs(static_cast<double>(grad[id * model->config.hidden_size + i]));
      }
      return sum;
    };
    for (int64_t id = 0; id < 12; ++id) CHECK(row_size(id) == 0);
    for (int64_t id = 24; id < 37; ++id) CHECK(row_size(id) == 0);
    CHECK(row_size(12) > 0);
  }
}

TEST_CASE("edges: without a trained token loss and gradients are exactly zero",
          "[train][edges][families]") {
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = family_model(family);
    add_rough_lora(*model);
    zero(*model);
    Batch batch;
    batch.clear();
    add_document(batch, 11, 0, 37, false);
    REQUIRE(batch.supervised() == 0);
    CHECK(run(*model, batch, 1).loss == 0);
    for (const Parameter& parameter : model->trained) {
      CHECK(parameter.grad.abs().max().item<float>() == 0);
    }
    // As one of two micro-batches it changes nothing.
    const Batch other = test::tiny_batch(37, {12, 5}, 4);
    run(*model, other, 0.2);
    const auto alone = family_model(family);
    add_rough_lora(*alone);
    zero(*alone);
    run(*alone, other, 0.2);
    for (size_t i = 0; i < model->trained.size(); ++i) {
      CHECK(same_bits(model->trained[i].grad, alone->trained[i].grad));
    }
  }
}

TEST_CASE("edges: ranks that are odd or above the layer's width give autograd's gradients",
          "[train][edges]") {
  const int64_t rank = GENERATE(1, 13, 45);  // the hidden size is 32
  const auto model = family_model(test::tiny_family("phi3"));
  add_rough_lora(*model, rank);
  zero(*model);
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  run(*model, batch, 0.1);
  const auto expected = test::reference(*model, batch, 0.1, at::kFloat);
  for (size_t i = 0; i < model->trained.size(); ++i) {
    CAPTURE(model->trained[i].name);
    const at::Tensor& b = expected.gradients[i].second;
    CHECK(((model->trained[i].grad - b).norm() / b.norm()).item<float>() <= 1e-5F);
  }
}

TEST_CASE("edges: in the first step, with B = 0, only B has a gradient", "[train][edges]") {
  const auto model = family_model(test::tiny_family("gemma3"));
  add_lora(*model,
           {.rank = 4, .alpha = 8, .dropout = 0, .rslora = false, .targets = {"all-linear"}}, 5);
  zero(*model);
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  run(*model, batch, 0.1);
  const auto expected = test::reference(*model, batch, 0.1, at::kFloat);
  for (size_t i = 0; i < model->trained.size(); ++i) {
    const Parameter& parameter = model->trained[i];
    CAPTURE(parameter.name);
    const auto size = parameter.grad.norm().item<float>();
    if (parameter.name.find("lora_A") != std::string::npos) {
      CHECK(size == 0);
      continue;
    }
    CHECK(size > 0);
    const at::Tensor& b = expected.gradients[i].second;
    CHECK(((parameter.grad - b).norm() / b.norm()).item<float>() <= 1e-5F);
  }
}

TEST_CASE("edges: a NaN in x, W, B or an infinite loss skips the step and changes nothing",
          "[train][edges]") {
  enum class Place { kX, kW, kPackedW, kB, kRouter, kLoss };
  const Place place =
      GENERATE(Place::kX, Place::kW, Place::kPackedW, Place::kB, Place::kRouter, Place::kLoss);
  const test::TempDir dir;
  const std::string made = test::write_family_config(dir.path(), test::tiny_family("mixtral"));
  save_model(*test::make_rough_model(made, 7), made, dir.file("base"));
  const auto model =
      load_model(dir.file("base"), place == Place::kPackedW ? Precision::kNf4 : Precision::kFull);
  add_rough_lora(*model);
  AdamW optimizer(model->trained);
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  optimizer.zero_gradients();
  const double loss = run(*model, batch, 0.1).loss;
  REQUIRE_FALSE(optimizer.step({}, 0.01, loss).skipped);  // moments that are not zero

  Layer& layer = model->layers[1];
  double claimed = 0;
  switch (place) {
    case Place::kX:
      f32(model->embedding)[batch.ids[3] * model->config.hidden_size] = NAN;
      break;
    case Place::kW:
      f32(layer.o.base.dense)[5] = NAN;
      break;
    case Place::kPackedW:
      f32(layer.o.base.nested_absmax)[0] = NAN;
      break;
    case Place::kB:
      f32(layer.qkv[1].lora.b)[2] = NAN;
      break;
    case Place::kRouter:
      f32(layer.router->base.dense)[0] = NAN;
      break;
    case Place::kLoss:
      claimed = INFINITY;
      break;
  }
  optimizer.zero_gradients();
  const double bad = run(*model, batch, 0.1).loss + claimed;
  std::vector<at::Tensor> before;
  const auto state = [&] {
    std::vector<at::Tensor> all;
    for (const Parameter& parameter : model->trained) all.push_back(parameter.value.clone());
    for (const AdamW::State& one : optimizer.state()) all.push_back(one.tensor.clone());
    return all;
  };
  before = state();
  const StepResult result = optimizer.step({}, 0.01, bad);
  CHECK(result.skipped);
  CHECK(result.not_finite == "the loss");
  // The gradients tell on their own as well, where they can.
  if (place != Place::kLoss) {
    CHECK(optimizer.step({}, 0.01, 1.0).skipped);
  }
  CHECK(optimizer.step_count() == 1);
  const std::vector<at::Tensor> after = state();
  for (size_t i = 0; i < before.size(); ++i) CHECK(same_bits(before[i], after[i]));
}

TEST_CASE("edges: the cache gives the whole text's logits, in every family",
          "[train][edges][families]") {
  const Batch whole = test::tiny_batch(37, {20}, 5);
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = family_model(family);
    Decoder decoder(*model, test::poisoned(*model, 20, Keep::kNothing));
    KvCache cache(model->config, 20);
    const int64_t vocab = model->config.vocab_size, hidden = model->config.hidden_size;
    const float weights[1] = {0.0F};
    for (size_t length = 5; length <= 20; ++length) {
      Batch text;
      text.clear();
      text.add(std::span(whole.ids).first(length), std::vector<uint8_t>(length), weights, 0);
      std::vector<float> expected(static_cast<size_t>(vocab)), got(expected.size());
      decoder.head_logits(decoder.forward(text, 0) + (static_cast<int64_t>(length) - 1) * hidden, 1,
                          expected.data());
      const float* row = nullptr;
      if (cache.serves(model->config, static_cast<int64_t>(length))) {
        Batch next;
        next.set_single(whole.ids[length - 1], static_cast<int32_t>(length) - 1);
        row = decoder.forward(next, 0, &cache);
      } else {
        cache.clear();
        row = decoder.forward(text, 0, &cache) + (static_cast<int64_t>(length) - 1) * hidden;
      }
      decoder.head_logits(row, 1, got.data());
      for (size_t v = 0; v < got.size(); ++v) {
        REQUIRE(got[v] == Approx(expected[v]).margin(1e-5));
      }
    }
  }
}
