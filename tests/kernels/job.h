// What the cases are made of: problems, inputs, and a job that holds an operator's arrays in a
// device's memory between guard bytes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/memory.h"
#include "kernels/status.h"

namespace graft::kernels::test {

enum class Input {
  kNormal,
  kZero,
  kDenormal,
  kOutlier,
  kConstant,
  kLarge,  // up to 1e4
  kHuge,   // up to 1e30
  kMinusInfinity
};
const char* name_of(Input input);
const char* name_of(graft_float_type type);

// What a problem's sizes mean is the case's own business.
struct Problem {
  int64_t a = 1, b = 1, c = 0, d = 0;
  std::vector<int32_t> lengths = {};  // of documents
  bool shifted = false;               // arrays begin one element past an aligned place
  Input input = Input::kNormal;
  graft_float_type type = GRAFT_F32;
};
Problem sizes(int64_t a, int64_t b = 1, int64_t c = 0, int64_t d = 0);
Problem shifted(Problem problem);

// Throws what graft_last_error() has.
void need(graft_status status);

// `count` values: those of `period` again and again, so that the arrays of a bench are ready soon.
struct Values {
  std::vector<float> period;
  int64_t count;
  Values(std::vector<float> all)  // NOLINT(google-explicit-constructor): any vector is one
      : period(std::move(all)), count(static_cast<int64_t>(period.size())) {}
  Values(std::vector<float> some, int64_t of) : period(std::move(some)), count(of) {}
  std::vector<float> all() const;
};

// An array in a device's memory between guard bytes.
class Array {
 public:
  enum class Kind { kFloat32, kBfloat16, kFloat64, kInt32, kInt64, kByte, kBits16 };

  // `period` again and again until there are `bytes`.
  Array(graft_device device,
        Kind kind,
        const std::vector<unsigned char>& period,
        size_t bytes,
        bool is_shifted);
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void* data() const { return static_cast<unsigned char*>(memory_) + first_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }
  float* floats() const { return as<float>(); }

  // What the device left, widened to float32 (or as whole numbers; a double as its float32 and what
  // that lacks), after a look at the guard bytes: throws when one was written.
  std::vector<float> values() const;

 private:
  graft_device device_;
  Kind kind_;
  size_t bytes_, first_, size_ = 0;
  void* memory_ = nullptr;
};

// Arrays and the launch of one operator over them.
class Job {
 public:
  Job(graft_device device, const Problem& problem) : device_(device), problem_(&problem) {}

  // Arrays in the device's memory. elements(): of the problem's type.
  Array* elements(const Values& values);
  Array* floats(const Values& values);
  Array* bfloat16s(const Values& values);
  Array* doubles(int64_t count);
  Array* indices(const std::vector<int32_t>& values);
  Array* long_indices(const std::vector<int64_t>& values);
  Array* bytes(const std::vector<uint8_t>& values);
  Array* bits16(int64_t count);
  Array* halves(const Values& values);  // IEEE halves, as their bits
  // The same array, whose values are a part of the result.
  Array* result(Array* array);

  std::function<void()> launch;

  // Runs launch() once and gives all results; throws for a failed launch or a written guard byte.
  std::vector<float> run();

 private:
  template <class T>
  Array* add(Array::Kind kind, const std::vector<T>& period, int64_t count, bool may_shift);
  template <class Convert>
  Array* add_rounded(Array::Kind kind, const Values& values, const Convert& convert);
  graft_device device_;
  const Problem* problem_;  // lives as long as the job
  std::vector<std::unique_ptr<Array>> arrays_;
  std::vector<Array*> results_;
};

// `count` values of the kind; the same for the same seed.
Values values_of(Input input, int64_t count, uint32_t seed);
Values random_values(int64_t count, uint32_t seed, float deviation = 1.0f);
Values zeros(int64_t count);
// `count` distinct-looking indices below `limit`.
std::vector<int32_t> scattered(int64_t count, int64_t limit);

}  // namespace graft::kernels::test
