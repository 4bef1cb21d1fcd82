// Allocations of the engine, counted: every one of the program goes through the functions below.
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include <omp.h>

#include <c10/core/CPUAllocator.h>

#include "core/hash.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/engine/planner.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"
#include "train/model/lora.h"
#include "train/model/new_tokens.h"
#include "train/model/weights.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

void count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// The C library's own names of what is replaced here; operator new comes through malloc.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(size_t number, size_t size) {
  count();
  return __libc_calloc(number, size);
}
void* realloc(void* memory, size_t size) {
  count();
  return __libc_realloc(memory, size);
}
void* memalign(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  count();
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

// LibTorch's allocator, with the bytes that are asked of it.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}
  c10::DataPtr allocate(size_t bytes) override {
    requested += static_cast<int64_t>(bytes);
    return inner_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t count) const override {
    inner_->copy_data(to, from, count);
  }
  int64_t requested = 0;

 private:
  c10::Allocator* inner_;
};

CountingAllocator& counted_memory() {
  static CountingAllocator allocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, 200);
  return allocator;
}

Batch rows(int64_t count, int64_t length, uint64_t seed) {
  const float weights[2] = {0.0F, 1.0F};
  const Philox random(seed, 1);
  Batch batch;
  batch.clear();
  for (int64_t row = 0; row < count; ++row) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < length; ++t) {
      ids.push_back(
          static_cast<int32_t>(random.below(static_cast<uint64_t>(row * length + t), 37)));
    }
    batch.begin_row();
    batch.add(ids, std::vector<uint8_t>(ids.size(), 1), weights, row * length);
  }
  return batch;
}

struct Method {
  const char* name;
  bool quantizes, everything;
  graft_float_type operands = GRAFT_F32;
  // Trained whole beside the adapter; what is not stays in bfloat16.
  std::vector<std::string> saved = {};
  bool adds_tokens = false;
  bool narrow = false;

  // Whether the family's model can be narrow or need not be.
  bool fits(std::string_view family) const {
    return !narrow || family == "phi3" || family == "gemma2";
  }
  ModelConfig config(const std::string& base) const {
    ModelConfig config = read_model_config(base);
    if (adds_tokens) add_tokens(config, config.vocab_size, {{3, 5, 7}, {9}});
    return config;
  }
  LoraSettings adapter() const {
    if (narrow) return {.rank = 8, .alpha = 8, .targets = {"all-linear"}};
    return {.rank = 4, .alpha = 8, .dropout = 0.1, .targets = {"all-linear"}, .saved = saved};
  }
  std::unique_ptr<Model> load(const std::string& base) const {
    return load_model(config(base), base, quantizes ? Precision::kNf4 : Precision::kFull, {},
                      {operands, saved});
  }
};
const Method kMethods[] = {
    {"lora", false, false},
    {"qlora", true, false},
    {"none", false, true},
    {"lora in bf16", false, false, GRAFT_BF16},
    {"lora in bf16 with a trained head", false, false, GRAFT_BF16, {"lm_head"}},
    {"qlora in bf16", true, false, GRAFT_BF16},
    {"lora with new tokens", false, false, GRAFT_F32, {}, true},
    {"lora in bf16 with new tokens and a trained head",
     false,
     false,
     GRAFT_BF16,
     {"lm_head"},
     true},
    {"narrow lora", false, false, GRAFT_BF16, {}, false, true},
    {"narrow qlora", true, false, GRAFT_BF16, {}, false, true}};

std::unique_ptr<Model> made(const test::TinyFamily& family, const Method& method) {
  const test::TempDir dir;
  const std::string config = test::write_family_config(dir.path(), family, 4);
  auto model = test::make_rough_model(config, 7);
  save_model(*model, config, dir.file("base"));
  model = method.load(dir.file("base"));
  if (method.everything) {
    train_everything(*model);
  } else {
    add_lora(*model, method.adapter(), 1);
  }
  model->narrow = method.narrow;
  if (method.narrow) extend_weights(*model);
  return model;
}

// Choices that use every kind of buffer.
void mix(StepPlan& plan, bool decodes) {
  plan.layers[0].memory = LayerMemory::kOffloadInput;
  plan.layers[1].memory = LayerMemory::kRecomputeInput;
  plan.layers[2] = {LayerMemory::kRecomputeMlp, decodes};
}

}  // namespace

TEST_CASE("memory: steps after the first allocate nothing", "[train][memory]") {
  for (const char* family : {"llama", "gemma2", "mixtral"}) {
    for (const Method& method : kMethods) {
      CAPTURE(family, method.name);
      if (!method.fits(family)) continue;
      if (method.operands == GRAFT_BF16 && !method.narrow && std::string_view(family) != "llama") {
        continue;
      }
      const auto model = made(test::tiny_family(family), method);
      StepPlan plan = StepPlan::of(*model, 2 * 300, Keep::kForBackward);
      mix(plan, method.quantizes);
      Decoder decoder(*model, plan);
      AdamW optimizer(model->trained);
      const Batch batches[] = {rows(2, 300, 1), rows(2, 300, 2)};
      const auto step = [&](int64_t number) {
        optimizer.zero_gradients();
        HeadResult sums;
        for (const Batch& batch : batches) {
          const float* residual = decoder.forward(batch, static_cast<uint64_t>(number));
          sums = decoder.head_loss(batch, residual, 1e-3, decoder.gradient_buffer(), nullptr, sums);
          decoder.backward(batch, decoder.gradient_buffer());
        }
        decoder.finish_gradients();
        return optimizer.step({}, 1e-4, sums.loss_sum * 1e-3);
      };
      // Which thread takes a piece of work depends on how busy the machine is, and a thread's
      // scratch grows with the first piece that needs it: each thread computes a whole step by
      // itself.
#pragma omp parallel
      {
#pragma omp critical(whole_step)
        step(1);
      }
      step(1);
      allocations = 0;
      counting = true;
      bool skipped = false;
      for (int64_t number = 2; number <= 4; ++number) skipped = step(number).skipped || skipped;
      counting = false;
      CHECK(allocations == 0);
      CHECK_FALSE(skipped);
    }
  }
}

TEST_CASE("memory: the counter counts", "[train][memory]") {
  allocations = 0;
  counting = true;
  const std::vector<int> values(1000, 1);
  counting = false;
  CHECK(allocations == 1);
  CHECK(values[999] == 1);
}

TEST_CASE("memory: the bytes that are asked for are the plan's, exactly", "[train][memory]") {
  CountingAllocator& memory = counted_memory();
  for (const char* family : {"llama", "phi3", "gemma2", "mixtral"}) {
    for (const Method& method : kMethods) {
      CAPTURE(family, method.name);
      if (!method.fits(family)) continue;
      const test::TempDir dir;
      const std::string config =
          test::write_family_config(dir.path(), test::tiny_family(family), 4);
      // Before anything is loaded.
      const auto shapes = empty_model(method.config(config));
      if (method.operands == GRAFT_BF16) round_operands(*shapes, method.saved);
      if (!method.everything) {
        add_lora_shapes(*shapes, method.adapter(),
                        method.quantizes ? Precision::kNf4 : Precision::kFull);
      }
      shapes->narrow = method.narrow;
      const PlanRequest request = {.rows = 2,
                                   .sequence_len = 100,
                                   .quantizes = method.quantizes,
                                   .trains_everything = method.everything};
      StepPlan step = choose_plan(*shapes, request).training;
      mix(step, method.quantizes);
      const MemoryPlan plan = price_plan(*shapes, request, step);

      save_model(*test::make_rough_model(config, 7), config, dir.file("base"));
      memory.requested = 0;
      const auto model = method.load(dir.file("base"));
      const bool extends = method.narrow && !method.quantizes;
      CHECK((memory.requested == plan.weights) != extends);
      CHECK((model->base_bytes() == plan.weights) != extends);
      memory.requested = 0;
      if (method.everything) {
        train_everything(*model);
      } else {
        add_lora(*model, method.adapter(), 1);
      }
      CHECK(memory.requested == plan.trained + plan.gradients);
      model->narrow = method.narrow;
      if (extends) {
        // The linears of one input with room for their pairs of rank 8, in bfloat16.
        int64_t extended = 0;
        for (const Layer& layer : model->layers) {
          for (const std::vector<Linear>& linears :
               {layer.qkv, {layer.o}, layer.mlps[0].in, {layer.mlps[0].down}}) {
            int64_t out = 0, rank = 0;
            for (const Linear& one : linears) {
              out += one.out;
              rank += 8;
            }
            extended += 2 * (out + rank) * (linears[0].in + rank);
          }
        }
        memory.requested = 0;
        extend_weights(*model);
        CHECK(memory.requested == extended);
        CHECK(model->base_bytes() == plan.weights);
      }
      memory.requested = 0;
      const AdamW optimizer(model->trained);
      CHECK(memory.requested == plan.moments);
      memory.requested = 0;
      const Layout layouts[] = {plan_layout(*model, plan.training),
                                plan_layout(*model, plan.evaluation)};
      const auto arena =
          std::make_shared<const Arena>(std::vector<const Layout*>{&layouts[0], &layouts[1]});
      Decoder decoder(*model, plan.training, {}, arena);
      const Decoder evaluation(*model, plan.evaluation, {}, arena);
      CHECK(memory.requested == plan.buffers() + plan.decoded);
      // And nothing while it runs, once the rotations' frequencies are known.
      const Batch batch = rows(2, 100, 1);
      decoder.forward(batch, 1);
      memory.requested = 0;
      const float* residual = decoder.forward(batch, 1);
      decoder.head_loss(batch, residual, 1e-3, decoder.gradient_buffer(), nullptr);
      decoder.backward(batch, decoder.gradient_buffer());
      CHECK(memory.requested == 0);
    }
  }
}
