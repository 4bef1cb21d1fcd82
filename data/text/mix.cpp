#include "data/text/mix.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/packing.h"

namespace graft::data {
namespace {

void check(const MixSource& source) {
  const bool is_finite = std::isfinite(source.repeat) && std::isfinite(source.weight);
  if (!is_finite || source.repeat < 0 || source.weight < 0 || source.budget < 0) {
    fail(ExitCode::kUsage, "repeat, weight and budget must be positive numbers", source.name,
         "correct the dataset's entry");
  }
  const int given =
      (source.repeat > 0 ? 1 : 0) + (source.weight > 0 ? 1 : 0) + (source.budget > 0 ? 1 : 0);
  if (given > 1) {
    fail(ExitCode::kUsage, "a dataset has one of repeat, weight and budget, not several",
         source.name, "keep the one that you mean");
  }
  if (source.supervised.empty()) fail(ExitCode::kData, "the dataset has no documents", source.name);
  if (source.supervised.size() >= UINT32_MAX) {
    fail(ExitCode::kData, "a dataset must have fewer than 2^32 documents", source.name);
  }
}

int64_t total(const MixSource& source) {
  return std::accumulate(source.supervised.begin(), source.supervised.end(), int64_t{0});
}

// One number for (dataset, pass): the streams of the seed that order them.
uint64_t pass_stream(size_t source, int64_t pass) {
  return xxh3_64("mix " + std::to_string(source) + " " + std::to_string(pass));
}

}  // namespace

std::vector<int64_t> tokens_per_epoch(std::span<const MixSource> sources) {
  double weight_sum = 0;
  double weighted_tokens = 0;
  for (const MixSource& source : sources) {
    check(source);
    if (source.weight == 0) continue;
    weight_sum += source.weight;
    weighted_tokens += static_cast<double>(total(source));
  }
  std::vector<int64_t> tokens;
  for (const MixSource& source : sources) {
    const auto all = static_cast<double>(total(source));
    double wanted = all;
    if (source.repeat > 0) wanted = source.repeat * all;
    if (source.weight > 0) wanted = weighted_tokens * source.weight / weight_sum;
    if (source.budget > 0) wanted = static_cast<double>(source.budget);
    // A thousand passes in one epoch is a mistake, and would need the memory for them.
    if (wanted > 1000 * all) {
      fail(ExitCode::kUsage, "an epoch would repeat the dataset more than 1,000 times", source.name,
           "lower its repeat, weight or budget");
    }
    tokens.push_back(std::max<int64_t>(1, std::llround(wanted)));
  }
  return tokens;
}

std::vector<std::vector<uint32_t>> mix(std::span<const MixSource> sources,
                                       uint64_t seed,
                                       int64_t epoch) {
  const std::vector<int64_t> wanted = tokens_per_epoch(sources);
  std::vector<std::vector<uint32_t>> documents(sources.size());
  for (size_t index = 0; index < sources.size(); ++index) {
    const MixSource& source = sources[index];
    const int64_t in_pass = total(source);
    if (epoch < 0 || epoch >= INT64_MAX / wanted[index] - 1) {
      fail(ExitCode::kUsage, "epoch " + std::to_string(epoch) + " is out of range", source.name);
    }
    const int64_t begin = wanted[index] * epoch;
    const int64_t end = begin + wanted[index];
    for (int64_t pass = begin / in_pass; pass * in_pass < end; ++pass) {
      int64_t at = pass * in_pass;
      const auto count = static_cast<int64_t>(source.supervised.size());
      for (const uint32_t document : keyed_permutation(count, seed, pass_stream(index, pass))) {
        if (at >= begin && at < end) documents[index].push_back(document);
        at += source.supervised[document];
      }
    }
  }
  return documents;
}

}  // namespace graft::data
