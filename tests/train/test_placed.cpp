// A model in the memory of a device. The emulated device's is closed to the host: what reaches for
// it there ends the test.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/arrangement.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/job/checkpoint.h"
#include "train/job/generate.h"
#include "train/model/lora.h"
#include "train/model/new_tokens.h"
#include "train/model/placed.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

const Device kCpu = {};
const Device kEmu = {GRAFT_EMU};

struct Kind {
  const char* name;
  const char* family;
  LoraSettings lora = {};
  bool everything = false;
  MomentType moments = MomentType::kFloat32;
  Precision precision = Precision::kFull;
  graft_float_type operands = GRAFT_F32;
  bool adds_tokens = false;
};

LoraSettings pairs(int64_t rank = 3) {
  return {.rank = rank, .alpha = 7, .dropout = 0.2, .targets = {"all-linear"}};
}
LoraSettings with_dora() {
  LoraSettings settings = pairs();
  settings.dora = true;
  return settings;
}
LoraSettings with_two_rates() {
  LoraSettings settings = pairs();
  settings.b_lr_ratio = 4;
  return settings;
}
LoraSettings with_a_head() {
  LoraSettings settings = pairs();
  settings.saved = {"lm_head"};
  return settings;
}

// Of rank 80 the pairs of the MLP have 4,480 values, enough for moments in 8 bits, those of the
// attention 2,560.
const Kind kKinds[] = {
    {"lora", "llama", pairs()},
    {"lora+", "gemma3", with_two_rates()},
    {"dora", "phi3", with_dora()},
    {"a head that is trained whole", "mistral", with_a_head()},
    {"every tensor", "granite", {}, true},
    {"experts", "mixtral", pairs()},
    {"qlora in bf16", "smollm3", pairs(), false, MomentType::kFloat32, Precision::kNf4, GRAFT_BF16},
    {"new tokens", "gemma2", pairs(), false, MomentType::kFloat32, Precision::kFull, GRAFT_F32,
     true},
    {"new tokens in a tied table of bf16", "qwen2", pairs(), false, MomentType::kFloat32,
     Precision::kNf4, GRAFT_BF16, true},
    {"moments in 8 bits", "mistral", pairs(80), false, MomentType::k8Bit},
};

std::unique_ptr<Model> made(const Kind& kind, int layers = 2) {
  const test::RoughBase base(test::tiny_family(kind.family), layers);
  ModelConfig config = read_model_config(base.path());
  if (kind.adds_tokens) add_tokens(config, config.vocab_size, {{3, 5, 7}, {9}});
  auto model =
      load_model(config, base.path(), kind.precision, {}, {kind.operands, kind.lora.saved});
  if (kind.everything) {
    train_everything(*model);
  } else {
    add_lora(*model, kind.lora, 5);
    test::spread_pairs(*model);
  }
  return model;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

// Every tensor that a training leaves behind, on the host.
struct Named {
  std::string name;
  at::Tensor tensor;
};

void check_same(const std::vector<Named>& a, const std::vector<Named>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CAPTURE(a[i].name);
    CHECK(a[i].name == b[i].name);
    CHECK(same_bits(a[i].tensor, b[i].tensor));
  }
}

// A training with clipping, decay and, in each step, two micro-batches.
class Training {
 public:
  Training(Model& model, const Device& device, MomentType moments)
      : model_(model),
        device_(device),
        placed_(model, device),
        optimizer_(model.trained, moments),
        decoder_(model, test::poisoned(model, 17, Keep::kForBackward), device) {}

  void compute_gradients() {
    const int64_t vocab = model_.config.vocab_size;
    const auto seed = static_cast<uint64_t>(optimizer_.step_count());
    optimizer_.zero_gradients();
    HeadResult sums;
    for (const Batch& batch :
         {test::tiny_batch(vocab, {9, 4}, seed), test::tiny_batch(vocab, {17}, seed + 100)}) {
      const float* residual = decoder_.forward(batch, 77 + seed);
      sums = decoder_.head_loss(batch, residual, 0.05, decoder_.gradient_buffer(), nullptr, sums);
      decoder_.backward(batch, decoder_.gradient_buffer());
    }
    decoder_.finish_gradients();
    loss_ = sums.loss_sum * 0.05;
  }

  // float32 cannot hold 0.1.
  StepResult update(double max_grad_norm = 0.1) {
    const StepResult result =
        optimizer_.step({.weight_decay = 0.1, .max_grad_norm = max_grad_norm}, 1e-2, loss_);
    refresh_trained(model_);
    return result;
  }

  StepResult step() {
    compute_gradients();
    return update();
  }

  // Puts `value` into the gradient of a parameter.
  void spoil(size_t parameter, float value) {
    const at::Tensor& grad = model_.trained[parameter].grad;
    at::Tensor values = on_host(grad).clone();
    f32(values)[values.numel() - 1] = value;
    copy_values(grad, values);
  }

  // With what follows from the trained tensors.
  std::vector<Named> everything() const {
    std::vector<Named> all;
    const auto add = [&](const std::string& name, const at::Tensor& tensor) {
      if (tensor.defined()) all.push_back({name, on_host(tensor).clone()});
    };
    for (const Parameter& parameter : model_.trained) {
      add(parameter.name, parameter.value);
      add("gradient of " + parameter.name, parameter.grad);
    }
    for (const AdamW::State& state : optimizer_.state()) add(state.name, state.tensor);
    for (const Linear* const linear : model_.linears()) {
      add("gain of " + linear->name, linear->lora.gain);
    }
    add("embedding", model_.embedding);
    add("head", model_.head);
    return all;
  }

  AdamW& optimizer() { return optimizer_; }
  PlacedModel& placed() { return placed_; }
  double loss() const { return loss_; }

 private:
  Model& model_;
  Device device_;
  PlacedModel placed_;
  AdamW optimizer_;
  Decoder decoder_;
  double loss_ = 0;
};

}  // namespace

TEST_CASE("placed: the device has the model, and the host's tensors come back with what changed",
          "[train][placed][emu]") {
  const auto model = made({"", "qwen2", pairs()});  // tied
  const BaseWeight& frozen = model->layers[0].o.base;
  const Lora& lora = model->layers[0].o.lora;
  const at::Tensor dense = frozen.dense, a = lora.a, b = lora.b, grad_b = lora.grad_b;
  const at::Tensor dense_before = dense.clone(), a_before = a.clone();
  {
    const PlacedModel placed(*model, kEmu);
    for (const BaseTensor& tensor : base_tensors(*model)) {
      CAPTURE(tensor.name);
      CHECK(place_of(*tensor.value).kind == GRAFT_EMU);
    }
    for (const Parameter& parameter : model->trained) {
      CHECK(place_of(parameter.value).kind == GRAFT_EMU);
      CHECK(place_of(parameter.grad).kind == GRAFT_EMU);
    }
    CHECK(model->head.is_same(model->embedding));
    CHECK(lora.a.is_same(model->trained[6].value));
    CHECK(model->trained[6].name == "model.layers.0.self_attn.o_proj.lora_A.weight");
    CHECK(same_bits(on_host(frozen.dense), dense));
    CHECK(same_bits(on_host(lora.a), a));
    kEmu.zero(frozen.dense.data_ptr(), frozen.dense.nbytes());
    kEmu.zero(lora.b.data_ptr(), lora.b.nbytes());
    kEmu.fill(lora.grad_b.data_ptr(), 0x3F, lora.grad_b.nbytes());
  }
  CHECK(frozen.dense.is_same(dense));
  CHECK(lora.a.is_same(a));
  CHECK(lora.b.is_same(b));
  CHECK(model->trained[7].value.is_same(b));
  CHECK(model->head.is_same(model->embedding));
  // No device changes what is frozen.
  CHECK(same_bits(dense, dense_before));
  CHECK(same_bits(a, a_before));
  CHECK(b.eq(0).all().item<bool>());
  CHECK(grad_b.eq(0x1.7e7e7ep-1F).all().item<bool>());  // bytes 3F
}

TEST_CASE(
    "placed: an embedding that stays on the host is not copied, and its rows are gathered there",
    "[train][placed][emu]") {
  const Kind kind = GENERATE(
      Kind{"float32", "llama", pairs()},
      Kind{"bf16", "mixtral", pairs(), false, MomentType::kFloat32, Precision::kNf4, GRAFT_BF16});
  CAPTURE(kind.name);
  const auto here = made(kind, 1), there = made(kind, 1);
  REQUIRE(there->can_embed_on_host());
  there->embeds_on_host = true;
  const at::Tensor table = there->embedding;
  Training cpu(*here, kCpu, kind.moments), emu(*there, kEmu, kind.moments);
  CHECK(there->embedding.is_same(table));
  CHECK(place_of(there->head).kind == GRAFT_EMU);
  for (int step = 0; step < 2; ++step) {
    CHECK(cpu.step().grad_norm == emu.step().grad_norm);
    CHECK(cpu.loss() == emu.loss());
  }
  check_same(cpu.everything(), emu.everything());
  // Token by token, with a cache.
  GenerateOptions options;
  options.max_new_tokens = 6;
  const std::vector<int32_t> prompt = {3, 1, 4};
  Generator on_emu(*there, 12, kEmu), on_cpu(*here, 12);
  const Generated a = on_emu.generate(prompt, options), b = on_cpu.generate(prompt, options);
  CHECK(a.ids == b.ids);
  CHECK(a.logprobs == b.logprobs);
  emu.placed().take_back();
  CHECK(there->embedding.is_same(table));
  emu.placed().place();
  CHECK(there->embedding.is_same(table));
}

TEST_CASE("placed: an embedding that is tied, trained or grown is refused to stay on the host",
          "[train][placed][emu]") {
  LoraSettings saves = pairs();
  saves.saved = {"embed_tokens"};
  const Kind kind = GENERATE_COPY(Kind{"tied", "qwen2", pairs()}, Kind{"trained", "llama", saves},
                                  Kind{"grown", "llama", pairs(), false, MomentType::kFloat32,
                                       Precision::kFull, GRAFT_F32, true});
  CAPTURE(kind.name);
  const auto model = made(kind, 1);
  CHECK_FALSE(model->can_embed_on_host());
  model->embeds_on_host = true;
  CHECK_THROWS_AS(PlacedModel(*model, kEmu), Error);
}

TEST_CASE("placed: a plan and a model that disagree about the embedding are refused",
          "[train][placed][emu]") {
  const auto model = made({"", "llama", pairs()}, 1);
  const PlacedModel placed(*model, kEmu);
  StepPlan plan = StepPlan::of(*model, 8, Keep::kNothing);
  plan.embeds_on_host = true;
  CHECK_THROWS_AS(Decoder(*model, plan, kEmu), Error);
}

TEST_CASE("placed: bytes on the device are counted", "[train][placed][emu]") {
  const DeviceBytes before = device_bytes();
  {
    const at::Tensor one = empty_on(kEmu, at::kFloat, {1000, 3});
    CHECK(device_bytes().now == before.now + 12000);
    CHECK(device_bytes().most >= before.now + 12000);
  }
  CHECK(device_bytes().now == before.now);
}

TEST_CASE("placed: again, a tensor has the same place and the values of the host",
          "[train][placed][emu]") {
  const auto model = made({"", "llama", pairs()});
  PlacedModel placed(*model, kEmu);
  const Parameter& parameter = model->trained[1];
  const void* const before = parameter.value.data_ptr();
  placed.place();
  CHECK(parameter.value.data_ptr() == before);
  placed.take_back();
  placed.take_back();
  REQUIRE(place_of(parameter.value).is_host());
  parameter.value.fill_(0.25F);
  // Others in its place, as an adapter that is read from its files.
  Lora& lora = model->layers[1].qkv[0].lora;
  lora.a = at::full_like(lora.a, 0.5F);
  placed.place();
  CHECK(parameter.value.data_ptr() == before);
  CHECK(on_host(parameter.value).eq(0.25F).all().item<bool>());
  CHECK(place_of(lora.a).kind == GRAFT_EMU);
  CHECK(on_host(lora.a).eq(0.5F).all().item<bool>());
}

TEST_CASE("placed: a model leaves a device with nothing that lies there", "[train][placed][emu]") {
  // Weights that stay decoded are made by a decoder, where it runs.
  const graft_float_type operands = GENERATE(GRAFT_F32, GRAFT_BF16);
  const auto model =
      made({"", "llama", pairs(), false, MomentType::kFloat32, Precision::kNf4, operands});
  const Batch batch = test::tiny_batch(37, {9, 4}, 3);
  const auto loss_on = [&](const Device& device, bool resident) {
    Arrangement how;
    how.layers.assign(2, LayerPlan{LayerMemory::kKeep, resident});
    how.device = device;
    return compute_step(*model, {.count = 1, .batch = [&](size_t, size_t) { return batch; }}, how)
        .loss_sum;
  };
  const double expected = loss_on(kCpu, false);
  CHECK(loss_on(kEmu, true) == expected);
  CHECK_FALSE(model->layers[0].o.base.decoded.defined());
  CHECK(loss_on(kCpu, false) == expected);
  CHECK(loss_on(kCpu, true) == expected);
  CHECK(loss_on(kEmu, true) == expected);
}

TEST_CASE("placed: a decoder's weights that stay decoded are there when the model comes again",
          "[train][placed][emu]") {
  const auto model =
      made({"", "llama", pairs(), false, MomentType::kFloat32, Precision::kNf4, GRAFT_BF16});
  PlacedModel placed(*model, kEmu);
  StepPlan plan = test::poisoned(*model, 13, Keep::kNothing);
  for (LayerPlan& layer : plan.layers) layer.resident = true;
  Decoder decoder(*model, plan, kEmu);
  const Batch batch = test::tiny_batch(37, {9, 4}, 3);
  const auto loss = [&] {
    return decoder.head_loss(batch, decoder.forward(batch, 0), 1, nullptr, nullptr).loss_sum;
  };
  const double before = loss();
  placed.take_back();
  placed.place();
  CHECK(loss() == before);
}

TEST_CASE("placed: decoders that take turns in an arena find nothing of each other",
          "[train][placed][emu]") {
  const auto model = made({"", "llama", pairs()}, 1);
  const PlacedModel placed(*model, kEmu);
  const StepPlan plans[] = {StepPlan::of(*model, 20, Keep::kForBackward),
                            StepPlan::of(*model, 20, Keep::kNothing)};
  StepPlan on_emu[] = {plans[0], plans[1]};
  for (StepPlan& plan : on_emu) plan.device = GRAFT_EMU;
  const Layout layouts[] = {plan_layout(*model, on_emu[0]), plan_layout(*model, on_emu[1])};
  const auto arena = std::make_shared<const Arena>(
      std::vector<const Layout*>{&layouts[0], &layouts[1]}, kEmu, Poison::kYes);
  Decoder training(*model, plans[0], kEmu, arena), evaluation(*model, plans[1], kEmu, arena);
  // The same positions in step after step: what depends on them could be made once.
  const Batch one = test::tiny_batch(37, {20}, 3), other = test::tiny_batch(37, {7, 9}, 4);
  const auto loss = [](Decoder& decoder, const Batch& batch) {
    return decoder.head_loss(batch, decoder.forward(batch, 0), 1, nullptr, nullptr).loss_sum;
  };
  const double expected = loss(training, one), held_out = loss(evaluation, other);
  CHECK(loss(training, one) == expected);
  // As a training step leaves it.
  const float* residual = training.forward(one, 0);
  training.head_loss(one, residual, 1, training.gradient_buffer(), nullptr);
  training.backward(one, training.gradient_buffer());
  CHECK(loss(evaluation, other) == held_out);
  CHECK(loss(training, one) == expected);
}

TEST_CASE("placed: training on the device gives the processor's model to the bit",
          "[train][placed][emu][slow]") {
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    const auto here = made(kind, 1), there = made(kind, 1);
    Training cpu(*here, kCpu, kind.moments), emu(*there, kEmu, kind.moments);
    for (int step = 0; step < 3; ++step) {
      CAPTURE(step);
      const StepResult a = cpu.step(), b = emu.step();
      CHECK(a.grad_norm > 0.1);
      CHECK(a.grad_norm == b.grad_norm);
      CHECK(cpu.loss() == emu.loss());
      CHECK_FALSE(a.skipped);
      CHECK_FALSE(b.skipped);
    }
    check_same(cpu.everything(), emu.everything());
    emu.placed().take_back();
    for (size_t i = 0; i < here->trained.size(); ++i) {
      CHECK(same_bits(here->trained[i].value, there->trained[i].value));
    }
  }
}

TEST_CASE("placed: a step that is not finite changes nothing on a device and names the tensor",
          "[train][placed][emu]") {
  const Device device = GENERATE(Device{}, Device{GRAFT_EMU});
  const MomentType moments = GENERATE(MomentType::kFloat32, MomentType::k8Bit);
  const auto model = made({"", "mistral", pairs(80)}, 1);
  Training training(*model, device, moments);
  CHECK_FALSE(training.step().skipped);
  training.compute_gradients();
  training.spoil(
      5, GENERATE(std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()));
  const std::vector<Named> before = training.everything();
  const StepResult result = training.update();
  CHECK(result.skipped);
  CHECK(result.not_finite == "the gradient of " + model->trained[5].name);
  CHECK(training.optimizer().step_count() == 1);
  check_same(training.everything(), before);
  CHECK_FALSE(training.step().skipped);
  CHECK(training.optimizer().step_count() == 2);
}

TEST_CASE("placed: gradients whose norm float32 cannot hold are a step that is not finite",
          "[train][placed][emu]") {
  // Each of them is finite; sqrt(2) 3e38 is above 3.4e38.
  const Device device = GENERATE(Device{}, Device{GRAFT_EMU});
  const auto model = made({"", "mistral", pairs()}, 1);
  Training training(*model, device, MomentType::kFloat32);
  training.compute_gradients();
  training.spoil(2, 3e38F);
  training.spoil(5, 3e38F);
  const std::vector<Named> before = training.everything();
  const StepResult result = training.update();
  CHECK(result.skipped);
  CHECK(result.not_finite == "the norm of the gradients");
  CHECK(training.optimizer().step_count() == 0);
  check_same(training.everything(), before);
}

TEST_CASE("placed: a checkpoint of one device goes on on another", "[train][placed][emu]") {
  const Kind kind = GENERATE(Kind{"float32", "llama", with_dora()},
                             Kind{"8 bits", "mistral", pairs(80), false, MomentType::k8Bit});
  CAPTURE(kind.name);
  const test::TempDir dir;
  const auto whole = made(kind, 1);
  Training uninterrupted(*whole, kCpu, kind.moments);
  for (int step = 0; step < 4; ++step) uninterrupted.step();
  // Steps 1 and 2 on the one, 3 on the other, 4 on the first again, each from a checkpoint.
  const Device devices[] = {kEmu, kEmu, kCpu, kEmu};
  std::vector<Named> last;
  for (int64_t step = 0; step < 4; ++step) {
    const auto model = made(kind, 1);
    Training training(*model, devices[step], kind.moments);
    if (step > 0) {
      const auto found = load_newest_checkpoint(dir.path(), model->trained, training.optimizer(),
                                                [](const std::string&) { FAIL(); });
      REQUIRE(found);
      CHECK(found->step == step);
      refresh_trained(*model);
    }
    CHECK_FALSE(training.step().skipped);
    Progressed progressed;
    progressed.step = step + 1;
    save_checkpoint(dir.path(), progressed, model->trained, training.optimizer(), 2);
    last = training.everything();
  }
  check_same(last, uninterrupted.everything());
}
