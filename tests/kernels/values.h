// Random values, the same for the same seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace graft::kernels::test {

// Past 2^20 values they repeat, which nothing notices and large benchmarks are ready sooner.
inline std::vector<float> random_floats(int64_t count, uint32_t seed, float deviation = 1.0f) {
  constexpr int64_t kDistinct = int64_t{1} << 20;
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  const auto distinct = values.begin() + std::min(count, kDistinct);
  std::generate(values.begin(), distinct, [&] { return normal(generator); });
  for (size_t i = static_cast<size_t>(kDistinct); i < values.size(); ++i) {
    values[i] = values[i - static_cast<size_t>(kDistinct)];
  }
  return values;
}

}  // namespace graft::kernels::test
