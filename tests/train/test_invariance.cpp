// What is trained does not depend on how it is computed: equal to the bit.
#include <cmath>
#include <cstring>
#include <string_view>

#include "core/hash.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "tests/train/steps.h"
#include "train/engine/arrangement.h"
#include "train/engine/optimizer.h"
#include "train/engine/planner.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)
using test::check_same;
using test::Step;

// kB...: with frozen products of bfloat16 operands.
enum class Training { kLora, kQlora, kDora, kFull, kBLora, kBQlora, kBDora };
constexpr const char* kTrainingNames[] = {"lora",      "qlora",      "dora",     "full",
                                          "bf16 lora", "bf16 qlora", "bf16 dora"};

const char* name_of(Training training) {
  return kTrainingNames[static_cast<size_t>(training)];
}
bool quantizes(Training training) {
  return training == Training::kQlora || training == Training::kBQlora;
}
bool weighs(Training training) {
  return training == Training::kDora || training == Training::kBDora;
}

std::unique_ptr<Model> family_model(const test::TinyFamily& family,
                                    Training training,
                                    int layers = 3) {
  const test::RoughBase base(family, layers);
  auto model = base.load(training >= Training::kBLora ? GRAFT_BF16 : GRAFT_F32,
                         quantizes(training) ? Precision::kNf4 : Precision::kFull);
  if (training == Training::kFull) {
    train_everything(*model);
    return model;
  }
  add_lora(*model,
           {.rank = 3,
            .alpha = 7,
            .dropout = 0.2,
            .rslora = true,
            .targets = {"all-linear"},
            .dora = weighs(training)},
           5);
  test::spread_pairs(*model);
  return model;
}

// The documents' lengths of eight packed rows. Rows are longer and shorter than the tiles and
// chains of sums (64 and 256), and no border between them falls on a multiple of those.
const std::vector<std::vector<int64_t>> kRows = {{150, 121}, {3},      {70},       {33, 2, 44},
                                                 {1},        {64, 65}, {9, 9, 10}, {257}};
constexpr int64_t kRowTokens = 300;

// Rows [begin, end). Two of three tokens are supervised, one of seven with half the weight.
Batch rows_of(size_t begin, size_t end) {
  return test::packed_rows(
      kRows, begin, end, kRowTokens, {0.0F, 1.0F, 0.5F},
      [](const Philox& random, int64_t at) { return test::random_id(random, at, 37); },
      [](int64_t at, int64_t) { return at % 3 == 0   ? 0
                                       : at % 7 == 0 ? 2
                                                     : 1; });
}

// The gradients of the eight rows, one optimizer step's.
Step run(Model& model, const Arrangement& how) {
  return test::step_of(
      model, {.count = kRows.size(), .batch = rows_of, .scale = 0.01, .dropout_seed = 77}, how);
}

}  // namespace

TEST_CASE("invariance: micro-batches of 8, 4, 2 and 1 rows give the same gradients to the bit",
          "[train][invariance][families][slow]") {
  for (const test::TinyFamily& family : test::tiny_families()) {
    for (const Training training : {Training::kLora, Training::kFull, Training::kBLora}) {
      CAPTURE(family.name, name_of(training));
      const auto model = family_model(family, training);
      const Step whole = run(*model, {.rows = 8});
      for (const size_t rows : {4, 2, 1}) {
        CAPTURE(rows);
        check_same(*model, run(*model, {.rows = rows}), whole);
      }
    }
  }
}

TEST_CASE("invariance: 1, 2, 4 and 7 threads give the same gradients to the bit",
          "[train][invariance][slow]") {
  const Training training = GENERATE(Training::kLora, Training::kFull, Training::kBLora);
  for (const char* family : {"llama", "gemma2", "mixtral"}) {
    CAPTURE(family, name_of(training));
    const auto model = family_model(test::tiny_family(family), training);
    const Step one = run(*model, {.threads = 1});
    for (const int threads : {2, 4, 7}) {
      CAPTURE(threads);
      check_same(*model, run(*model, {.threads = threads}), one);
    }
  }
}

TEST_CASE("invariance: what a block keeps, recomputes or sends away does not change a bit",
          "[train][invariance][families][slow]") {
  for (const test::TinyFamily& family : test::tiny_families()) {
    for (const Training training : {Training::kLora, Training::kFull, Training::kBLora}) {
      CAPTURE(family.name, name_of(training));
      const auto model = family_model(family, training);
      const Step kept = run(*model, {});
      for (const LayerMemory memory : {LayerMemory::kRecomputeMlp, LayerMemory::kRecomputeBlock,
                                       LayerMemory::kRecomputeInput, LayerMemory::kOffloadInput}) {
        CAPTURE(kLayerMemoryNames[static_cast<size_t>(memory)]);
        check_same(*model, run(*model, {.layers = {3, LayerPlan{memory, false}}}), kept);
      }
    }
  }
}

TEST_CASE("invariance: nor does a plan with another choice for each of four blocks",
          "[train][invariance]") {
  const Training training =
      GENERATE(Training::kLora, Training::kQlora, Training::kDora, Training::kFull,
               Training::kBLora, Training::kBQlora, Training::kBDora);
  for (const char* family : {"llama", "gemma2", "olmo2", "mixtral"}) {
    CAPTURE(family, name_of(training));
    if (weighs(training) && std::string_view(family) == "mixtral") continue;
    const auto model = family_model(test::tiny_family(family), training, 4);
    const Step kept = run(*model, {});
    const bool decodes = quantizes(training);
    const std::vector<LayerPlan> mixed = {{LayerMemory::kOffloadInput, false},
                                          {LayerMemory::kRecomputeBlock, decodes},
                                          {LayerMemory::kRecomputeMlp, decodes},
                                          {LayerMemory::kKeep, decodes}};
    check_same(*model, run(*model, {.rows = 2, .layers = mixed}), kept);
    CHECK(model->layers[3].o.base.decoded.defined() == decodes);
    StepPlan plan = StepPlan::of(*model, 300, Keep::kForBackward);
    plan.layers = mixed;
    const StepFlops flops = price_plan(*model, {.rows = 1, .sequence_len = 300}, plan).flops;
    CHECK(flops.again > 0);
    WARN(family << ": " << std::lround(100 * flops.again / flops.total())
                << " % of the mixed plan's work is done twice");
  }
}

// Runs of one, two and three blocks that drop their inputs, behind each kind of block that has its
// own, and behind the embedding.
constexpr LayerMemory kK = LayerMemory::kKeep, kM = LayerMemory::kRecomputeMlp,
                      kB = LayerMemory::kRecomputeBlock, kI = LayerMemory::kRecomputeInput,
                      kO = LayerMemory::kOffloadInput;
const std::vector<LayerMemory> kRuns[] = {{kB, kI, kI, kI}, {kI, kI, kI, kB}, {kI, kI, kI, kI},
                                          {kO, kI, kI, kK}, {kK, kI, kM, kI}, {kI, kO, kI, kB}};

std::vector<LayerPlan> plans_of(const std::vector<LayerMemory>& memory, bool decodes) {
  std::vector<LayerPlan> plans;
  for (const LayerMemory one : memory) plans.push_back({one, decodes && plans.size() % 2 == 1});
  return plans;
}

TEST_CASE("invariance: nor do runs of blocks that drop their inputs", "[train][invariance]") {
  const Training training =
      GENERATE(Training::kLora, Training::kFull, Training::kBQlora, Training::kBDora);
  for (const char* family : {"llama", "gemma2", "olmo2", "mixtral"}) {
    if (weighs(training) && std::string_view(family) == "mixtral") continue;
    const auto model = family_model(test::tiny_family(family), training, 4);
    const Step kept = run(*model, {});
    for (const std::vector<LayerMemory>& memory : kRuns) {
      StepPlan plan = StepPlan::of(*model, 300, Keep::kForBackward);
      plan.layers = plans_of(memory, quantizes(training));
      CAPTURE(family, name_of(training), layers_text(plan));
      check_same(*model, run(*model, {.rows = 2, .layers = plan.layers}), kept);
    }
  }
}

TEST_CASE("invariance: runs of blocks above the lowest that trains", "[train][invariance]") {
  const test::RoughBase base(test::tiny_family("llama"), 4);
  const auto model = base.load(GRAFT_F32, Precision::kFull);
  add_lora(*model, {.rank = 3, .alpha = 7, .targets = {"all-linear"}, .layers = {1, 2, 3}}, 5);
  test::spread_pairs(*model);
  StepPlan plan = StepPlan::of(*model, 300, Keep::kForBackward);
  REQUIRE(plan.lowest == 1);
  plan.layers = plans_of({kI, kI, kI, kI}, false);
  // Block 0 has no backward pass; block 1 keeps its input, as nothing below keeps one.
  CHECK_FALSE(plan.drops_input(1));
  CHECK(plan.drops_input(2));
  CHECK(plan.drops_input(3));
  check_same(*model, run(*model, {.layers = plan.layers}), run(*model, {}));
}

TEST_CASE("invariance: heads of 256, 512 and 1024 rows at a time give the same to the bit",
          "[train][invariance]") {
  const Training training = GENERATE(Training::kLora, Training::kFull, Training::kBLora);
  for (const char* family : {"llama", "gemma2"}) {
    CAPTURE(family, name_of(training));
    const auto model = family_model(test::tiny_family(family), training);
    const Step small = run(*model, {.head_chunk = 256});
    for (const int64_t chunk : {512, 1024}) {
      CAPTURE(chunk);
      check_same(*model, run(*model, {.head_chunk = chunk}), small);
    }
  }
}

TEST_CASE("invariance: the emulated GPU gives the processor's gradients to the bit",
          "[train][invariance][families][emu][slow]") {
  // A packed row of two documents and one of one, all supervised: every CUDA kernel that a step of
  // the family calls.
  const float weights[2] = {0.0F, 1.0F};
  Batch batch;
  batch.clear();
  const Philox random(5, 1);
  for (const std::vector<int64_t>& row : {std::vector<int64_t>{9, 4}, std::vector<int64_t>{17}}) {
    batch.begin_row();
    for (const int64_t length : row) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < length; ++t) {
        ids.push_back(
            static_cast<int32_t>(random.below(static_cast<uint64_t>(batch.tokens() + t), 37)));
      }
      batch.add(ids, std::vector<uint8_t>(ids.size(), 1), weights, batch.tokens());
    }
  }
  const auto step_on = [&](Model& model, graft_device kind) {
    return test::step_of(model,
                         {.count = 1,
                          .batch = [&](size_t, size_t) { return batch; },
                          .scale = 0.01,
                          .dropout_seed = 77},
                         {.device = {kind}});
  };
  for (const test::TinyFamily& family : test::tiny_families()) {
    for (const Training training : {Training::kQlora, Training::kFull, Training::kBQlora}) {
      CAPTURE(family.name, name_of(training));
      const auto model = family_model(family, training);
      check_same(*model, step_on(*model, GRAFT_EMU), step_on(*model, GRAFT_CPU));
    }
  }
}

TEST_CASE("invariance: on the emulated GPU neither dropped inputs nor an embedding on the host do",
          "[train][invariance][emu]") {
  const Training training = GENERATE(Training::kLora, Training::kBQlora);
  const StepRows rows = {.count = 2, .batch = rows_of, .scale = 0.01, .dropout_seed = 77};
  const std::vector<LayerMemory> runs[] = {{kO, kI, kI}, {kI, kI, kB}, {kI, kO, kI}};
  for (const char* family : {"llama", "gemma2", "mixtral"}) {
    CAPTURE(family, name_of(training));
    const auto model = family_model(test::tiny_family(family), training);
    const Step kept = test::step_of(*model, rows, {});
    for (const std::vector<LayerMemory>& memory : runs) {
      // gemma2's embedding is its head too.
      model->embeds_on_host = model->can_embed_on_host();
      CHECK(model->embeds_on_host == (std::string_view(family) != "gemma2"));
      const Arrangement how = {.rows = 1, .layers = plans_of(memory, false), .device = {GRAFT_EMU}};
      check_same(*model, test::step_of(*model, rows, how), kept);
    }
  }
}
