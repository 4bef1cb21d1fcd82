// What `graft-kernel-check bench` measures, as JSON, and the comparison with what was kept.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"

namespace graft::kernels::test {

struct KernelFigure {
  std::string name;    // "rmsnorm forward, bf16"
  double seconds = 0;  // of one launch: the median
  double p10 = 0, p90 = 0;
  double percent = 0;     // of the copy bandwidth, or of the bfloat16 product's rate
  bool is_flops = false;  // which of the two
};

struct BenchReport {
  std::string device;
  double copy_bytes_per_second = 0;  // read plus written
  double product_flops_per_second = 0;
  std::vector<KernelFigure> figures;
};

Json to_json(const BenchReport& report);
// Errors: kData for a file that is no report.
BenchReport report_of(const Json& json);

// The lowest share of a kept percentage that is no regression.
constexpr double kKeptShare = 0.92;

// A line for each kept kernel that is slower now than kKeptShare of its kept percentage or is
// missing; a figure that was not kept is none. Another device cannot be compared: one line that
// says so.
std::vector<std::string> regressions(const BenchReport& now, const BenchReport& kept);

}  // namespace graft::kernels::test
