#include "tests/bench/measure.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/gemm.h"

namespace graft::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSamples = 5;
constexpr int kMostRounds = 500;
// On a machine that is never quiet a comparison ends here and says how many samples were good.
constexpr double kMostSeconds = 5;
constexpr double kWarmUpSeconds = 4;
constexpr double kQuiet = 0.85;
// 2 * 512^3 = 0.27 GF: one to five milliseconds, long enough to meet a neighbour that also
// computes.
constexpr int64_t kProbeSize = 512;
// Long against the clock and the start of threads, short enough to fall between two bursts of other
// work.
constexpr double kSampleSeconds = 0.01;

double seconds_of(const std::function<void()>& call, int64_t calls) {
  const auto start = Clock::now();
  for (int64_t i = 0; i < calls; ++i) {
    call();
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

double unit_scale(Unit unit) {
  switch (unit) {
    case Unit::kGigabytes:
    case Unit::kGigaflops:
      return 1e9;
    case Unit::kMegabytes:
      return 1e6;
    default:
      return 1;
  }
}

}  // namespace

const char* unit_name(Unit unit) {
  switch (unit) {
    case Unit::kGigabytes:
      return "GB/s";
    case Unit::kGigaflops:
      return "GF/s";
    case Unit::kMegabytes:
      return "MB/s";
    case Unit::kTokens:
      return "tokens/s";
    default:
      return "docs/s";
  }
}

Bench::Bench(std::string filter)
    : filter_(std::move(filter)),
      probe_a_(kProbeSize * kProbeSize, 0.5F),
      probe_b_(kProbeSize * kProbeSize, 0.25F),
      probe_c_(kProbeSize * kProbeSize) {
  // What "quiet" means must be known before the first sample is judged.
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < kWarmUpSeconds) {
    probe();
  }
}

bool Bench::wants(const std::string& name) const {
  return name.find(filter_) != std::string::npos;
}

void Bench::add(Comparison comparison) {
  if (wants(comparison.name)) {
    comparisons_.push_back(std::move(comparison));
  }
}

double Bench::probe() {
  const double seconds = seconds_of(
      [&] {
        graft_gemm_f32(GRAFT_N, GRAFT_N, kProbeSize, kProbeSize, kProbeSize, 1, probe_a_.data(),
                       kProbeSize, probe_b_.data(), kProbeSize, 0, probe_c_.data(), kProbeSize);
      },
      2);
  const double gflops = 2 * 2.0 * kProbeSize * kProbeSize * kProbeSize / seconds / 1e9;
  best_probe_ = std::max(best_probe_, gflops);
  return gflops;
}

Bench::Sample Bench::sample(const Arm& arm, int64_t calls) {
  const double before = probe();
  const double seconds = seconds_of(arm.call, calls) / static_cast<double>(calls);
  return {seconds, std::min(before, probe())};
}

Result Bench::measure(const Comparison& comparison) {
  std::vector<int64_t> calls;
  for (const Arm& arm : comparison.arms) {
    arm.call();  // first touch of memory, choice of code path
    const double once = std::max(seconds_of(arm.call, 1), 1e-7);
    calls.push_back(std::max<int64_t>(1, static_cast<int64_t>(kSampleSeconds / once)));
  }
  std::vector<std::vector<Sample>> samples(comparison.arms.size());
  const auto good = [&](const Sample& sample) { return sample.probe >= kQuiet * best_probe_; };
  const auto enough = [&] {
    return std::all_of(samples.begin(), samples.end(), [&](const auto& of_arm) {
      return std::count_if(of_arm.begin(), of_arm.end(), good) >= kSamples;
    });
  };
  const auto start = Clock::now();
  const auto late = [&] {
    return std::chrono::duration<double>(Clock::now() - start).count() > kMostSeconds;
  };
  for (int round = 0; round < kMostRounds && !enough() && !late(); ++round) {
    for (size_t at = 0; at < comparison.arms.size(); ++at) {
      samples[at].push_back(sample(comparison.arms[at], calls[at]));
    }
  }
  Result result{comparison.name, comparison.unit, {}};
  for (size_t at = 0; at < comparison.arms.size(); ++at) {
    std::vector<double> seconds;
    for (const Sample& one : samples[at]) {
      if (good(one)) {
        seconds.push_back(one.seconds);
      }
    }
    Figure figure;
    figure.arm = comparison.arms[at].name;
    figure.samples = static_cast<int>(seconds.size());
    figure.discarded = static_cast<int>(samples[at].size() - seconds.size());
    if (!seconds.empty()) {
      figure.rate = comparison.work / median(seconds) / unit_scale(comparison.unit);
    }
    if (!comparison.thread_bits.empty()) {
      figure.thread_bits = comparison.thread_bits[at];
    }
    result.figures.push_back(std::move(figure));
  }
  return result;
}

void Bench::run(const std::function<void(const Result&)>& done) {
  for (const Comparison& comparison : comparisons_) {
    const Result result = measure(comparison);
    if (comparison.name == "copy") {
      copy_bandwidth_ = result.figures[0].rate;
    }
    done(result);
  }
}

}  // namespace graft::bench
