// Every operator of tests/kernels/cases.cpp: instruction sets, threads, the emulated device in its
// schedules and, where there is one, the GPU give the same bits.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <regex>
#include <set>
#include <sstream>

#include "core/file.h"  // read_file
#include "kernels/emu/emu.h"
#include "tests/kernels/broken_kernels.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

std::vector<emu::Schedule> schedules() {
  return {{emu::Order::kForward, 0},
          {emu::Order::kReverse, 0},
          {emu::Order::kShuffled, 1},
          {emu::Order::kShuffled, 2}};
}

// Calls body(problem) for every shape and input of the case.
template <class Body>
int for_problems(const KernelCase& kernel_case, const Body& body) {
  int count = 0;
  for (Problem problem : kernel_case.shapes) {
    for (const Input input : kernel_case.inputs) {
      problem.input = input;
      INFO(kernel_case.name << ": " << problem.a << ", " << problem.b << ", " << problem.c << ", "
                            << problem.d << ", " << name_of(input));
      body(problem);
      ++count;
    }
  }
  return count;
}

}  // namespace

TEST_CASE("cases: instruction sets, threads and runs give the same bits", "[kernels][cases]") {
  const size_t index = GENERATE(range<size_t>(0, kernel_cases().size()));
  const KernelCase& kernel_case = kernel_cases()[index];
  for_problems(kernel_case, [&](const Problem& problem) {
    same_everywhere([&] { return kernel_case.run({GRAFT_CPU, problem}); });
  });
}

TEST_CASE("cases: the emulated device gives the processor's bits in every schedule",
          "[kernels][emu][cases]") {
  const size_t index = GENERATE(range<size_t>(0, kernel_cases().size()));
  const KernelCase& kernel_case = kernel_cases()[index];
  const int problems = for_problems(kernel_case, [&](const Problem& problem) {
    const std::vector<float> expected = kernel_case.run({GRAFT_CPU, problem});
    for (const emu::Schedule& schedule : schedules()) {
      emu::set_schedule(schedule);
      const std::vector<float> got = kernel_case.run({GRAFT_EMU, problem});
      emu::set_schedule({});
      REQUIRE(got.size() == expected.size());
      const auto differs = [](float a, float b) {
        return std::memcmp(&a, &b, sizeof a) != 0 && !(std::isnan(a) && std::isnan(b));
      };
      for (size_t i = 0; i < got.size(); ++i) {
        if (!differs(got[i], expected[i])) continue;
        FAIL("schedule " << static_cast<int>(schedule.order) << ", element " << i << " of "
                         << got.size() << ": emulated " << got[i] << ", processor " << expected[i]);
      }
    }
  });
  std::cout << "emulated: " << kernel_case.name << " (" << kernel_case.kernels << "): " << problems
            << " cases x " << schedules().size() << " schedules\n";
}

TEST_CASE("cases: a GPU gives the processor's bits", "[kernels][cuda][gpu]") {
  if (!cuda_is_available()) {
    std::cout << "SKIPPED: no GPU: " << graft_last_error() << "\n";
    return;
  }
  const size_t index = GENERATE(range<size_t>(0, kernel_cases().size()));
  const KernelCase& kernel_case = kernel_cases()[index];
  for_problems(kernel_case, [&](const Problem& problem) {
    const std::vector<float> expected = kernel_case.run({GRAFT_CPU, problem});
    const std::vector<float> got = kernel_case.run({GRAFT_CUDA, problem});
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      // The logarithm of a loss in double is the device library's own: one rounding apart.
      const double bound = std::fabs(static_cast<double>(expected[i])) * 2.4e-7;
      const bool close =
          std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i])) <= bound ||
          got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]));
      if (!close) FAIL("element " << i << ": GPU " << got[i] << ", processor " << expected[i]);
    }
  });
}

TEST_CASE("cases: every CUDA kernel has an emulated case", "[kernels][emu][cases]") {
  std::set<std::string> covered;
  for (const KernelCase& kernel_case : kernel_cases()) {
    std::istringstream names(kernel_case.kernels);
    for (std::string name; names >> name;) covered.insert(name);
  }
  static const std::regex kernel(R"(__global__[^;{]*?\b(\w+_kernel)\()");
  std::set<std::string> found;
  const std::string folder = graft::test::source_path("kernels");
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".cu") continue;
    const std::string text = graft::read_file(entry.path().string());
    size_t declared = 0, named = 0;
    for (size_t at = text.find("__global__"); at != std::string::npos;
         at = text.find("__global__", at + 1)) {
      ++declared;
    }
    for (std::sregex_iterator match(text.begin(), text.end(), kernel), end; match != end; ++match) {
      ++named;
      found.insert((*match)[1].str());
    }
    INFO(entry.path().filename().string());
    CHECK(declared == named);
  }
  CHECK(found == covered);
  CHECK(found.size() >= 24);
  std::cout << "CUDA kernels: " << found.size() << ", without an emulated case: "
            << std::count_if(found.begin(), found.end(),
                             [&](const std::string& name) { return covered.count(name) == 0; })
            << "\n";
}
