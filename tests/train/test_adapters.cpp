// Kinds of adapters: DoRA, PiSSA, LoftQ, modules trained whole, LoRA+.
#include <cmath>
#include <cstring>
#include <string>

#include <ATen/ATen.h>

#include "adapters/merge.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/dora.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

LoraSettings all_linears() {
  LoraSettings settings;
  settings.rank = 3;
  settings.alpha = 7;
  settings.targets = {"all-linear"};
  return settings;
}

// Values that differ from those of a fresh adapter, so that every product matters.
void roughen(Model& model) {
  for (const Parameter& parameter : model.trained) {
    const Philox random(11, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      f32(parameter.value)[i] += 0.3F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  refresh_gains(model);
}

// A model's directory, and models of it.
class Base {
 public:
  explicit Base(const char* family) {
    const std::string made = test::write_family_config(dir_.path(), test::tiny_family(family));
    make(made);
  }
  explicit Base(bool tied) { make(test::write_tiny_config(dir_.path(), tied)); }
  std::unique_ptr<Model> load(Precision precision = Precision::kFull) const {
    return load_model(path(), precision);
  }
  std::string path() const { return dir_.file("base"); }
  std::string file(const std::string& name) const { return dir_.file(name); }

 private:
  void make(const std::string& config) {
    save_model(*test::make_rough_model(config, 7), config, path());
  }
  test::TempDir dir_;
};

std::vector<float> logits_of(Model& model, const Batch& batch) {
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kNothing));
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model.config.vocab_size));
  decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
  return logits;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

double size_of(const at::Tensor& x) {
  return x.to(at::kDouble).norm().item<double>();
}

void check_gradients(Model& model, uint64_t dropout_seed) {
  const Batch batch = test::tiny_batch(37, {9, 1, 17, 2}, 3);
  const double scale = 1 / batch.weight_sum;
  Decoder decoder(model, test::poisoned(model, batch.tokens(), Keep::kForBackward));
  for (const Parameter& parameter : model.trained) {
    std::memset(parameter.grad.data_ptr(), 0, parameter.grad.nbytes());
  }
  const float* residual = decoder.forward(batch, dropout_seed);
  const HeadResult head =
      decoder.head_loss(batch, residual, scale, decoder.gradient_buffer(), nullptr);
  decoder.backward(batch, decoder.gradient_buffer());
  decoder.finish_gradients();
  const auto expected = test::reference(model, batch, scale, at::kFloat, dropout_seed);
  CHECK(head.loss_sum * scale == Approx(expected.loss).epsilon(1e-6));
  REQUIRE(expected.gradients.size() == model.trained.size());
  for (size_t i = 0; i < model.trained.size(); ++i) {
    CAPTURE(model.trained[i].name);
    const at::Tensor& want = expected.gradients[i].second;
    CHECK(size_of(model.trained[i].grad - want) <= 1e-5 * size_of(want));
  }
}

std::string refusal(const Base& base, const LoraSettings& settings, Precision precision) {
  const auto model = base.load(precision);
  try {
    add_lora(*model, settings, 1, base.path());
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kUsage);
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("dora: every gradient equals autograd, with biases, fused weights and dropout",
          "[train][dora]") {
  const Base base(GENERATE("llama", "phi3", "gemma2", "olmo2"));
  const auto model = base.load();
  LoraSettings settings = all_linears();
  settings.dora = true;
  settings.dropout = 0.25;
  add_lora(*model, settings, 5);
  roughen(*model);
  check_gradients(*model, GENERATE(uint64_t{0}, uint64_t{99}));
}

TEST_CASE("dora: begins as the base, and a norm is that of the sum", "[train][dora]") {
  const Base base("llama");
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const Precision precision = GENERATE(Precision::kFull, Precision::kNf4);
  const auto plain = base.load(precision), model = base.load(precision);
  LoraSettings settings = all_linears();
  settings.dora = true;
  add_lora(*model, settings, 5);
  CHECK(largest_difference(logits_of(*plain, batch), logits_of(*model, batch)) <= 2e-5F);
  roughen(*model);
  const Linear& linear = model->layers[1].o;
  at::Tensor weight = linear.base.dense;
  if (linear.base.quantized()) {
    weight = empty_f32({linear.out, linear.in});
    const graft_nf4_weight packed = linear.base.nf4();
    check(graft_nf4_decode(&packed, f32(weight), GRAFT_CPU, nullptr));
  }
  const Lora& lora = linear.lora;
  const at::Tensor sum =
      weight.to(at::kDouble) +
      static_cast<double>(lora.scale) * lora.b.to(at::kDouble).matmul(lora.a.to(at::kDouble));
  const at::Tensor expected = lora.magnitude.to(at::kDouble) / sum.pow(2).sum(1).sqrt();
  CHECK((lora.gain.to(at::kDouble) / expected - 1).abs().max().item<double>() <= 1e-6);
}

TEST_CASE("saved: head, embeddings and norms are trained, tied and untied", "[train][saved]") {
  const bool tied = GENERATE(false, true);
  const Base base(tied);
  const auto model = base.load();
  LoraSettings settings = all_linears();
  settings.saved = GENERATE(std::vector<std::string>{"lm_head"},
                            std::vector<std::string>{"embed_tokens", "model.norm"},
                            std::vector<std::string>{"embed_tokens", "lm_head", "input_layernorm"});
  add_lora(*model, settings, 5);
  roughen(*model);
  check_gradients(*model, 0);
}

TEST_CASE("saved: the files name what PEFT has to find, and no more", "[train][saved]") {
  const Base base("llama");
  const auto model = base.load();
  LoraSettings settings = all_linears();
  settings.saved = {"norm", "0.input_layernorm", "post_attention_layernorm"};
  add_lora(*model, settings, 5);
  save_adapter(*model, settings, "base", base.file("adapter"));
  const Json config = read_json_file(base.file("adapter/adapter_config.json"));
  // PEFT takes any end of a name: "norm" alone would find every layer's norms.
  CHECK(dump_json(config.at("modules_to_save")) ==
        R"(["model.layers.0.input_layernorm","model.norm","post_attention_layernorm"])");
}

TEST_CASE("saved: names that do not fit are refused", "[train][saved]") {
  const Base base("llama");
  LoraSettings settings = all_linears();
  settings.saved = {"embed_token"};
  CHECK_THAT(
      refusal(base, settings, Precision::kFull),
      Catch::Contains("did you mean \"embed_tokens\"") && Catch::Contains("lora_modules_to_save"));
  settings.saved = {"q_proj"};
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("has an adapter"));
  settings.targets = {"v_proj"};
  CHECK_THAT(refusal(base, settings, Precision::kNf4), Catch::Contains("stored in 4 bits"));
}

TEST_CASE("pissa: A and B are the largest singular values, and the model stays the same",
          "[train][pissa]") {
  const Base base("llama");
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const auto plain = base.load(), model = base.load();
  LoraSettings settings = all_linears();
  settings.init = GENERATE("pissa", "pissa_niter_16");
  add_lora(*model, settings, 5, base.path());
  CHECK(largest_difference(logits_of(*plain, batch), logits_of(*model, batch)) <= 2e-5F);
  const std::vector<Linear*> before = plain->linears(), after = model->linears();
  for (size_t i = 0; i < after.size(); ++i) {
    const at::Tensor w = before[i]->base.dense.to(at::kDouble);
    const Lora& lora = after[i]->lora;
    const at::Tensor pair =
        static_cast<double>(lora.scale) * lora.b.to(at::kDouble).matmul(lora.a.to(at::kDouble));
    // Eckart and Young: no matrix of this rank is nearer than what the other singular values say.
    const at::Tensor values = std::get<1>(at::linalg_svd(w));
    const double rest =
        values.narrow(0, lora.rank, values.size(0) - lora.rank).norm().item<double>();
    CHECK(size_of(w - pair) == Approx(rest).epsilon(1e-4));
    CHECK(size_of(after[i]->base.dense.to(at::kDouble) + pair - w) <= 1e-6 * size_of(w));
    // A and B share the singular values evenly.
    CHECK(size_of(lora.a) == Approx(size_of(lora.b)).epsilon(1e-4));
  }
}

TEST_CASE("loftq: the pair is nearest to what quantization took", "[train][loftq]") {
  const Base base("phi3");
  const auto full = base.load(), model = base.load(Precision::kNf4);
  LoraSettings settings = all_linears();
  settings.init = "loftq";
  settings.rslora = true;
  add_lora(*model, settings, 5, base.path());
  const std::vector<Linear*> before = full->linears(), after = model->linears();
  for (size_t i = 0; i < after.size(); ++i) {
    const graft_nf4_weight packed = after[i]->base.nf4();
    at::Tensor decoded = empty_f32({after[i]->out, after[i]->in});
    check(graft_nf4_decode(&packed, f32(decoded), GRAFT_CPU, nullptr));
    const at::Tensor lost = (before[i]->base.dense - decoded).to(at::kDouble);
    const Lora& lora = after[i]->lora;
    const at::Tensor pair =
        static_cast<double>(lora.scale) * lora.b.to(at::kDouble).matmul(lora.a.to(at::kDouble));
    const at::Tensor values = std::get<1>(at::linalg_svd(lost));
    const double rest =
        values.narrow(0, lora.rank, values.size(0) - lora.rank).norm().item<double>();
    CHECK(size_of(lost - pair) == Approx(rest).epsilon(1e-4));
    CHECK(rest < size_of(lost));
  }
}

TEST_CASE("adapters: combinations that have no meaning are refused", "[train][adapters]") {
  const Base base("llama"), experts("mixtral");
  LoraSettings settings = all_linears();
  settings.init = "pisa";
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("did you mean \"pissa\""));
  settings.init = "pissa_niter_0";
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("1..64"));
  settings.init = "pissa";
  CHECK_THAT(refusal(base, settings, Precision::kNf4), Catch::Contains("stored in 4 bits"));
  settings.dora = true;
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("use one of the two"));
  settings.dora = false;
  settings.rank = 33;  // of 32 singular values
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("at most 32"));
  settings = all_linears();
  settings.init = "loftq";
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("in full precision"));
  settings = all_linears();
  settings.dora = true;
  CHECK_THAT(refusal(experts, settings, Precision::kFull), Catch::Contains("experts"));
}

TEST_CASE("adapters: every kind goes through its files and merges to the same logits",
          "[train][adapters]") {
  struct Kind {
    const char* name;
    const char* family;  // "": the tiny Llama
    bool tied;
    LoraSettings settings;
  };
  LoraSettings dora = all_linears(), saved = all_linears(), pissa = all_linears(), both;
  dora.dora = true;
  saved.saved = {"embed_tokens", "lm_head", "post_attention_layernorm"};
  pissa.init = "pissa";
  pissa.rslora = true;
  pissa.rank_pattern = {{"o_proj", 2}};
  both = dora;
  both.saved = {"lm_head"};
  const Kind kind =
      GENERATE_COPY(Kind{"DoRA", "llama", false, dora}, Kind{"DoRA, fused", "phi3", false, dora},
                    Kind{"saved", "", false, saved}, Kind{"saved, tied", "", true, saved},
                    Kind{"PiSSA", "", false, pissa}, Kind{"DoRA and head", "qwen2", true, both});
  CAPTURE(kind.name);
  const Base base = *kind.family != '\0' ? Base(kind.family) : Base(kind.tied);
  const auto model = base.load();
  add_lora(*model, kind.settings, 5, base.path());
  roughen(*model);
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const std::vector<float> trained = logits_of(*model, batch);
  CHECK(largest_difference(trained, logits_of(*base.load(), batch)) > 0.01F);
  save_adapter(*model, kind.settings, "base", base.file("adapter"));

  const auto reloaded = base.load();
  load_adapter(*reloaded, base.file("adapter"));
  const std::vector<float> again = logits_of(*reloaded, batch);
  if (kind.settings.init == "default") {
    CHECK(again == trained);
  } else {
    CHECK(largest_difference(again, trained) <= 5e-5F);
  }
  const adapters::MergeReport report = adapters::merge_adapter(
      {base.path(), base.file("adapter"), base.file("merged"), adapters::MergeBase::kAuto});
  CHECK(report.saved_tensors == static_cast<int64_t>(kind.settings.saved.empty() ? 0
                                                     : kind.settings.dora        ? 1
                                                     : kind.tied                 ? 4
                                                                                 : 5));
  const auto merged = load_model(base.file("merged"), Precision::kFull);
  CHECK(largest_difference(logits_of(*merged, batch), trained) <= 1e-4F);
}

TEST_CASE("adapters: a tied head that an adapter changes alone is written apart",
          "[train][adapters][saved]") {
  const Base base(true);
  const auto model = base.load();
  LoraSettings settings = all_linears();
  settings.saved = {"lm_head"};
  add_lora(*model, settings, 5);
  roughen(*model);
  save_adapter(*model, settings, "base", base.file("adapter"));
  // As PEFT writes it when only the head is named: the embeddings stay as they are.
  const adapters::Adapter both = adapters::read_peft(base.file("adapter"));
  REQUIRE(both.saved.size() == 2);
  std::vector<adapters::AdapterTensors> modules;
  for (const adapters::AdapterModule& m : both.modules) {
    modules.push_back({m.name, m.in, m.out, m.rank, m.a.data(), m.b.data(), nullptr});
  }
  adapters::AdapterSpec spec = both.spec;
  spec.modules_to_save = {"lm_head"};
  spec.ensure_weight_tying = false;
  const adapters::SavedTensor& head = both.saved[0];
  REQUIRE(head.name == "lm_head.weight");
  const std::vector<adapters::SavedView> one = {{head.name, head.shape, head.values.data()}};
  adapters::write_peft(base.file("head"), spec, modules, {}, one);

  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const auto untied = base.load();
  load_adapter(*untied, base.file("head"));
  CHECK(largest_difference(logits_of(*untied, batch), logits_of(*model, batch)) > 1e-3F);
  adapters::merge_adapter(
      {base.path(), base.file("head"), base.file("merged"), adapters::MergeBase::kAuto});
  CHECK_FALSE(read_json_file(base.file("merged/config.json")).at("tie_word_embeddings").as_bool());
  const auto merged = load_model(base.file("merged"), Precision::kFull);
  CHECK(largest_difference(logits_of(*merged, batch), logits_of(*untied, batch)) <= 1e-4F);
}

TEST_CASE("lora+: B takes steps of its own size", "[train][adapters]") {
  const Base base(false);
  const auto model = base.load();
  LoraSettings settings = all_linears();
  settings.b_lr_ratio = 16;
  add_lora(*model, settings, 5);
  AdamW optimizer(model->trained);
  optimizer.zero_gradients();
  for (const Parameter& parameter : model->trained) parameter.grad.fill_(0.5);
  OptimizerSettings rates;
  rates.max_grad_norm = 0;
  std::vector<at::Tensor> before;
  for (const Parameter& parameter : model->trained) before.push_back(parameter.value.clone());
  optimizer.step(rates, 1e-3, 1.0);
  for (size_t i = 0; i < before.size(); ++i) {
    // Adam's first step is the learning rate, whatever the gradient.
    const Parameter& parameter = model->trained[i];
    const bool is_b = parameter.name.find("lora_B") != std::string::npos;
    const at::Tensor moved = (before[i] - parameter.value).to(at::kDouble);
    CHECK(moved.min().item<double>() == Approx(is_b ? 16e-3 : 1e-3).epsilon(1e-4));
    CHECK(moved.max().item<double>() == Approx(is_b ? 16e-3 : 1e-3).epsilon(1e-4));
  }
}
