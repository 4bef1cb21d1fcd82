// The planner: regions, their places, and what is chosen within a number of bytes.
#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/head.h"
#include "train/engine/planner.h"
#include "train/engine/step_buffers.h"
#include "train/job/memory.h"
#include "train/model/extended.h"
#include "train/model/lora.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

std::unique_ptr<Model> adapted(const char* family, int layers = 4) {
  const test::TempDir dir;
  auto model = empty_model(
      read_model_config(test::write_family_config(dir.path(), test::tiny_family(family), layers)));
  add_lora(*model, {.rank = 4, .alpha = 8, .targets = {"all-linear"}}, 1);
  return model;
}

constexpr PlanRequest kRequest = {.rows = 2, .sequence_len = 512, .quantizes = true};

}  // namespace

TEST_CASE("plan: regions that are in use at the same time do not overlap", "[train][plan]") {
  const LayerMemory second = GENERATE(LayerMemory::kRecomputeMlp, LayerMemory::kRecomputeInput);
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = adapted(family.name, 3);
    StepPlan plan = StepPlan::of(*model, 64, Keep::kForBackward);
    plan.layers[0].memory = LayerMemory::kOffloadInput;
    plan.layers[1].memory = second;
    const Layout layout = plan_layout(*model, plan);
    for (size_t a = 0; a < layout.regions.size(); ++a) {
      const Region& x = layout.regions[a];
      CHECK(x.offset % kAlignment == 0);
      CHECK(x.first <= x.last);
      for (size_t b = 0; b < a; ++b) {
        const Region& y = layout.regions[b];
        if (!x.overlaps_in_time(y)) continue;
        CAPTURE(x.name, y.name);
        CHECK((x.offset + x.bytes <= y.offset || y.offset + y.bytes <= x.offset));
      }
    }
    int64_t most = 0;
    for (int phase = 0; phase < layout.phases; ++phase) {
      most = std::max(most, layout.live(phase, Place::kDevice));
    }
    CHECK(layout.bytes[0] >= most);
    // The packing may lose a little; more than a tenth would be a bad packing.
    CHECK(static_cast<double>(layout.bytes[0]) <= 1.1 * static_cast<double>(most));
  }
}

TEST_CASE("plan: packing puts the largest first and each as low as its phases allow",
          "[train][plan]") {
  Layout layout;
  layout.regions = {{"a", Place::kDevice, 0, 2, 128, 0},
                    {"b", Place::kDevice, 1, 1, 640, 0},
                    {"c", Place::kDevice, 3, 3, 256, 0},
                    {"d", Place::kHost, 0, 3, 64, 0}};
  pack(layout);
  CHECK(layout.regions[1].offset == 0);    // b, the largest
  CHECK(layout.regions[2].offset == 0);    // c shares no phase with a or b
  CHECK(layout.regions[0].offset == 640);  // a, above b
  CHECK(layout.regions[3].offset == 0);    // another place
  CHECK(layout.bytes[0] == 768);
  CHECK(layout.bytes[1] == 64);
}

TEST_CASE("plan: with less memory blocks keep less, lower ones first, and the plan fits",
          "[train][plan]") {
  for (const char* family : {"llama", "gemma2", "mixtral"}) {
    CAPTURE(family);
    const auto model = adapted(family);
    PlanRequest request = kRequest;
    const MemoryPlan free = choose_plan(*model, request);
    CHECK(free.flops.again == 0);
    CHECK(free.fits);
    request.cap = 1;
    const MemoryPlan least = choose_plan(*model, request);
    CHECK_FALSE(least.fits);
    double again = -1;
    bool drops = false;
    // From the least that is needed to more than is.
    for (int64_t cap = least.total(); cap < free.total() + (1 << 16); cap += (1 << 17)) {
      CAPTURE(cap);
      request.cap = cap;
      const MemoryPlan plan = choose_plan(*model, request);
      CHECK(plan.fits);
      CHECK(plan.total() <= cap);
      CHECK((again < 0 || plan.flops.again <= again));
      again = plan.flops.again;
      drops = drops || plan.training.drops_input(0);
      if (plan.training.drops_input(0)) continue;
      for (size_t layer = 1; layer < plan.training.layers.size(); ++layer) {
        CHECK(plan.training.layers[layer].memory <= plan.training.layers[layer - 1].memory);
      }
    }
    CHECK(drops);
    request.cap = free.total();
    CHECK(choose_plan(*model, request).flops.again == 0);
  }
}

TEST_CASE("plan: weights stay decoded only where that pays and fits", "[train][plan]") {
  const auto model = adapted("llama");
  PlanRequest request = {.rows = 1, .sequence_len = 8, .quantizes = true};
  const int64_t needed = choose_plan(*model, request).total();
  int64_t all = 0;
  StepPlan plan = StepPlan::of(*model, 8, Keep::kForBackward);
  plan.quantizes = true;
  for (const Layer& layer : model->layers) all += decoded_bytes(*model, plan, layer);
  request.cap = needed + all;
  // Eight tokens: decoding is most of the work.
  CHECK(choose_plan(*model, request).decoded == all);
  request.cap = needed;
  CHECK(choose_plan(*model, request).decoded == 0);
  request.sequence_len = 4096;
  request.cap = int64_t{1} << 40;
  CHECK(choose_plan(*model, request).decoded == 0);
}

TEST_CASE("plan: rows at once are as many as pay and fit", "[train][plan]") {
  const auto model = adapted("llama");
  PlanRequest request = {.sequence_len = 16};
  const auto rows = [&](int64_t step_rows) {
    const MemoryPlan plan = choose_rows(*model, request, step_rows);
    CHECK(plan.training.tokens == request.rows * request.sequence_len);
    CHECK(plan.total() == price_plan(*model, request, plan.training).total());
    return plan.fits ? request.rows : -1;
  };
  // Below 256 tokens a product does not run at its full rate; beyond, more rows are more memory.
  CHECK(rows(1) == 1);
  CHECK(rows(5) == 5);
  CHECK(rows(16) == 16);
  CHECK(rows(64) == 16);
  request.sequence_len = 512;
  CHECK(rows(64) == 1);
  // In 4 bits each micro-batch decodes the weights: 2.5 % of 256 tokens' work here.
  request.sequence_len = 16;
  CHECK(rows(1024) == 16);
  request.quantizes = true;
  CHECK(rows(1024) == 32);
  request.cap = choose_rows(*model, request, 1024).total() - 1;
  CHECK(rows(1024) < 32);
  request.cap = 1;
  CHECK(rows(64) == -1);
  CHECK(request.rows == 1);
}

TEST_CASE("plan: operations are those of the products, counted by hand", "[train][plan]") {
  const auto model = adapted("llama", 1);
  const MemoryPlan plan = choose_plan(*model, {.rows = 1, .sequence_len = 64});
  // hidden 32, 4 heads and 2 key heads of 8, intermediate 56, vocabulary 37, rank 4.
  const double linears = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 56;
  const double ranks = 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 56));
  const double attention = 2 * 64 * 32 * 32;  // tokens, half of the length, width of all heads
  const double head = 2 * 64 * 37 * 32;
  CHECK(plan.flops.forward == 2 * 64 * (linears + ranks) + 2 * attention + head);
  CHECK(plan.flops.backward == 2 * 64 * (linears + 2 * ranks) + 5 * attention + head);
}

namespace {

// Of the 8B shape in 4 bits with pairs of rank 16, as on a GPU.
std::unique_ptr<Model> shapes_of_8b(int layers = 32) {
  const test::TempDir dir;
  write_file_atomically(dir.file("config.json"),
                        R"({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": )" +
                            std::to_string(layers) + R"(, "num_attention_heads": 32,
"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
"max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
"tie_word_embeddings": false})");
  auto model = empty_model(read_model_config(dir.path()));
  round_operands(*model, {});
  add_lora_shapes(*model, {.rank = 16, .alpha = 32, .targets = {"all-linear"}}, Precision::kNf4);
  choose_width(*model);
  REQUIRE(model->narrow);
  return model;
}

constexpr PlanRequest kOnGpu = {
    .rows = 1, .sequence_len = 2048, .quantizes = true, .device = GRAFT_CUDA};

// The most blocks that have their inputs at a time on the device, in any phase.
size_t most_inputs(const Model& model, const StepPlan& plan) {
  const Layout layout = plan_layout(model, plan);
  size_t most = 0;
  for (int phase = Timeline(plan).head(); phase < layout.phases; ++phase) {
    size_t count = 0;
    for (const Region& region : layout.regions) {
      const bool input = region.name.find(", input") != std::string::npos;
      const bool now = region.first <= phase && phase <= region.last;
      count += region.place == Place::kDevice && input && now ? 1 : 0;
    }
    most = std::max(most, count);
  }
  return most;
}

}  // namespace

TEST_CASE("plan: inputs are dropped so that m at a time do for m (m + 1) / 2 blocks",
          "[train][plan]") {
  // A 4-bit base of 10 blocks; the last one keeps its input.
  const auto model = shapes_of_8b(10);
  PlanRequest request = kOnGpu;
  request.cap = int64_t{1} << 40;
  const MemoryPlan free = choose_plan(*model, request);
  CHECK_FALSE(free.training.drops_input(0));
  std::set<size_t> seen;
  double again = 0;
  for (int64_t cap = free.on_device() - free.decoded;; cap -= 8 << 20) {
    request.cap = cap;
    const MemoryPlan plan = choose_plan(*model, request);
    if (!plan.fits || plan.on_host() > 0) break;
    CHECK(plan.flops.again >= again);
    again = plan.flops.again;
    size_t dropped = 0;
    for (size_t layer = 0; layer < 10; ++layer) dropped += plan.training.drops_input(layer) ? 1 : 0;
    if (dropped == 0) continue;
    CAPTURE(layers_text(plan.training));
    CHECK(most_inputs(*model, plan.training) == 10 - dropped);
    CHECK_FALSE(plan.training.drops_input(9));
    seen.insert(10 - dropped);
  }
  // From the embedding 4, then 1 + 3 and so on: 4 at a time would do for 4 + 4 5 / 2 = 14 blocks,
  // 3 for 3 + 3 4 / 2 = 9.
  CHECK(seen == std::set<size_t>{4, 5, 6, 7, 8, 9});
}

TEST_CASE("plan: what runs forward again is counted", "[train][plan]") {
  const auto model = adapted("llama", 4);
  StepPlan plan = StepPlan::of(*model, 1024, Keep::kForBackward);
  for (LayerPlan& layer : plan.layers) layer.memory = LayerMemory::kRecomputeBlock;
  const auto again = [&] { return price_plan(*model, kRequest, plan).flops.again; };
  const double blocks = again();
  const double forward = price_plan(*model, kRequest, plan).flops.forward;
  const double head = 2.0 * 1024 * 37 * 32;
  const double block = (forward - head) / 4;
  // Gathered again: no products.
  plan.layers[0].memory = LayerMemory::kRecomputeInput;
  CHECK(again() == blocks);
  // Blocks 1 and 2 run again for 2 and 3.
  plan.layers[2].memory = plan.layers[3].memory = LayerMemory::kRecomputeInput;
  CHECK(again() == Approx(blocks + 2 * block).epsilon(1e-12));
  CHECK(Timeline(plan).name(Timeline(plan).again_mlp(2)) == "forward again of block 2, MLP");
  CHECK(Timeline(plan).again_attention(1) == Timeline(plan).head() + 1);
}

TEST_CASE("plan: the 8B shape in 4 bits fits 6.9 GiB of a GPU with nothing on the host",
          "[train][plan]") {
  const auto model = shapes_of_8b();
  PlanRequest request = kOnGpu;
  request.cap = parse_bytes("6.9GiB");
  const MemoryPlan plan = choose_plan(*model, request);
  CHECK(plan.fits);
  CHECK(plan.on_host() == 0);
  CHECK(plan.on_device() == plan.total());
  // With 113 MiB to spare: room for two weights of the MLP, decoded at a time.
  request.cap -= 113 << 20;
  CHECK(choose_plan(*model, request).fits);
  CHECK(choose_plan(*model, request).on_host() == 0);
}

TEST_CASE("plan: and 5.5 GiB with the embedding and inputs on the host", "[train][plan]") {
  const auto model = shapes_of_8b();
  PlanRequest request = kOnGpu;
  request.moments = MomentType::k8Bit;
  request.cap = parse_bytes("5.5GiB");
  MemoryPlan plan = choose_plan(*model, request);
  CHECK(plan.fits);
  // The embedding is enough; moments in 8 bits are on the host anyway.
  CHECK(plan.training.embeds_on_host);
  CHECK(plan.host_weights == int64_t{128256} * 4096 * 2);
  CHECK(plan.on_host() == plan.host_weights + plan.host_moments + plan.host_bytes);
  CHECK(plan.on_device() <= request.cap);
  CHECK(layers_text(plan.training).find("offload") == std::string::npos);
  request.cap = parse_bytes("5.3GiB");
  plan = choose_plan(*model, request);
  CHECK(plan.fits);
  CHECK(layers_text(plan.training).find("offload input") != std::string::npos);
}

TEST_CASE("plan: only a frozen embedding of its own goes to the host, and only from a device",
          "[train][plan]") {
  PlanRequest request = kRequest;
  request.cap = 1;
  const auto embeds = [&](const Model& model) {
    return choose_plan(model, request).training.embeds_on_host;
  };
  auto model = adapted("llama");
  CHECK_FALSE(embeds(*model));
  request.device = GRAFT_EMU;
  CHECK(embeds(*model));
  CHECK_FALSE(embeds(*adapted("gemma2")));  // tied
  request.trains_everything = true;
  CHECK_FALSE(embeds(*model));
  request.trains_everything = false;
  model->config.added = {36, 37, {{3}}};
  CHECK_FALSE(embeds(*model));
  const test::TempDir dir;
  const auto trains = empty_model(
      read_model_config(test::write_family_config(dir.path(), test::tiny_family("llama"), 4)));
  add_lora_shapes(*trains,
                  {.rank = 4, .alpha = 8, .targets = {"all-linear"}, .saved = {"embed_tokens"}},
                  Precision::kFull);
  CHECK_FALSE(embeds(*trains));
}

TEST_CASE("plan: sizes are read with their units", "[train][plan]") {
  CHECK(parse_bytes("8GiB") == int64_t{8} << 30);
  CHECK(parse_bytes("1.5 MB") == 1500000);
  CHECK(parse_bytes("123") == 123);
  CHECK(parse_bytes("512MiB") == 512 << 20);
  for (const char* wrong : {"", "GiB", "0", "-4GiB", "8 gib", "1e30", "nan", "8GiBs"}) {
    CAPTURE(wrong);
    CHECK(parse_bytes(wrong) == -1);
  }
  CHECK(free_memory() > 0);
  CHECK(anonymous_memory() > 0);
}
