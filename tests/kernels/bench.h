// The speed of operators on a device: what `graft-kernel-check bench` measures and prints.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/kernels/bench_report.h"
#include "tests/kernels/cases.h"

namespace graft::kernels::test {

struct Bench {
  BenchReport report;  // of what could be measured
  int failures = 0;
};

// Measures each case's bench, or with is_quick its first shape, with each of its types; gives the
// lines of a table as they come. What fails is a line of its own, and the others go on; where that
// is the copy or the product that others are compared with, these have their times alone.
Bench measure_kernels(const std::vector<KernelCase>& cases,
                      graft_device device,
                      bool is_quick,
                      const std::function<void(const std::string& line)>& print);

}  // namespace graft::kernels::test
