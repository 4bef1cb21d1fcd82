// Every operator of tests/kernels/cases.cpp: instruction sets, threads, the emulated device in its
// schedules and, where there is one, the GPU give the same bits.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>

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
  return {{emu::Order::kForward, 0}, {emu::Order::kReverse, 0}, {emu::Order::kShuffled, 1}};
}

bool differs(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) != 0 && !(std::isnan(a) && std::isnan(b));
}

const std::vector<KernelCase>& part(const std::string& name) {
  for (const CasePart& candidate : case_parts()) {
    if (candidate.name == name) return candidate.cases;
  }
  throw std::runtime_error("no part " + name);
}

// The processor: instruction sets, threads and runs give the same bits. The emulated device gives
// them in every schedule.
void check_case(const KernelCase& kernel_case) {
  const std::vector<Problem> problems = problems_of(kernel_case);
  for (const Problem& problem : problems) {
    INFO(text_of(kernel_case, problem));
    const std::vector<float> expected =
        same_everywhere([&] { return kernel_case.prepare(GRAFT_CPU, problem).run(); });
    for (const emu::Schedule& schedule : schedules()) {
      emu::set_schedule(schedule);
      const std::vector<float> got = kernel_case.prepare(GRAFT_EMU, problem).run();
      emu::set_schedule({});
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        if (!differs(got[i], expected[i])) continue;
        FAIL("schedule " << static_cast<int>(schedule.order) << ", element " << i << " of "
                         << got.size() << ": emulated " << got[i] << ", processor " << expected[i]);
      }
    }
  }
  std::cout << "emulated: " << kernel_case.name << " (" << kernel_case.kernels
            << "): " << problems.size() << " cases x " << schedules().size() << " schedules\n";
}

void check_part(const std::string& name) {
  const std::vector<KernelCase>& cases = part(name);
  check_case(cases[GENERATE_COPY(range<size_t>(0, cases.size()))]);
}

}  // namespace

// One test a part, so that they run side by side.
TEST_CASE("cases: rows on every device give the same bits", "[kernels][emu][cases]") {
  check_part("rows");
}
TEST_CASE("cases: elementwise operators on every device give the same bits",
          "[kernels][emu][cases]") {
  check_part("elementwise");
}
TEST_CASE("cases: attention on every device gives the same bits", "[kernels][emu][cases][slow]") {
  check_part("attention");
}
TEST_CASE("cases: experts and biases on every device give the same bits", "[kernels][emu][cases]") {
  check_part("experts");
}
TEST_CASE("cases: losses on every device give the same bits", "[kernels][emu][cases]") {
  check_part("losses");
}
TEST_CASE("cases: the optimizer on every device gives the same bits", "[kernels][emu][cases]") {
  check_part("optimizer");
}
TEST_CASE("cases: quantized weights on every device give the same bits", "[kernels][emu][cases]") {
  check_part("weights");
}

TEST_CASE("cases: products on every device give the same bits", "[kernels][emu][cases]") {
  check_part("products");
}

TEST_CASE("cases: every planted fault stands once in its source and breaks a kernel of its case",
          "[kernels][cases]") {
  for (const CasePart& one : case_parts()) {
    for (const KernelCase& kernel_case : one.cases) {
      std::set<std::string> kernels, broken;
      std::istringstream names(kernel_case.kernels);
      for (std::string name; names >> name;) kernels.insert(name);
      for (const Mutation& mutation : kernel_case.mutations) {
        INFO(kernel_case.name << ": " << mutation.fault);
        const std::string text =
            graft::read_file(graft::test::source_path(std::string("kernels/") + mutation.file));
        const size_t first = text.find(mutation.from);
        CHECK(first != std::string::npos);
        if (first != std::string::npos) {
          CHECK(text.find(mutation.from, first + 1) == std::string::npos);
        }
        CHECK(kernels.count(mutation.kernel) == 1);
        broken.insert(mutation.kernel);
      }
      INFO(kernel_case.name);
      CHECK(broken.empty() == kernels.empty());
    }
  }
}

TEST_CASE("cases: every CUDA kernel has an emulated case and a planted fault",
          "[kernels][emu][cases]") {
  std::set<std::string> covered, mutated;
  for (const CasePart& one : case_parts()) {
    for (const KernelCase& kernel_case : one.cases) {
      std::istringstream names(kernel_case.kernels);
      for (std::string name; names >> name;) covered.insert(name);
      for (const Mutation& mutation : kernel_case.mutations) mutated.insert(mutation.kernel);
    }
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
  CHECK(found == mutated);
  std::cout << "CUDA kernels: " << found.size() << ", without an emulated case: "
            << std::count_if(found.begin(), found.end(),
                             [&](const std::string& name) { return covered.count(name) == 0; })
            << "\n";
}
