// Kinds of adapters: DoRA, PiSSA, LoftQ, modules trained whole, LoRA+.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <omp.h>

#include <ATen/ATen.h>

#include "adapters/merge.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/quantize.h"
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

template <class Call>
std::string message_of(const Call& call, ExitCode code = ExitCode::kUsage) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "nothing was refused";
}

std::string refusal(const Base& base, const LoraSettings& settings, Precision precision) {
  const auto model = base.load(precision);
  return message_of([&] { add_lora(*model, settings, 1, base.path()); });
}

at::Tensor decoded(const Linear& linear) {
  const graft_nf4_weight packed = linear.base.nf4();
  at::Tensor weight = empty_f32({linear.out, linear.in});
  check(graft_nf4_decode(&packed, f32(weight), GRAFT_CPU, nullptr));
  return weight.to(at::kDouble);
}

// scale * B A in float64.
at::Tensor pair_of(const Linear& linear) {
  const Lora& lora = linear.lora;
  return static_cast<double>(lora.scale) * lora.b.to(at::kDouble).matmul(lora.a.to(at::kDouble));
}

// Eckart and Young: how far the nearest matrix of this rank is.
double distance_to_rank(const at::Tensor& x, int64_t rank) {
  const at::Tensor values = std::get<1>(at::linalg_svd(x));
  return values.narrow(0, rank, values.size(0) - rank).norm().item<double>();
}

// The linear's 4-bit weight is what quantizing `weight` (float64) gives. The engine has summed that
// in float32, an ulp or so away: the scales are as near, and the code of a value, or of one block's
// scale, that lies in the middle between two may be either.
void check_quantized(const Linear& linear, const at::Tensor& weight) {
  Linear expected = linear;
  expected.base = quantize_weight(weight.to(at::kFloat).contiguous(), linear.name);
  const at::Tensor off = (decoded(expected) - decoded(linear)).abs();
  const double ulps = 1e-6 * weight.abs().max().item<double>();
  CHECK(off.gt(ulps).sum().item<int64_t>() <= linear.base.block_size);
}

std::vector<uint64_t> base_digests(const Model& model) {
  std::vector<uint64_t> digests;
  for (const Linear* linear : model.linears()) {
    if (linear->base.quantized()) digests.push_back(adapters::nf4_digest(linear->base.nf4()));
  }
  return digests;
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
  const Lora& lora = linear.lora;
  const at::Tensor weight =
      linear.base.quantized() ? decoded(linear) : linear.base.dense.to(at::kDouble);
  const at::Tensor sum = weight + pair_of(linear);
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
    const at::Tensor pair = pair_of(*after[i]);
    CHECK(size_of(w - pair) == Approx(distance_to_rank(w, lora.rank)).epsilon(1e-4));
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
    const at::Tensor lost = before[i]->base.dense.to(at::kDouble) - decoded(*after[i]);
    const double rest = distance_to_rank(lost, after[i]->lora.rank);
    CHECK(size_of(lost - pair_of(*after[i])) == Approx(rest).epsilon(1e-4));
    CHECK(rest < size_of(lost));
  }
}

TEST_CASE("loftq: each round quantizes what the pair leaves, and fits the pair again",
          "[train][loftq]") {
  const Base base("phi3");
  const auto full = base.load();
  const std::vector<Linear*> original = full->linears();
  LoraSettings settings = all_linears();
  settings.init = "loftq";
  settings.rslora = true;
  std::unique_ptr<Model> before;
  std::vector<double> errors;
  for (settings.loftq_iter = 1; settings.loftq_iter <= 5; ++settings.loftq_iter) {
    auto model = base.load(Precision::kNf4);
    add_lora(*model, settings, 5, base.path());
    CHECK(model->base_changed() == (settings.loftq_iter > 1));
    const std::vector<Linear*> linears = model->linears();
    double error = 0;
    for (size_t i = 0; i < linears.size(); ++i) {
      CAPTURE(settings.loftq_iter, linears[i]->name);
      const at::Tensor w = original[i]->base.dense.to(at::kDouble);
      const at::Tensor lost = w - decoded(*linears[i]);
      const double distance = size_of(lost - pair_of(*linears[i]));
      CHECK(distance == Approx(distance_to_rank(lost, linears[i]->lora.rank)).epsilon(1e-4));
      error += distance * distance;
      const at::Tensor rest = before ? w - pair_of(*before->linears()[i]) : w;
      check_quantized(*linears[i], rest);
    }
    errors.push_back(error);
    before = std::move(model);
  }
  CAPTURE(errors);
  CHECK(std::is_sorted(errors.rbegin(), errors.rend()));
  CHECK(errors.back() < 0.95 * errors.front());
}

TEST_CASE("pissa: on a 4-bit base what is left of a weight is quantized", "[train][pissa]") {
  const Base base("llama");
  const auto full = base.load(), model = base.load(Precision::kNf4);
  const auto plain = base.load(Precision::kNf4), dense = base.load();
  LoraSettings settings = all_linears();
  settings.init = GENERATE("pissa", "pissa_niter_16");
  add_lora(*model, settings, 5, base.path());
  CHECK(model->base_changed());
  const std::vector<Linear*> original = full->linears(), linears = model->linears();
  double nf4 = 0, qpissa = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    CAPTURE(linears[i]->name);
    const at::Tensor w = original[i]->base.dense.to(at::kDouble), pair = pair_of(*linears[i]);
    CHECK(size_of(w - pair) == Approx(distance_to_rank(w, linears[i]->lora.rank)).epsilon(1e-4));
    check_quantized(*linears[i], w - pair);
    const at::Tensor sum = decoded(*linears[i]) + pair;
    nf4 += std::pow(size_of(w - decoded(*plain->linears()[i])), 2);
    qpissa += std::pow(size_of(w - sum), 2);
    dense->linears()[i]->base.dense = sum.to(at::kFloat).contiguous();
  }
  CHECK(qpissa < nf4);  // the paper's reason for it
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  CHECK(largest_difference(logits_of(*dense, batch), logits_of(*model, batch)) <= 2e-5F);
}

TEST_CASE("adapters: a base that was changed in 4 bits is written, found again and merged",
          "[train][adapters][loftq][pissa]") {
  struct Kind {
    const char* family;
    const char* init;
    int64_t rounds;
    bool dora;
    std::vector<std::string> routers;  // they stay in full precision
  };
  const Kind kind = GENERATE(
      Kind{"llama", "pissa", 1, false, {}}, Kind{"phi3", "loftq", 3, false, {}},
      Kind{"qwen2", "pissa", 1, true, {}}, Kind{"mixtral", "loftq", 2, false, {"gate"}},
      Kind{"qwen3_moe", "pissa_niter_4", 1, false, {"layers.0.mlp.gate", "layers.2.mlp.gate"}});
  CAPTURE(kind.family, kind.init);
  const Base base(kind.family);
  LoraSettings settings = all_linears();
  settings.exclude = kind.routers;
  settings.init = kind.init;
  settings.loftq_iter = kind.rounds;
  settings.dora = kind.dora;
  const QuantizedCache cache = {base.file("cache"), 1};
  const auto plain = load_model(base.path(), Precision::kNf4, cache);
  const auto model = load_model(base.path(), Precision::kNf4, cache);  // mapped
  add_lora(*model, settings, 5, base.path());
  CHECK(model->mapped_bytes() < plain->base_bytes());
  // What is kept for other runs is not the run's own.
  CHECK(base_digests(*load_model(base.path(), Precision::kNf4, cache)) == base_digests(*plain));
  CHECK(base_digests(*model) != base_digests(*plain));
  {
    const int before = omp_get_max_threads();
    omp_set_num_threads(before == 1 ? 3 : 1);
    const auto again = base.load(Precision::kNf4);
    add_lora(*again, settings, 5, base.path());
    CHECK(base_digests(*again) == base_digests(*model));
    CHECK(at::equal(again->trained.back().value, model->trained.back().value));
    omp_set_num_threads(before);
  }
  roughen(*model);
  const Batch batch = test::tiny_batch(37, {9, 17}, 3);
  const std::vector<float> trained = logits_of(*model, batch);
  save_adapter(*model, settings, "base", base.file("adapter"));
  save_changed_base(*model, base.path(), base.file("own"));
  const auto reloaded = load_model(base.file("own"), Precision::kFull);
  CHECK(base_digests(*reloaded) == base_digests(*model));
  load_adapter(*reloaded, base.file("adapter"));
  CHECK(logits_of(*reloaded, batch) == trained);
  adapters::merge_adapter(
      {base.file("own"), base.file("adapter"), base.file("merged"), adapters::MergeBase::kAuto});
  const auto merged = load_model(base.file("merged"), Precision::kFull);
  CHECK(largest_difference(logits_of(*merged, batch), trained) <= 1e-4F);
  // On the checkpoint itself it would be another model.
  const auto refused = [&](const auto& call) { return message_of(call, ExitCode::kData); };
  CHECK_THAT(refused([&] { load_adapter(*plain, base.file("adapter")); }),
             Catch::Contains("these are others") && Catch::Contains("directory `base`"));
  CHECK_THAT(refused([&] { load_adapter(*base.load(), base.file("adapter")); }),
             Catch::Contains("not in 4 bits"));
  CHECK_THAT(refused([&] {
               adapters::merge_adapter({base.path(), base.file("adapter"), base.file("wrong"),
                                        adapters::MergeBase::kAuto});
             }),
             Catch::Contains("not in 4 bits"));
  CHECK_FALSE(directory_exists(base.file("wrong")));
}

TEST_CASE("adapters: combinations that have no meaning are refused", "[train][adapters]") {
  const Base base("llama"), experts("mixtral");
  LoraSettings settings = all_linears();
  settings.init = "pisa";
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("did you mean \"pissa\""));
  settings.init = "pissa_niter_0";
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("1..64"));
  settings.init = "pissa";
  CHECK_THAT(refusal(experts, settings, Precision::kNf4),
             Catch::Contains("block_sparse_moe.gate is not") && Catch::Contains("lora_exclude"));
  settings.dora = true;
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("use one of the two"));
  settings.dora = false;
  settings.rank = 33;  // of 32 singular values
  CHECK_THAT(refusal(base, settings, Precision::kFull), Catch::Contains("at most 32"));
  settings = all_linears();
  settings.init = "loftq";
  CHECK_THAT(refusal(base, settings, Precision::kFull),
             Catch::Contains("in full precision") && Catch::Contains("adapter: qlora"));
  CHECK_THAT(refusal(experts, settings, Precision::kNf4),
             Catch::Contains("in full precision") && Catch::Contains("lora_exclude_modules"));
  adapters::quantize_directory(base.path(), base.file("packed"), {});
  const auto packed = load_model(base.file("packed"), Precision::kNf4);
  for (const char* init : {"loftq", "pissa"}) {
    settings.init = init;
    CHECK_THAT(message_of([&] { add_lora(*packed, settings, 1, base.file("packed")); }),
               Catch::Contains("are not known"));
  }
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
