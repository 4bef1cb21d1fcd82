#include "train/engine/flash_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "kernels/float16.h"
#include "kernels/memory.h"

namespace graft::train {
namespace {

using kernels::from_bf16;
using kernels::to_bf16;

// Tokens of the documents: neither a tile of 128 nor, together, more than one. One length for
// cuDNN, which builds a graph for each power of two from 128.
constexpr int64_t kFirst = 40, kSecond = 77;
// Three roundings to bfloat16 on each side are at most 2^-6.4 apart (tests/train/gpu); keys of
// another token give 1.
constexpr double kApart = 0x1p-5;

class OnDevice {
 public:
  OnDevice(const Device& device, size_t bytes) : device_(device), bytes_(bytes) {
    void* memory = nullptr;
    check(graft_device_allocate(bytes, device.kind, &memory));
    memory_ = static_cast<std::byte*>(memory);
  }
  OnDevice(const Device& device, const std::vector<uint16_t>& values)
      : OnDevice(device, values.size() * sizeof(uint16_t)) {
    device.copy(memory_, values.data(), bytes_);
    device.wait();
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { graft_device_release(memory_, device_.kind); }

  template <typename T = uint16_t>
  T* as() const {
    return reinterpret_cast<T*>(memory_);
  }
  std::vector<uint16_t> values() const {
    std::vector<uint16_t> values(bytes_ / sizeof(uint16_t));
    device_.copy(values.data(), memory_, values.size() * sizeof(uint16_t));
    device_.wait();
    return values;
  }

 private:
  Device device_;
  std::byte* memory_ = nullptr;
  size_t bytes_;
};

// Uniform in [-1, 1), of a linear congruential generator (Knuth's MMIX).
std::vector<uint16_t> values_of(uint64_t seed, int64_t count) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& value : values) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    value = to_bf16(static_cast<float>(static_cast<int32_t>(seed >> 32)) * 0x1p-31F);
  }
  return values;
}

// |a - b| / |b|; a b of values below 2^-12 (gradients of a score that is alone are 0) counts as of
// that size.
double distance(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  double difference = 0, whole = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = from_bf16(a[i]), y = from_bf16(b[i]);
    difference += (x - y) * (x - y);
    whole += y * y;
  }
  return std::sqrt(difference / std::max(whole, 0x1p-24 * static_cast<double>(a.size())));
}

struct Results {
  std::vector<uint16_t> out, dq, dk, dv;
};

class Problem {
 public:
  Problem(const Device& device, const FlashExtent& extent)
      : device_(device),
        extent_(extent),
        batch_(batch_of(extent)),
        ends_(device, batch_.cu_seqlens.size() * sizeof(int32_t)),
        q_(device, values_of(1, count(extent.q_stride))),
        k_(device, values_of(2, count(extent.q_stride))),
        v_(device, values_of(3, count(extent.q_stride))),
        dout_(device, values_of(4, count(extent.q_stride))) {
    device.copy(ends_.as<int32_t>(), batch_.cu_seqlens.data(),
                batch_.cu_seqlens.size() * sizeof(int32_t));
    device.wait();
    shape_.documents = static_cast<int64_t>(batch_.cu_seqlens.size()) - 1;
    shape_.cu_seqlens = ends_.as<int32_t>();
    shape_.heads = extent.heads;
    shape_.kv_heads = extent.kv_heads;
    shape_.head_dim = extent.head_dim;
    shape_.q_stride = shape_.k_stride = shape_.v_stride = shape_.out_stride = extent.q_stride;
    shape_.scale = 1 / std::sqrt(static_cast<float>(extent.head_dim));
    shape_.tokens = batch_.cu_seqlens.back();
    shape_.type = GRAFT_BF16;
  }

  Results library(Flash& flash) const {
    return run(static_cast<size_t>(64), [&](const Outputs& to, const OnDevice& workspace) {
      flash.begin(batch_);
      const FlashArrays arrays{q_.as(), k_.as(), v_.as(), to.out.as(), to.lse.as<float>()};
      flash.forward(shape_, arrays);
      flash.backward(shape_, arrays, dout_.as(),
                     {to.dq.as(), to.dk.as(), to.dv.as(), workspace.as<std::byte>(), 64});
    });
  }

  Results own() const {
    const size_t bytes = graft_attention_workspace_bytes(&shape_, device_.kind);
    return run(std::max<size_t>(bytes, 64), [&](const Outputs& to, const OnDevice& workspace) {
      check(graft_attention_forward(&shape_, q_.as(), k_.as(), v_.as(), to.out.as(),
                                    to.lse.as<float>(), device_.kind, device_.stream));
      check(graft_attention_backward(&shape_, q_.as(), k_.as(), v_.as(), to.out.as(),
                                     to.lse.as<float>(), dout_.as(), to.dq.as(), to.dk.as(),
                                     to.dv.as(), workspace.as<std::byte>(), bytes, device_.kind,
                                     device_.stream));
    });
  }

 private:
  struct Outputs {
    OnDevice out, dq, dk, dv, lse;
  };

  static Batch batch_of(const FlashExtent& extent) {
    Batch batch;
    batch.cu_seqlens = {0};
    for (const int64_t length : {kFirst, kSecond}) {
      const int64_t begin = batch.cu_seqlens.back();
      const int64_t rest = std::min({length, extent.longest, extent.tokens - begin});
      if (rest > 0) batch.cu_seqlens.push_back(static_cast<int32_t>(begin + rest));
    }
    return batch;
  }
  int64_t count(int64_t stride) const { return batch_.cu_seqlens.back() * stride; }

  template <typename Body>
  Results run(size_t workspace_bytes, const Body& body) const {
    const std::vector<uint16_t> zeros(static_cast<size_t>(count(extent_.q_stride)));
    const Outputs to{{device_, zeros},
                     {device_, zeros},
                     {device_, zeros},
                     {device_, zeros},
                     {device_, static_cast<size_t>(count(extent_.heads)) * sizeof(float)}};
    const OnDevice workspace(device_, workspace_bytes);
    body(to, workspace);
    device_.wait();
    return {to.out.values(), to.dq.values(), to.dk.values(), to.dv.values()};
  }

  Device device_;
  FlashExtent extent_;
  Batch batch_;
  OnDevice ends_, q_, k_, v_, dout_;
  graft_attention_shape shape_{};
};

}  // namespace

FlashExtent check_extent(const FlashExtent& extent) {
  FlashExtent small = extent;
  small.longest = std::min(extent.longest, kSecond);
  small.tokens = std::min(extent.tokens, kFirst + kSecond);
  return small;
}

bool flash_agrees(Flash& flash,
                  const Device& device,
                  const FlashExtent& extent,
                  std::string* reason) {
  try {
    const Problem problem(device, extent);
    const Results theirs = problem.library(flash), own = problem.own();
    const std::pair<const char*, double> apart[] = {{"result", distance(theirs.out, own.out)},
                                                    {"dq", distance(theirs.dq, own.dq)},
                                                    {"dk", distance(theirs.dk, own.dk)},
                                                    {"dv", distance(theirs.dv, own.dv)}};
    for (const auto& [what, distance] : apart) {
      if (distance <= kApart) continue;  // not for NaN
      *reason = flash.name() + " gives another " + what + " than graft's own, " +
                std::to_string(distance) + " of its size apart";
      return false;
    }
    return true;
  } catch (const std::exception& error) {
    *reason = error.what();
    return false;
  }
}

}  // namespace graft::train
