#include "tests/kernels/check_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>

#include "kernels/emu/emu.h"

namespace graft::kernels::test {
namespace {

bool same(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}

// The first value that is not within `tolerance` of the largest expected one.
std::string compare(const std::vector<float>& got,
                    const std::vector<float>& expected,
                    double tolerance) {
  if (got.size() != expected.size()) return "the results have another size";
  double largest = 0.0;
  for (const float value : expected) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(static_cast<double>(value)));
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (same(got[i], expected[i])) continue;
    const double distance =
        std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (distance <= tolerance * largest) continue;
    return "element " + std::to_string(i) + " of " + std::to_string(got.size()) + " is " +
           std::to_string(got[i]) + ", on the processor " + std::to_string(expected[i]);
  }
  return "";
}

struct NamedSchedule {
  const char* name;
  emu::Schedule schedule;
};
constexpr NamedSchedule kSchedules[] = {{"forward", {emu::Order::kForward, 0}},
                                        {"reverse", {emu::Order::kReverse, 0}},
                                        {"random", {emu::Order::kShuffled, 1}}};

}  // namespace

std::string difference_from(const KernelCase& kernel_case,
                            const Problem& problem,
                            graft_device device,
                            const std::vector<float>& expected) {
  try {
    if (device != GRAFT_EMU) {
      const bool is_exact = device == GRAFT_CPU || kernel_case.gpu_tolerance == nullptr;
      return compare(kernel_case.prepare(device, problem).run(), expected,
                     is_exact ? 0.0 : kernel_case.gpu_tolerance(problem));
    }
    for (const NamedSchedule& one : kSchedules) {
      emu::set_schedule(one.schedule);
      std::string text = compare(kernel_case.prepare(device, problem).run(), expected, 0.0);
      emu::set_schedule({});
      if (!text.empty()) return std::string(one.name) + " schedule: " + text;
    }
    return "";
  } catch (const std::exception& error) {
    emu::set_schedule({});
    return error.what();
  }
}

std::string difference(const KernelCase& kernel_case, const Problem& problem, graft_device device) {
  return difference_from(kernel_case, problem, device,
                         kernel_case.prepare(GRAFT_CPU, problem).run());
}

}  // namespace graft::kernels::test
