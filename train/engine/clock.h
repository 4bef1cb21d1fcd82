// Where a step's time goes.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

#include "train/engine/device.h"

namespace graft::train {

enum class Work {
  kProducts,  // with the base's weights; the adapters' part of y and dx is added in the same pass
  kDecode,    // of 4-bit weights
  kAdapters,  // other products with A and B, their gradients, dropout
  kAttention,
  kRows,  // norms, rotations, activations, routing, additions
  kHead,  // its products
  kLoss,
  kCopies,  // to and from the host
  kOptimizer,
};
constexpr std::array<const char*, 9> kWorkNames = {
    "products", "decode", "adapters", "attention", "rows", "head", "loss", "copies", "optimizer"};

// Each lap gives the time since the last one to what was done in it. Of a device that works behind
// the host's back that is the time of asking for it, unless each lap waits for the device.
class StepClock {
 public:
  // nullptr = laps do not wait.
  void wait_for(const Device* device) { device_ = device; }
  void start() {
    if (device_ != nullptr) device_->wait();
    last_ = std::chrono::steady_clock::now();
  }
  void lap(Work work) {
    if (device_ != nullptr) device_->wait();
    const auto now = std::chrono::steady_clock::now();
    seconds_[static_cast<size_t>(work)] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  double seconds(Work work) const { return seconds_[static_cast<size_t>(work)]; }
  void clear() { seconds_.fill(0); }

 private:
  const Device* device_ = nullptr;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  std::array<double, kWorkNames.size()> seconds_{};
};

}  // namespace graft::train
