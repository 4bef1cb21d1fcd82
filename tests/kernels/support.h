// What the kernel tests share: guarded buffers, random inputs, error bounds and every combination
// of instruction set and thread count.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <omp.h>

#include "kernels/simd/table.h"
#include "kernels/status.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {

// Half of the distance between 1 and the next float32: the most that one rounding errs, relatively.
constexpr double kUnit = 5.9604644775390625e-8;

// An array between guard bytes, `shift` elements past a 64-byte boundary. intact() tells whether a
// kernel wrote outside.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count, size_t shift = 1)
      : count_(count), bytes_(2 * kGuard + (count + shift) * sizeof(T) + 64, kPattern) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes_.data()) + kGuard;
    offset_ =
        (begin + 63) / 64 * 64 - reinterpret_cast<uintptr_t>(bytes_.data()) + shift * sizeof(T);
  }
  Guarded(const std::vector<T>& values, size_t shift = 1) : Guarded(values.size(), shift) {
    std::copy(values.begin(), values.end(), data());
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + offset_); }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data()[i]; }
  std::vector<T> values() { return std::vector<T>(data(), data() + count_); }
  bool intact() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const bool inside = i >= offset_ && i < offset_ + count_ * sizeof(T);
      if (!inside && bytes_[i] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 512;
  static constexpr unsigned char kPattern = 0xC3;
  size_t count_, offset_;
  std::vector<unsigned char> bytes_;
};

inline std::vector<double> widen(const std::vector<float>& values) {
  return std::vector<double>(values.begin(), values.end());
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The first element whose error is above its bound, as text; "" when there is none.
inline std::string outside(const std::vector<float>& got,
                           const std::vector<double>& expected,
                           const std::vector<double>& bound) {
  if (got.size() != expected.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    if (!(error <= bound[i])) {
      return "element " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", expected " +
             std::to_string(expected[i]) + ", error " + std::to_string(error / bound[i]) +
             " of the bound";
    }
  }
  return "";
}

// Instruction sets of this machine; the portable one always.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
  for (const InstructionSet set : {InstructionSet::kGeneric, InstructionSet::kAvx2,
                                   InstructionSet::kAvx512, InstructionSet::kAvx512Bf16}) {
    if (instruction_set_available(set)) sets.push_back(set);
  }
  return sets;
}

// Puts the best instruction set and the thread count back.
class Environment {
 public:
  Environment() : threads_(omp_get_max_threads()) {}
  ~Environment() {
    use_instruction_set(instruction_sets().back());
    omp_set_num_threads(threads_);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  int threads_;
};

// Calls compute() -> std::vector<float> under every instruction set with 1, 2 and 3 threads and
// requires one result to the bit; gives it.
template <class Compute>
std::vector<float> same_everywhere(const Compute& compute) {
  const Environment restore;
  std::vector<float> first;
  bool have_first = false;
  for (const InstructionSet set : instruction_sets()) {
    for (const int threads : {1, 2, 3}) {
      use_instruction_set(set);
      omp_set_num_threads(threads);
      const std::vector<float> result = compute();
      if (!have_first) first = result;
      have_first = true;
      INFO("instruction set " << table().name << ", " << threads << " threads");
      REQUIRE(same_bits(first, result));
    }
  }
  return first;
}

// Several arrays as one, for same_everywhere.
inline std::vector<float> joined(std::initializer_list<std::vector<float>> parts) {
  std::vector<float> all;
  for (const std::vector<float>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace graft::kernels::test
