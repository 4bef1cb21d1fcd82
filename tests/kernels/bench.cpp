#include "tests/kernels/bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>

#include "core/progress.h"  // format_fixed
#include "kernels/product.h"
#include "tests/kernels/job.h"

namespace graft::kernels::test {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// So that some 80 figures take less than a minute on a fast GPU.
constexpr int kSamples = 30, kLeastSamples = 5;
constexpr double kSampleSeconds = 0.005, kMostSeconds = 0.5;

struct Times {
  double median, p10, p90;
};

// Seconds of one launch: samples of as many launches as take kSampleSeconds, so that waiting for
// the device does not count.
Times time_of(const std::function<void()>& launch, graft_device device, bool is_quick) {
  const auto seconds_of = [&](int64_t launches) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < launches; ++i) launch();
    need(graft_device_synchronize(device, nullptr));
    return seconds_since(start) / static_cast<double>(launches);
  };
  seconds_of(1);
  const double once = std::max(seconds_of(1), 1e-7);
  const int64_t launches =
      is_quick ? 1 : std::max<int64_t>(1, static_cast<int64_t>(kSampleSeconds / once));
  std::vector<double> samples;
  const auto start = Clock::now();
  while (samples.size() < (is_quick ? 3 : kSamples)) {
    if (samples.size() >= kLeastSamples && seconds_since(start) > kMostSeconds) break;
    samples.push_back(seconds_of(launches));
  }
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples[samples.size() / 10],
          samples[samples.size() * 9 / 10]};
}

// Bytes read plus written a second by copies inside the device.
double copy_bandwidth(graft_device device, bool is_quick) {
  const Problem problem = sizes(1);
  Job job(device, problem);
  const int64_t count = is_quick ? 1 << 14 : 1 << 27;
  const Array* const from = job.floats(zeros(count));
  const Array* const to = job.floats(zeros(count));
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  const Times times =
      time_of([&] { need(graft_device_copy(to->data(), from->data(), bytes, device, nullptr)); },
              device, is_quick);
  return 2.0 * static_cast<double>(bytes) / times.median;
}

// Flops a second of a bfloat16 product of random values.
double product_rate(graft_device device, bool is_quick) {
  const int64_t side = is_quick ? 16 : 8192;
  const Problem problem = sizes(side);
  Job job(device, problem);
  graft_product product{};
  product.tb = GRAFT_T;
  product.m = product.n = product.k = product.lda = product.ldb = product.ldc = side;
  product.alpha = 1.0f;
  product.type = product.c_type = GRAFT_BF16;
  product.a = job.bfloat16s(random_values(side * side, 1))->data();
  product.b = job.bfloat16s(random_values(side * side, 2))->data();
  product.c = job.bfloat16s(zeros(side * side))->data();
  const Times times = time_of([&] { need(graft_multiply(&product, device)); }, device, is_quick);
  return 2.0 * static_cast<double>(side * side) * static_cast<double>(side) / times.median;
}

std::string name_of_figure(const KernelCase& one, graft_float_type type) {
  return std::string(one.name) + ", " + name_of(type);
}

// `percent` is 0 where the rate that it is of is unknown.
KernelFigure measure(const KernelCase& one,
                     const Problem& problem,
                     const BenchReport& report,
                     graft_device device,
                     bool is_quick) {
  const Job job = one.prepare(device, problem);
  const Times times = time_of(job.launch, device, is_quick);
  KernelFigure figure;
  figure.name = name_of_figure(one, problem.type);
  figure.seconds = times.median;
  figure.p10 = times.p10;
  figure.p90 = times.p90;
  const double flops = one.flops(problem);
  figure.is_flops = flops > 0;
  const double work = figure.is_flops ? flops : one.bytes(problem);
  const double rate =
      figure.is_flops ? report.product_flops_per_second : report.copy_bytes_per_second;
  figure.percent = rate > 0 ? 100 * work / times.median / rate : 0;
  return figure;
}

// A line of the table: a name, then columns.
class Table {
 public:
  explicit Table(const std::vector<KernelCase>& cases) {
    for (const KernelCase& one : cases) {
      for (const graft_float_type type : one.types) {
        width_ = std::max(width_, name_of_figure(one, type).size());
      }
    }
  }
  std::string head() const { return line("", "median us", "p10", "p90", "%", "of"); }
  std::string line(const KernelFigure& figure) const {
    const auto us = [](double seconds) { return format_fixed(1e6 * seconds, 1); };
    return line(figure.name, us(figure.seconds), us(figure.p10), us(figure.p90),
                figure.percent > 0 ? format_fixed(figure.percent, 1) : "-",
                figure.is_flops ? "bf16 product" : "copies");
  }
  std::string failure(const std::string& name, const char* reason) const {
    return padded(name) + "  FAILED: " + reason;
  }

 private:
  size_t width_ = 0;

  std::string padded(std::string name) const {
    name.resize(std::max(width_, name.size()), ' ');
    return name;
  }
  std::string line(const std::string& name,
                   const std::string& median,
                   const std::string& p10,
                   const std::string& p90,
                   const std::string& percent,
                   const char* of) const {
    char columns[160];
    std::snprintf(columns, sizeof columns, "  %11s  %11s  %11s  %6s  %s", median.c_str(),
                  p10.c_str(), p90.c_str(), percent.c_str(), of);
    return padded(name) + columns;
  }
};

}  // namespace

Bench measure_kernels(const std::vector<KernelCase>& cases,
                      graft_device device,
                      bool is_quick,
                      const std::function<void(const std::string& line)>& print) {
  Bench bench;
  BenchReport& report = bench.report;
  const Table table(cases);
  const auto attempt = [&](const std::string& name, const auto& action) {
    try {
      action();
    } catch (const std::exception& error) {
      print(table.failure(name, error.what()));
      ++bench.failures;
    }
  };
  attempt("copies", [&] { report.copy_bytes_per_second = copy_bandwidth(device, is_quick); });
  attempt("bf16 product",
          [&] { report.product_flops_per_second = product_rate(device, is_quick); });
  print("copies " + format_fixed(report.copy_bytes_per_second / 1e9, 0) +
        " GB/s, bfloat16 product " + format_fixed(report.product_flops_per_second / 1e12, 1) +
        " TF/s");
  print(table.head());
  for (const KernelCase& one : cases) {
    for (const graft_float_type type : one.types) {
      Problem problem = is_quick ? one.shapes[0] : one.bench;
      problem.type = type;
      attempt(name_of_figure(one, type), [&] {
        const KernelFigure figure = measure(one, problem, report, device, is_quick);
        print(table.line(figure));
        if (figure.percent > 0) report.figures.push_back(figure);
      });
    }
  }
  return bench;
}

}  // namespace graft::kernels::test
