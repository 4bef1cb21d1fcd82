#include "tests/kernels/job.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/float16.h"
#include "tests/kernels/values.h"

namespace graft::kernels::test {
namespace {

constexpr size_t kGuard = 256;
constexpr unsigned char kPattern = 0xC3;
// Values that repeat past this many are as good for a bench, and no problem of a test has more.
constexpr int64_t kPeriod = int64_t{1} << 18;

size_t size_of_kind(Array::Kind kind) {
  switch (kind) {
    case Array::Kind::kByte:
      return 1;
    case Array::Kind::kBfloat16:
    case Array::Kind::kBits16:
      return 2;
    case Array::Kind::kFloat32:
    case Array::Kind::kInt32:
      return 4;
    case Array::Kind::kFloat64:
    case Array::Kind::kInt64:
      return 8;
  }
  return 1;
}

size_t at_most_a_period(int64_t count) {
  return static_cast<size_t>(std::min(count, kPeriod));
}

template <class T>
float value_at(const unsigned char* bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof value);
  return static_cast<float>(value);
}

float value_of(Array::Kind kind, const unsigned char* bytes, size_t index) {
  switch (kind) {
    case Array::Kind::kFloat32:
      return value_at<float>(bytes, index);
    case Array::Kind::kFloat64:
      return value_at<double>(bytes, index);
    case Array::Kind::kInt32:
      return value_at<int32_t>(bytes, index);
    case Array::Kind::kInt64:
      return value_at<int64_t>(bytes, index);
    case Array::Kind::kByte:
      return value_at<uint8_t>(bytes, index);
    case Array::Kind::kBits16:
      return value_at<uint16_t>(bytes, index);
    case Array::Kind::kBfloat16:
      uint16_t bits;
      std::memcpy(&bits, bytes + index * sizeof bits, sizeof bits);
      return from_bf16(bits);
  }
  return 0.0f;
}

}  // namespace

const char* name_of(Input input) {
  constexpr const char* kNames[] = {"normal",   "zero",  "denormal", "outlier",
                                    "constant", "large", "huge",     "minus infinity"};
  return kNames[static_cast<int>(input)];
}

const char* name_of(graft_float_type type) {
  return type == GRAFT_F32 ? "fp32" : type == GRAFT_BF16 ? "bf16" : "fp16";
}

Problem sizes(int64_t a, int64_t b, int64_t c, int64_t d) {
  Problem problem;
  problem.a = a;
  problem.b = b;
  problem.c = c;
  problem.d = d;
  return problem;
}

Problem shifted(Problem problem) {
  problem.shifted = true;
  return problem;
}

void need(graft_status status) {
  if (status != GRAFT_OK) throw std::runtime_error(graft_last_error());
}

std::vector<float> Values::all() const {
  std::vector<float> result(static_cast<size_t>(count));
  for (size_t i = 0; i < result.size(); ++i) result[i] = period[i % period.size()];
  return result;
}

Array::Array(graft_device device,
             Kind kind,
             const std::vector<unsigned char>& period,
             size_t bytes,
             bool is_shifted)
    : device_(device),
      kind_(kind),
      bytes_(bytes),
      first_(kGuard + (is_shifted ? size_of_kind(kind) : 0)),
      size_(first_ + bytes + kGuard) {
  need(graft_device_allocate(size_, device_, &memory_));
  char* const begin = static_cast<char*>(memory_) + first_;
  need(graft_device_fill(memory_, kPattern, first_, device_, nullptr));
  need(graft_device_copy(begin, period.data(), period.size(), device_, nullptr));
  for (size_t done = period.size(); done < bytes_; done *= 2) {
    need(graft_device_copy(begin + done, begin, std::min(done, bytes_ - done), device_, nullptr));
  }
  need(graft_device_fill(begin + bytes_, kPattern, kGuard, device_, nullptr));
  need(graft_device_synchronize(device_, nullptr));
}

Array::~Array() {
  static_cast<void>(graft_device_release(memory_, device_));
}

std::vector<float> Array::values() const {
  std::vector<unsigned char> all(size_);
  need(graft_device_copy(all.data(), memory_, size_, device_, nullptr));
  need(graft_device_synchronize(device_, nullptr));
  for (size_t i = 0; i < size_; ++i) {
    const bool inside = i >= first_ && i < first_ + bytes_;
    if (!inside && all[i] != kPattern) throw std::runtime_error("a guard byte was written");
  }
  std::vector<float> result;
  for (size_t i = 0; i < bytes_ / size_of_kind(kind_); ++i) {
    result.push_back(value_of(kind_, all.data() + first_, i));
    if (kind_ != Kind::kFloat64) continue;
    double value;
    std::memcpy(&value, all.data() + first_ + i * sizeof value, sizeof value);
    result.push_back(static_cast<float>(value - static_cast<double>(result.back())));
  }
  return result;
}

template <class T>
Array* Job::add(Array::Kind kind, const std::vector<T>& period, int64_t count, bool may_shift) {
  std::vector<unsigned char> bytes(period.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), period.data(), bytes.size());
  arrays_.push_back(std::make_unique<Array>(device_, kind, bytes,
                                            static_cast<size_t>(count) * sizeof(T),
                                            may_shift && problem_->shifted));
  return arrays_.back().get();
}
template <class Convert>
Array* Job::add_rounded(Array::Kind kind, const Values& values, const Convert& convert) {
  std::vector<uint16_t> bits(values.period.size());
  std::transform(values.period.begin(), values.period.end(), bits.begin(), convert);
  return add(kind, bits, values.count, true);
}

Array* Job::elements(const Values& values) {
  return problem_->type == GRAFT_F32 ? floats(values) : bfloat16s(values);
}
Array* Job::floats(const Values& values) {
  return add(Array::Kind::kFloat32, values.period, values.count, true);
}
Array* Job::bfloat16s(const Values& values) {
  return add_rounded(Array::Kind::kBfloat16, values, to_bf16_or_nan);
}
Array* Job::doubles(int64_t count) {
  return add(Array::Kind::kFloat64, std::vector<double>(at_most_a_period(count)), count, false);
}
Array* Job::indices(const std::vector<int32_t>& values) {
  return add(Array::Kind::kInt32, values, static_cast<int64_t>(values.size()), false);
}
Array* Job::long_indices(const std::vector<int64_t>& values) {
  return add(Array::Kind::kInt64, values, static_cast<int64_t>(values.size()), false);
}
Array* Job::bytes(const std::vector<uint8_t>& values) {
  return add(Array::Kind::kByte, values, static_cast<int64_t>(values.size()), true);
}
Array* Job::bits16(int64_t count) {
  return add(Array::Kind::kBits16, std::vector<uint16_t>(at_most_a_period(count)), count, true);
}
Array* Job::halves(const Values& values) {
  return add_rounded(Array::Kind::kBits16, values, to_f16);
}
Array* Job::result(Array* array) {
  results_.push_back(array);
  return array;
}

std::vector<float> Job::run() {
  launch();
  std::vector<float> all;
  for (const Array* array : results_) {
    const std::vector<float> values = array->values();
    all.insert(all.end(), values.begin(), values.end());
  }
  // Nothing may be written outside an input either.
  for (const auto& array : arrays_) static_cast<void>(array->values());
  return all;
}

Values values_of(Input input, int64_t count, uint32_t seed) {
  Values values = random_values(count, seed);
  std::vector<float>& x = values.period;
  if (input == Input::kZero) x.assign(x.size(), 0.0f);
  if (input == Input::kConstant) x.assign(x.size(), 0.75f);
  if (input == Input::kMinusInfinity) x.assign(x.size(), -std::numeric_limits<float>::infinity());
  for (float& value : x) {
    if (input == Input::kDenormal) value *= 1e-40f;
    if (input == Input::kLarge) value *= 1e4f;
    if (input == Input::kHuge) value *= 1e30f;
  }
  if (input == Input::kOutlier && !x.empty()) x[x.size() / 2] = 3e4f;
  return values;
}

Values random_values(int64_t count, uint32_t seed, float deviation) {
  return {random_floats(std::min(count, kPeriod), seed, deviation), count};
}

Values zeros(int64_t count) {
  return {std::vector<float>(at_most_a_period(count)), count};
}

std::vector<int32_t> scattered(int64_t count, int64_t limit) {
  std::vector<int32_t> indices(static_cast<size_t>(count));
  for (size_t i = 0; i < indices.size(); ++i) {
    indices[i] = static_cast<int32_t>((i * i * 31 + i / 3) % static_cast<size_t>(limit));
  }
  return indices;
}

}  // namespace graft::kernels::test
