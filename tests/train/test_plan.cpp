// The planner: regions, their places, and what is chosen within a number of bytes.
#include <algorithm>

#include "core/error.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/head.h"
#include "train/engine/planner.h"
#include "train/job/memory.h"
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
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const auto model = adapted(family.name, 3);
    StepPlan plan = StepPlan::of(*model, 64, Keep::kForBackward);
    plan.layers[0].memory = LayerMemory::kOffloadInput;
    plan.layers[1].memory = LayerMemory::kRecomputeMlp;
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
    // From the least that is needed to more than is.
    for (int64_t cap = least.total(); cap < free.total() + (1 << 16); cap += (1 << 17)) {
      CAPTURE(cap);
      request.cap = cap;
      const MemoryPlan plan = choose_plan(*model, request);
      CHECK(plan.fits);
      CHECK(plan.total() <= cap);
      CHECK((again < 0 || plan.flops.again <= again));
      again = plan.flops.again;
      for (size_t layer = 1; layer < plan.training.layers.size(); ++layer) {
        CHECK(plan.training.layers[layer].memory <= plan.training.layers[layer - 1].memory);
      }
    }
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
