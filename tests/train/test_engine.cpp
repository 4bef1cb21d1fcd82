#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/safetensors.h"
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

std::unique_ptr<Model> tiny_model(bool tied = false) {
  const test::TempDir dir;
  return make_model(test::write_tiny_config(dir.path(), tied), 7);
}

std::vector<float> all_logits(Model& model, const Batch& batch) {
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kNothing));
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model.config.vocab_size));
  decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
  return logits;
}

}  // namespace

TEST_CASE("engine: logits equal the oracle's", "[train][engine]") {
  const auto model = tiny_model(GENERATE(false, true));
  const Batch batch = test::tiny_batch(37, {9, 1, 17}, 3);
  const std::vector<float> got = all_logits(*model, batch);
  const at::Tensor expected = test::reference(*model, batch, 1, at::kDouble).logits;
  const at::Tensor difference =
      at::from_blob(const_cast<float*>(got.data()), expected.sizes()).to(at::kDouble) - expected;
  CHECK(difference.abs().max().item<double>() <= 2e-5);
}

TEST_CASE("engine: a packed document's logits equal its own to the bit", "[train][engine]") {
  const auto model = tiny_model();
  const Batch packed = test::tiny_batch(37, {9, 21, 17}, 3);
  const std::vector<float> all = all_logits(*model, packed);
  const auto vocab = static_cast<size_t>(model->config.vocab_size);
  for (size_t d = 0; d < 3; ++d) {
    const auto begin = static_cast<size_t>(packed.cu_seqlens[d]);
    const auto end = static_cast<size_t>(packed.cu_seqlens[d + 1]);
    Batch one;
    one.clear();
    const std::vector<uint8_t> loss(end - begin, 0);
    const float weights[1] = {0.0F};
    one.add(std::span(packed.ids).subspan(begin, end - begin), loss, weights, 0);
    const std::vector<float> alone = all_logits(*model, one);
    CHECK(std::memcmp(alone.data(), all.data() + begin * vocab, alone.size() * 4) == 0);
  }
}

TEST_CASE("engine: the cache gives the same logits as the whole text", "[train][engine]") {
  const auto model = tiny_model();
  const Batch whole = test::tiny_batch(37, {12}, 5);
  const std::vector<float> expected = all_logits(*model, whole);
  Decoder decoder(*model, test::poisoned(*model, 12, Keep::kNothing));
  KvCache cache(model->config, 12);
  Batch prompt;
  prompt.clear();
  const std::vector<uint8_t> loss(5, 0);
  const float weights[1] = {0.0F};
  prompt.add(std::span(whole.ids).first(5), loss, weights, 0);
  decoder.forward(prompt, 0, &cache);
  std::vector<float> logits(static_cast<size_t>(model->config.vocab_size));
  for (int32_t position = 5; position < 12; ++position) {
    Batch next;
    next.set_single(whole.ids[static_cast<size_t>(position)], position);
    decoder.head_logits(decoder.forward(next, 0, &cache), 1, logits.data());
    const float* row = expected.data() + static_cast<size_t>(position) * logits.size();
    for (size_t v = 0; v < logits.size(); ++v) {
      CHECK(logits[v] == Approx(row[v]).margin(2e-6));
    }
  }
}

TEST_CASE("engine: a cache takes no more tokens than it has room for", "[train][engine]") {
  const auto model = tiny_model();
  Decoder decoder(*model, test::poisoned(*model, 12, Keep::kNothing));
  KvCache cache(model->config, 5);
  CHECK_THROWS_WITH(decoder.forward(test::tiny_batch(37, {6}, 5), 0, &cache),
                    Catch::Contains("a cache of 5 positions"));
  decoder.forward(test::tiny_batch(37, {5}, 5), 0, &cache);
  Batch next;
  next.set_single(1, 5);
  CHECK_THROWS_WITH(decoder.forward(next, 0, &cache), Catch::Contains("a cache of 5 positions"));
  // A second text in the same cache begins at place 0 again.
  cache.clear();
  decoder.forward(test::tiny_batch(37, {4}, 5), 0, &cache);
  CHECK(cache.positions() == 4);
}

TEST_CASE("engine: a base of which only some linears are in 4 bits runs and trains adapters only",
          "[train][engine]") {
  const test::TempDir dir;
  const std::string made = test::write_tiny_config(dir.path(), true);
  save_model(*make_model(made, 7), made, dir.file("base"));
  const auto mixed = load_model(dir.file("base"), Precision::kNf4);
  const auto dense = load_model(dir.file("base"), Precision::kFull);
  CHECK_FALSE(dense->quantized());
  mixed->layers[0].qkv[0].base = dense->layers[0].qkv[0].base;
  CHECK(mixed->quantized());
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  // The same weights, decoded beforehand.
  const std::vector<Linear*> stored = mixed->linears(), decoded = dense->linears();
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i]->base.quantized()) {
      const graft_nf4_weight packed = stored[i]->base.nf4();
      check(graft_nf4_decode(&packed, f32(decoded[i]->base.dense), GRAFT_CPU, nullptr));
    }
  }
  CHECK(all_logits(*mixed, batch) == all_logits(*dense, batch));
  CHECK_THROWS_WITH(train_everything(*mixed), Catch::Contains("stored in 4 bits"));
}

TEST_CASE("engine: an adapter whose B is zero changes nothing, to the bit", "[train][engine]") {
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const auto plain = tiny_model();
  const auto adapted = tiny_model();
  add_lora(*adapted, {.rank = 4, .alpha = 8, .dropout = 0.1, .rslora = true, .targets = {"q_proj"}},
           1);
  const std::vector<float> a = all_logits(*plain, batch);
  const std::vector<float> b = all_logits(*adapted, batch);
  CHECK(std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

TEST_CASE("engine: dropout changes training and is the same for the same token",
          "[train][engine]") {
  const auto model = tiny_model();
  add_lora(*model,
           {.rank = 4, .alpha = 8, .dropout = 0.5, .rslora = false, .targets = {"all-linear"}}, 1);
  for (Parameter& parameter : model->trained) {
    parameter.value.fill_(0.05F);
  }
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  Decoder decoder(*model, test::poisoned(*model, batch.tokens(), Keep::kForBackward));
  const auto loss_with = [&](uint64_t seed) {
    return decoder.head_loss(batch, decoder.forward(batch, seed), 1, nullptr, nullptr).loss_sum;
  };
  CHECK(loss_with(3) == loss_with(3));
  CHECK(loss_with(3) != loss_with(5));
  CHECK(loss_with(0) != loss_with(3));
}

TEST_CASE("engine: a token outside the vocabulary is an error that names it", "[train][engine]") {
  const auto model = tiny_model();
  Batch batch;
  batch.set_single(37, 0);
  Decoder decoder(*model, test::poisoned(*model, 4, Keep::kNothing));
  CHECK_THROWS_WITH(decoder.forward(batch, 0), Catch::Contains("token id 37 is outside"));
}

TEST_CASE("engine: stories260K's logits equal Hugging Face's within 2e-5", "[train][engine]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) {
    return;
  }
  const std::string directory = shared + "/data/models/stories260K";
  const auto model = load_model(directory, Precision::kFull);
  const SafetensorsFile golden(directory + "/golden.safetensors");
  const TensorInfo& ids_info = golden.at("input_ids");
  const TensorInfo& logits_info = golden.at("logits");
  const int64_t rows = ids_info.shape[0];
  const int64_t length = ids_info.shape[1];
  std::vector<int64_t> ids(static_cast<size_t>(rows * length));
  std::memcpy(ids.data(), golden.bytes(ids_info).data(), golden.bytes(ids_info).size());
  std::vector<float> expected(static_cast<size_t>(logits_info.count()));
  convert_to_f32(logits_info.dtype, golden.bytes(logits_info), expected.data(),
                 logits_info.count());
  Batch batch;
  batch.clear();
  const std::vector<uint8_t> loss(static_cast<size_t>(length), 0);
  const float weights[1] = {0.0F};
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<int32_t> one(ids.begin() + row * length, ids.begin() + (row + 1) * length);
    batch.add(one, loss, weights, 0);
  }
  const std::vector<float> got = all_logits(*model, batch);
  REQUIRE(got.size() == expected.size());
  float largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::fabs(got[i] - expected[i]));
  }
  INFO("largest difference " << largest);
  CHECK(largest <= 2e-5F);
}

TEST_CASE("optimizer: the schedules follow their formulas", "[train][optimizer]") {
  OptimizerSettings settings;
  settings.learning_rate = 1;
  settings.warmup_steps = 10;
  settings.min_lr_ratio = 0.1;
  CHECK(learning_rate_at(settings, 0, 110) == Approx(0.1));
  CHECK(learning_rate_at(settings, 9, 110) == Approx(1));
  CHECK(learning_rate_at(settings, 10, 110) == Approx(1));
  CHECK(learning_rate_at(settings, 60, 110) == Approx(0.1 + 0.9 * 0.5));  // cos(pi / 2) = 0
  // A quarter of the way: (1 + cos(pi / 4)) / 2 = 0.853553.
  CHECK(learning_rate_at(settings, 35, 110) == Approx(0.1 + 0.9 * 0.853553).epsilon(1e-6));
  CHECK(learning_rate_at(settings, 110, 110) == Approx(0.1));
  CHECK(learning_rate_at(settings, 5000, 110) == Approx(0.1));
  settings.schedule = Schedule::kLinear;
  CHECK(learning_rate_at(settings, 60, 110) == Approx(0.55));
  CHECK(learning_rate_at(settings, 35, 110) == Approx(0.1 + 0.9 * 0.75));  // unlike the cosine
  settings.schedule = Schedule::kConstant;
  CHECK(learning_rate_at(settings, 100, 110) == Approx(1));
}

TEST_CASE("batch: a prediction is trained on when the token after it is, with its weight",
          "[train][batch]") {
  const float weights[3] = {0.0F, 1.0F, 0.5F};
  Batch batch;
  batch.clear();
  const int32_t first[4] = {10, 11, 12, 13};
  const uint8_t first_loss[4] = {1, 0, 1, 2};  // the first token is predicted by nothing
  batch.add(first, first_loss, weights, 100);
  const int32_t second[2] = {20, 21};
  const uint8_t second_loss[2] = {1, 1};
  batch.add(second, second_loss, weights, 200);
  CHECK(batch.ids == (std::vector<int32_t>{10, 11, 12, 13, 20, 21}));
  CHECK(batch.positions == (std::vector<int32_t>{0, 1, 2, 3, 0, 1}));
  CHECK(batch.cu_seqlens == (std::vector<int32_t>{0, 4, 6}));
  CHECK(batch.token_index == (std::vector<int64_t>{100, 101, 102, 103, 200, 201}));
  // 12 at place 1, 13 at place 2, 21 at place 4; never 20, which begins a document.
  CHECK(batch.predicting == (std::vector<int32_t>{1, 2, 4}));
  CHECK(batch.labels == (std::vector<int32_t>{12, 13, 21}));
  CHECK(batch.weights == (std::vector<float>{1.0F, 0.5F, 1.0F}));
  CHECK(batch.weight_sum == 2.5);
}

TEST_CASE("batch: a token's index depends on its row's place in the step only", "[train][batch]") {
  const test::TempDir dir;
  const Json input = Json::object({{"name", "a.jsonl"}, {"sha256", "00"}, {"bytes", 1}});
  {
    data::TokenStoreWriter writer(
        dir.file("s.h5"), Json::object({{"tokenizer", "t"}, {"inputs", Json::array({input})}}));
    for (int32_t document = 0; document < 3; ++document) {
      const int32_t ids[3] = {document * 10, document * 10 + 1, document * 10 + 2};
      const uint8_t loss[3] = {1, 1, 0};
      const uint8_t role[3] = {0, 0, 0};
      writer.add(ids, loss, role, {.file = 0, .row = document});
    }
    writer.commit();
  }
  const data::TokenStore store = data::TokenStore::open(dir.file("s.h5"));
  const std::vector<data::PackedRow> rows = {{{2, 0}, 6}, {{1}, 3}};
  Batch whole;
  fill_batch(store, rows, 4, 8, whole);
  // Slots 4 and 5 of 8 tokens begin at 32 and 40.
  CHECK(whole.ids == (std::vector<int32_t>{20, 21, 22, 0, 1, 2, 10, 11, 12}));
  CHECK(whole.token_index == (std::vector<int64_t>{32, 33, 34, 35, 36, 37, 40, 41, 42}));
  Batch last;
  fill_batch(store, std::span(rows).subspan(1), 5, 8, last);
  CHECK(last.token_index == (std::vector<int64_t>{40, 41, 42}));
  // Two of three tokens are trained on, but the first of a document is predicted by nothing.
  CHECK(document_weight(store, 0) == 1.0);
  CHECK(whole.weight_sum == 3.0);
}

TEST_CASE("optimizer: eight steps equal AdamW written in ATen, with decay and clipping",
          "[train][optimizer]") {
  const auto model = tiny_model(true);
  train_everything(*model);
  AdamW optimizer(model->trained);
  OptimizerSettings settings;
  settings.beta1 = 0.8;
  settings.beta2 = 0.95;
  settings.epsilon = 1e-6;
  settings.weight_decay = 0.3;
  settings.max_grad_norm = 2.0;
  std::vector<at::Tensor> values, m, v;
  for (const Parameter& parameter : model->trained) {
    values.push_back(parameter.value.to(at::kDouble, false, true));
    m.push_back(at::zeros_like(values.back()));
    v.push_back(at::zeros_like(values.back()));
  }
  bool clipped = false;
  bool whole = false;
  for (int64_t step = 1; step <= 8; ++step) {
    // Gradient norms from below to above the limit.
    const double size = 0.002 * static_cast<double>(step);
    double squares = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const Philox random(static_cast<uint64_t>(step), i);
      at::Tensor& grad = model->trained[i].grad;
      for (int64_t at = 0; at < grad.numel(); ++at) {
        f32(grad)[at] = static_cast<float>(size * random.normal(static_cast<uint64_t>(at)));
      }
      squares += grad.to(at::kDouble).pow(2).sum().item<double>();
    }
    const double norm = std::sqrt(squares);
    const double scale = norm > 2.0 ? 2.0 / norm : 1.0;
    (norm > 2.0 ? clipped : whole) = true;
    const double lr = 0.01 / static_cast<double>(step);
    const StepResult result = optimizer.step(settings, lr, 1.0);
    CHECK(result.grad_norm == Approx(norm).epsilon(1e-9));
    for (size_t i = 0; i < values.size(); ++i) {
      CAPTURE(step, model->trained[i].name);
      const at::Tensor grad = model->trained[i].grad.to(at::kDouble) * scale;
      // Matrices decay, norms do not.
      const double decay = model->trained[i].value.dim() > 1 ? 0.3 : 0.0;
      values[i].mul_(1 - lr * decay);
      m[i].mul_(0.8).add_(grad, 1 - 0.8);
      v[i].mul_(0.95).add_(grad * grad, 1 - 0.95);
      const at::Tensor root = (v[i] / (1 - std::pow(0.95, step))).sqrt() + 1e-6;
      values[i].sub_(lr * (m[i] / (1 - std::pow(0.8, step))) / root);
      // Eight float32 updates of values below 1.2: at most 8 roundings of 2^-24 and those of the
      // update itself, which is at most 0.01.
      const double error =
          (model->trained[i].value.to(at::kDouble) - values[i]).abs().max().item<double>();
      CHECK(error <= 1e-6);
      const auto distance = [](const at::Tensor& got, const at::Tensor& expected) {
        return ((got.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
      };
      // Checkpoints store them under these names.
      CHECK(distance(optimizer.state()[2 * i].tensor, m[i]) <= 1e-6);
      CHECK(distance(optimizer.state()[2 * i + 1].tensor, v[i]) <= 1e-6);
    }
  }
  CHECK(clipped);
  CHECK(whole);
  CHECK(optimizer.step_count() == 8);
}

TEST_CASE("optimizer: zeroing leaves no gradient behind", "[train][optimizer]") {
  const auto model = tiny_model();
  train_everything(*model);
  AdamW optimizer(model->trained);
  for (Parameter& parameter : model->trained) {
    parameter.grad.fill_(3.0F);
  }
  optimizer.zero_gradients();
  for (const Parameter& parameter : model->trained) {
    CAPTURE(parameter.name);
    CHECK(parameter.grad.abs().max().item<float>() == 0.0F);
  }
}

TEST_CASE("optimizer: a gradient that is not finite changes nothing", "[train][optimizer]") {
  const auto model = tiny_model();
  add_lora(*model, {.rank = 2, .alpha = 2, .dropout = 0, .rslora = false, .targets = {"q_proj"}},
           1);
  AdamW optimizer(model->trained);
  optimizer.zero_gradients();
  f32(model->trained[1].grad)[3] = NAN;
  const at::Tensor before = model->trained[0].value.clone();
  const StepResult result = optimizer.step({}, 0.1, 1.0);
  CHECK(result.skipped);
  CHECK(result.not_finite == "the gradient of " + model->trained[1].name);
  CHECK(optimizer.step_count() == 0);
  CHECK(at::equal(before, model->trained[0].value));
}

TEST_CASE("lora: a target that matches nothing is refused with the nearest name", "[train][lora]") {
  const auto model = tiny_model();
  CHECK_THROWS_WITH(
      add_lora(*model,
               {.rank = 2, .alpha = 2, .dropout = 0, .rslora = false, .targets = {"q_porj"}}, 1),
      Catch::Contains("did you mean \"q_proj\"?"));
}

TEST_CASE("lora: targets are names of the model's own linears", "[train][lora][families]") {
  const auto adapted = [](const char* family, const std::string& target) {
    const test::TempDir dir;
    const auto model =
        make_model(test::write_family_config(dir.path(), test::tiny_family(family)), 7);
    add_lora(*model, {.rank = 2, .alpha = 2, .dropout = 0, .rslora = false, .targets = {target}},
             1);
    std::vector<std::string> names;
    for (const Linear* linear : model->layers[0].linears()) {
      if (linear->lora.rank > 0) names.push_back(linear->name.substr(15));
    }
    return names;
  };
  using Names = std::vector<std::string>;
  CHECK(adapted("llama", "peft-default") == Names{"self_attn.q_proj", "self_attn.v_proj"});
  CHECK(adapted("llama", "all-linear").size() == 7);
  CHECK(adapted("phi3", "all-linear") ==
        Names{"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"});
  CHECK(adapted("mixtral", "w1").size() == 6);
  CHECK(adapted("mixtral", "gate") == Names{"block_sparse_moe.gate"});
  CHECK(adapted("mixtral", "all-linear").size() == 4 + 1 + 6 * 3);
  CHECK_THROWS_WITH(adapted("phi3", "peft-default"), Catch::Contains("PEFT has no default"));
  CHECK_THROWS_WITH(adapted("phi3", "q_proj"), Catch::Contains("known: all-linear, peft-default"));
  CHECK_THROWS_WITH(adapted("qwen2", "w1"), Catch::Contains("known: all-linear, peft-default"));
}

TEST_CASE("optimizer: large tensors may have 8-bit moments, small ones keep float32",
          "[train][optimizer]") {
  constexpr int64_t kLarge = 4096 + 300, kSmall = 4095;
  const auto parameters = [] {
    std::vector<Parameter> made;
    for (const int64_t count : {kLarge, kSmall}) {
      made.push_back({"p" + std::to_string(count), zeros_f32({count}), zeros_f32({count}), true});
    }
    return made;
  };
  std::vector<Parameter> exact = parameters(), coded = parameters();
  AdamW in_32(exact), in_8(coded, MomentType::k8Bit);
  OptimizerSettings settings;
  settings.max_grad_norm = 0;
  for (uint64_t step = 1; step <= 10; ++step) {
    for (std::vector<Parameter>* const all : {&exact, &coded}) {
      for (const Parameter& parameter : *all) {
        const Philox random(step, xxh3_64(parameter.name));
        for (int64_t i = 0; i < parameter.grad.numel(); ++i) {
          f32(parameter.grad)[i] = static_cast<float>(random.normal(static_cast<uint64_t>(i)));
        }
      }
    }
    in_32.step(settings, 1e-3, 1.0);
    in_8.step(settings, 1e-3, 1.0);
  }
  const auto off = [&](size_t i) {
    const at::Tensor a = exact[i].value.to(at::kDouble), b = coded[i].value.to(at::kDouble);
    return ((a - b).norm() / a.norm()).item<double>();
  };
  // The bound of one update for gradients of one size (tests/kernels/test_adamw8.cpp).
  CHECK(off(0) <= 0.06);
  CHECK(off(0) > 0);
  CHECK(off(1) == 0);
  REQUIRE(in_8.state().size() == 6);
  CHECK(in_8.state()[0].name == "m8.p4396");
  CHECK(in_8.state()[0].tensor.scalar_type() == at::kByte);
  CHECK(in_8.state()[2].tensor.numel() == 18);  // blocks of 256
  CHECK(in_8.state()[4].name == "m.p4095");
  CHECK(moment_bytes(MomentType::k8Bit, kLarge) == 2 * kLarge + 2 * 4 * 18);
  CHECK(moment_bytes(MomentType::k8Bit, kSmall) == 2 * 4 * kSmall);
  CHECK(moment_bytes(MomentType::kFloat32, kLarge) == 2 * 4 * kLarge);
}
