// Attention of the libraries against graft's own kernel. Needs a GPU.
#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <random>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "kernels/float16.h"
#include "kernels/memory.h"
#include "train/engine/cudnn_flash.h"
#include "train/engine/flash.h"
#include "train/engine/flash_check.h"
#include "train/engine/torch_flash.h"

namespace {

using namespace graft;           // NOLINT(google-build-using-namespace)
using namespace graft::kernels;  // NOLINT(google-build-using-namespace)
using namespace graft::train;    // NOLINT(google-build-using-namespace)

constexpr Device kGpu{GRAFT_CUDA, nullptr};
constexpr Device kEmulated{GRAFT_EMU, nullptr};

struct Problem {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, head_dim, window, gap;
};
std::ostream& operator<<(std::ostream& out, const Problem& p) {
  for (const int32_t length : p.lengths) out << length << ' ';
  return out << "heads " << p.heads << '/' << p.kv_heads << " of " << p.head_dim << " window "
             << p.window << " gap " << p.gap;
}

using Values = std::vector<uint16_t>;

// A copy in the GPU's memory.
template <typename T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values) : count_(values.size()) {
    void* memory = nullptr;
    check(graft_device_allocate(count_ * sizeof(T), GRAFT_CUDA, &memory));
    data_ = static_cast<T*>(memory);
    kGpu.copy(data_, values.data(), count_ * sizeof(T));
    kGpu.wait();
  }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  ~OnGpu() { graft_device_release(data_, GRAFT_CUDA); }
  T* get() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    kGpu.copy(values.data(), data_, count_ * sizeof(T));
    kGpu.wait();
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

struct Arrays {
  Values q, k, v, dout, out, dq, dk, dv;
};

graft_attention_shape shape_of(const Problem& p, const std::vector<int32_t>& ends) {
  graft_attention_shape shape{};
  shape.documents = static_cast<int64_t>(ends.size()) - 1;
  shape.cu_seqlens = ends.data();
  shape.heads = p.heads;
  shape.kv_heads = p.kv_heads;
  shape.head_dim = p.head_dim;
  shape.q_stride = p.heads * p.head_dim + p.gap;
  shape.k_stride = shape.v_stride = p.kv_heads * p.head_dim + p.gap;
  shape.out_stride = p.heads * p.head_dim + p.gap;
  shape.scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
  shape.window = p.window;
  shape.tokens = ends.back();
  shape.type = GRAFT_BF16;
  return shape;
}

Values random_values(uint64_t seed, int64_t count) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Values values(static_cast<size_t>(count));
  for (uint16_t& value : values) value = to_bf16(normal(random));
  return values;
}

Arrays make_arrays(const graft_attention_shape& shape) {
  Arrays a;
  a.q = random_values(1, shape.tokens * shape.q_stride);
  a.k = random_values(2, shape.tokens * shape.k_stride);
  a.v = random_values(3, shape.tokens * shape.v_stride);
  a.dout = random_values(4, shape.tokens * shape.out_stride);
  a.out.assign(a.dout.size(), 0);
  a.dq.assign(a.q.size(), 0);
  a.dk.assign(a.k.size(), 0);
  a.dv.assign(a.v.size(), 0);
  return a;
}

void run_processor(const graft_attention_shape& shape, Arrays& a) {
  std::vector<float> lse(static_cast<size_t>(shape.tokens * shape.heads));
  std::vector<std::byte> workspace(graft_attention_workspace_bytes(&shape, GRAFT_CPU) + 64);
  auto* const aligned = reinterpret_cast<std::byte*>(
      (reinterpret_cast<uintptr_t>(workspace.data()) + 63) & ~uintptr_t{63});
  check(graft_attention_forward(&shape, a.q.data(), a.k.data(), a.v.data(), a.out.data(),
                                lse.data()));
  check(graft_attention_backward(&shape, a.q.data(), a.k.data(), a.v.data(), a.out.data(),
                                 lse.data(), a.dout.data(), a.dq.data(), a.dk.data(), a.dv.data(),
                                 aligned, workspace.size() - 64));
}

void run_library(Flash& flash,
                 graft_attention_shape shape,
                 const std::vector<int32_t>& ends,
                 int64_t room,
                 Arrays& a) {
  Batch batch;
  batch.cu_seqlens = ends;
  const OnGpu<int32_t> gpu_ends(ends);
  const OnGpu<uint16_t> q(a.q), k(a.k), v(a.v), dout(a.dout), out(a.out), dq(a.dq), dk(a.dk),
      dv(a.dv);
  const OnGpu<float> lse(std::vector<float>(static_cast<size_t>(shape.tokens * shape.heads)));
  const OnGpu<std::byte> workspace(std::vector<std::byte>(static_cast<size_t>(room)));
  shape.cu_seqlens = gpu_ends.get();
  flash.begin(batch);
  const FlashArrays arrays{q.get(), k.get(), v.get(), out.get(), lse.get()};
  flash.forward(shape, arrays);
  flash.backward(shape, arrays, dout.get(), {dq.get(), dk.get(), dv.get(), workspace.get(), room});
  kGpu.wait();
  a.out = out.values();
  a.dq = dq.values();
  a.dk = dk.values();
  a.dv = dv.values();
}

// |a - b| / |b|.
double distance(const Values& a, const Values& b) {
  double difference = 0, whole = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = from_bf16(a[i]), y = from_bf16(b[i]);
    difference += (x - y) * (x - y);
    whole += y * y;
  }
  return std::sqrt(difference / whole);
}

const Problem kProblems[] = {
    {{64}, 2, 2, 64, 0, 0},
    {{200, 1, 77, 128, 300}, 4, 2, 64, 0, 0},
    {{200, 1, 77, 128, 300}, 8, 2, 128, 0, 16},
    {{513, 40, 3}, 6, 1, 96, 0, 8},
    {{700, 90, 260}, 4, 4, 64, 100, 16},
    {{2048, 2048}, 8, 2, 128, 0, 0},
    {{1, 1, 1, 1, 2}, 4, 2, 64, 0, 0},
    {{30, 260, 17, 130, 500, 90, 1, 128, 129, 255, 64, 700}, 4, 2, 32, 0, 24},
    {{100, 50}, 2, 1, 16, 0, 8},
};

// Both round scores' exponentials, their gradients and results to bfloat16, and own ones do not the
// former: three roundings of at most 2^-8 a side.
constexpr double kApart = 3 * 0x1p-8;

using Load = std::unique_ptr<Flash>(const FlashExtent&, bool, std::string*);

FlashExtent extent_of(const graft_attention_shape& shape, int64_t longest) {
  FlashExtent extent;
  extent.tokens = shape.tokens + 100;
  extent.longest = longest;
  extent.heads = shape.heads;
  extent.kv_heads = shape.kv_heads;
  extent.head_dim = shape.head_dim;
  extent.q_stride = shape.q_stride;
  return extent;
}

void check_library(const std::string& name, const std::function<Load>& load) {
  for (const bool deterministic : {true, false}) {
    for (const Problem& p : kProblems) {
      std::vector<int32_t> ends = {0};
      for (const int32_t length : p.lengths) ends.push_back(ends.back() + length);
      const graft_attention_shape shape = shape_of(p, ends);
      const FlashExtent extent =
          extent_of(shape, *std::max_element(p.lengths.begin(), p.lengths.end()));
      std::string reason;
      const std::unique_ptr<Flash> flash = load(extent, deterministic, &reason);
      if (flash == nullptr) {
        std::cout << "SKIPPED: " << name << ": " << reason << "\n";
        return;
      }
      CHECK(flash_agrees(*flash, kGpu, extent, &reason));
      if (!reason.empty()) std::cout << flash->name() << ": " << reason << "\n";
      INFO(name << (deterministic ? ", deterministic: " : ", any order: ") << p);
      Arrays own = make_arrays(shape), first = own, second = own;
      run_processor(shape, own);
      run_library(*flash, shape, ends, extent.workspace_bytes(deterministic), first);
      run_library(*flash, shape, ends, 64, second);  // the library's own memory
      CHECK(distance(first.out, own.out) <= kApart);
      CHECK(distance(first.dq, own.dq) <= kApart);
      CHECK(distance(first.dk, own.dk) <= kApart);
      CHECK(distance(first.dv, own.dv) <= kApart);
      CHECK(first.out == second.out);
      if (deterministic) {
        CHECK(first.dq == second.dq);
        CHECK(first.dk == second.dk);
        CHECK(first.dv == second.dv);
      }
    }
  }
}

}  // namespace

TEST_CASE("flash: libraries' attention is that of graft's own kernel", "[train][cuda][gpu]") {
  check_library("cuDNN", [](const FlashExtent& extent, bool deterministic, std::string* reason) {
    return load_cudnn_flash(kGpu, extent, deterministic, reason);
  });
  check_library("LibTorch", [](const FlashExtent&, bool deterministic, std::string* reason) {
    return load_torch_flash(kGpu, deterministic, reason);
  });
}

namespace {

// Graft's own kernel on the emulated GPU in the place of a library, with a fault.
class Faulty final : public Flash {
 public:
  enum class Fault { kNone, kPlace, kNan, kError };

  explicit Faulty(Fault fault) : fault_(fault) {}
  std::string name() const override { return "another's attention"; }
  void begin(const Batch& /*batch*/) override {}
  void forward(const graft_attention_shape& shape, const FlashArrays& arrays) override {
    if (fault_ == Fault::kError) fail(ExitCode::kDevice, "no such graph");
    check(graft_attention_forward(&shape, arrays.q, arrays.k, arrays.v, arrays.out, arrays.lse,
                                  kEmulated.kind));
  }
  void backward(const graft_attention_shape& shape,
                const FlashArrays& arrays,
                const uint16_t* dout,
                const FlashGradients& gradients) override {
    const size_t bytes = graft_attention_workspace_bytes(&shape, kEmulated.kind);
    void* workspace = nullptr;
    check(graft_device_allocate(bytes, kEmulated.kind, &workspace));
    check(graft_attention_backward(&shape, arrays.q, arrays.k, arrays.v, arrays.out, arrays.lse,
                                   dout, gradients.dq, gradients.dk, gradients.dv, workspace, bytes,
                                   kEmulated.kind));
    graft_device_release(workspace, kEmulated.kind);
    // The host does not reach into a device's memory.
    const auto change = [&](uint16_t* values, const std::function<void(Values&)>& body) {
      Values copy(static_cast<size_t>(shape.tokens * shape.k_stride));
      const size_t size = copy.size() * sizeof(uint16_t);
      kEmulated.copy(copy.data(), values, size);
      body(copy);
      kEmulated.copy(values, copy.data(), size);
    };
    // As cuDNN 9.14 did: another document's gradients not where they belong.
    if (fault_ == Fault::kPlace) {
      change(gradients.dk, [&](Values& dk) {
        std::rotate(dk.begin() + dk.size() / 2, dk.end() - shape.k_stride, dk.end());
      });
    }
    if (fault_ == Fault::kNan) change(gradients.dq, [](Values& dq) { dq[0] = 0x7fc0; });
  }

 private:
  Fault fault_;
};

}  // namespace

TEST_CASE("flash: a library that puts a gradient elsewhere is not taken", "[train]") {
  FlashExtent extent;
  extent.tokens = extent.longest = 256;
  extent.heads = 4;
  extent.kv_heads = 2;
  extent.head_dim = 16;
  extent.q_stride = 128;
  const auto reason_for = [&](Faulty::Fault fault) {
    Faulty flash(fault);
    std::string reason;
    const bool agrees = flash_agrees(flash, kEmulated, extent, &reason);
    CHECK(agrees == reason.empty());
    return reason;
  };
  CHECK(reason_for(Faulty::Fault::kNone).empty());
  using Catch::Matchers::StartsWith;
  CHECK_THAT(reason_for(Faulty::Fault::kPlace),
             StartsWith("another's attention gives another dk than graft's own, "));
  CHECK_THAT(reason_for(Faulty::Fault::kNan),
             StartsWith("another's attention gives another dq than graft's own, nan"));
  CHECK_THAT(reason_for(Faulty::Fault::kError), Catch::Matchers::Contains("no such graph"));
  extent.tokens = extent.longest = 1;
  CHECK(reason_for(Faulty::Fault::kNone).empty());
}

TEST_CASE("flash: without a GPU there is none, and the reason is told", "[train]") {
  std::string reason;
  ModelConfig config;
  config.heads = config.kv_heads = 2;
  config.head_dim = 64;
  CHECK(Flash::load({GRAFT_CPU, nullptr}, config, {}, true, &reason) == nullptr);
  CHECK(reason == "no GPU");
}
