// Every operator of the table: instruction sets, threads, the emulated device in its schedules and,
// where there is one, the GPU give the same bits; and what the table itself has to hold.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>

#include "core/file.h"  // read_file
#include "tests/kernels/bench.h"
#include "tests/kernels/broken_kernels.h"
#include "tests/kernels/check_cases.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

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
    REQUIRE(difference_from(kernel_case, problem, GRAFT_EMU, expected) == "");
  }
  std::cout << "emulated: " << kernel_case.name << " (" << kernel_case.kernels
            << "): " << problems.size() << " cases x 3 schedules\n";
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

TEST_CASE("cases: CUDA sources allocate and wait only where their header says so",
          "[kernels][emu][cases]") {
  // memory.h is for this; graft_quant4_quantize waits to tell whether a weight is finite (nf4.h); a
  // stream's first product allocates its workspace (product.h).
  const std::set<std::string> allowed = {"memory.cu cudaMalloc", "memory.cu cudaFree",
                                         "memory.cu cudaStreamSynchronize",
                                         "nf4.cu cudaStreamSynchronize", "product.cu cudaMalloc"};
  static const std::regex call(
      R"(\b(cudaMalloc\w*|cudaFree\w*|cuda\w*Synchronize|cudaMemcpy|cudaMemset|cudaStreamCreate\w*)\()");
  static const std::regex launch(R"(<<<([\s\S]*?)>>>)");
  std::set<std::string> found;
  int launches = 0;
  const std::string folder = graft::test::source_path("kernels");
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".cu" && entry.path().extension() != ".h") continue;
    const std::string name = entry.path().filename().string();
    const std::string text = graft::read_file(entry.path().string());
    const std::sregex_iterator end;
    for (std::sregex_iterator match(text.begin(), text.end(), call); match != end; ++match) {
      found.insert(name + " " + (*match)[1].str());
    }
    for (std::sregex_iterator match(text.begin(), text.end(), launch); match != end; ++match) {
      INFO(name << ": " << match->str());
      CHECK((*match)[1].str().find("stream") != std::string::npos);
      ++launches;
    }
  }
  CHECK(found == allowed);
  CHECK(launches > 0);
}

TEST_CASE("cases: a GPU gives the processor's results", "[kernels][cuda][gpu]") {
  if (!cuda_is_available()) {
    std::cout << "SKIPPED: no GPU: " << graft_last_error() << "\n";
    return;
  }
  for (const CasePart& one : case_parts()) {
    for (const KernelCase& kernel_case : one.cases) {
      for (const Problem& problem : problems_of(kernel_case)) {
        INFO(text_of(kernel_case, problem));
        CHECK(difference(kernel_case, problem, GRAFT_CUDA) == "");
      }
    }
  }
}

TEST_CASE("cases: a deliberate overrun and a failing launch are found", "[kernels][emu][cases]") {
  KernelCase overrun{};
  overrun.name = "overrun";
  overrun.prepare = [](graft_device device, const Problem& p) {
    Job job(device, p);
    Array* const out = job.result(job.floats(zeros(60)));
    job.launch = [=] {
      if (device == GRAFT_EMU) need(write_64_floats(out->floats()));
    };
    return job;
  };
  const Problem problem = sizes(1);
  CHECK(difference(overrun, problem, GRAFT_EMU) == "a guard byte was written");
  overrun.prepare = [](graft_device device, const Problem& p) {
    Job job(device, p);
    job.launch = [=] {
      if (device == GRAFT_EMU) need(divergent_barrier());
    };
    return job;
  };
  CHECK(difference(overrun, problem, GRAFT_EMU).find("__syncthreads") != std::string::npos);
}

TEST_CASE("bench: a kernel that fails is a line, and the others are measured",
          "[kernels][emu][cases]") {
  const std::vector<KernelCase>& elementwise = part("elementwise");
  std::vector<KernelCase> cases = {elementwise[0]};
  for (const KernelCase& one : elementwise) {
    if (one.name == std::string("conversion")) cases.push_back(one);
  }
  REQUIRE(cases.size() == 2);
  cases[0].prepare = [](graft_device device, const Problem& p) {
    Job job(device, p);
    job.launch = [] { need(divergent_barrier()); };
    return job;
  };
  std::vector<std::string> lines;
  const Bench bench = measure_kernels(cases, GRAFT_EMU, true,
                                      [&](const std::string& line) { lines.push_back(line); });
  CHECK(bench.failures == 2);
  CHECK(bench.report.copy_bytes_per_second > 0);
  CHECK(bench.report.product_flops_per_second > 0);
  REQUIRE(bench.report.figures.size() == 2);
  CHECK(bench.report.figures[0].name == "conversion, fp32");
  CHECK(bench.report.figures[0].percent > 0);
  REQUIRE(lines.size() == 6);  // the rates, the head, two failures, two figures
  CHECK(lines[2].find("addition, fp32    FAILED: divergent_barrier: ") == 0);
  // Aligned: the last column begins under its head.
  CHECK(lines[4].size() == lines[1].find("of") + std::string("copies").size());
  CHECK(lines[5].size() == lines[4].size());
}

TEST_CASE("bench report: a kernel that lost 8 % of its kept percentage is a regression",
          "[kernels][cases]") {
  BenchReport kept;
  kept.device = "H200";
  kept.copy_bytes_per_second = 4e12;
  kept.product_flops_per_second = 7e14;
  kept.figures = {{"rope, fp32", 1e-5, 0.9e-5, 1.1e-5, 90.0, false},
                  {"multiply, bf16", 2e-4, 1e-4, 3e-4, 95.0, true}};
  CHECK(regressions(kept, kept).empty());
  // Written and read again it is the same.
  BenchReport now = report_of(graft::parse_json(graft::dump_json(to_json(kept)), "report"));
  CHECK(regressions(now, kept).empty());
  CHECK(now.figures[1].is_flops);
  CHECK(now.figures[0].p10 == Approx(0.9e-5));
  now.figures[0].percent = 82.9;  // 92 % of 90 is 82.8
  CHECK(regressions(now, kept).empty());
  now.figures[0].percent = 82.7;
  CHECK(regressions(now, kept) == std::vector<std::string>{"rope, fp32: 82.7 %, kept 90.0 %"});
  now.figures.pop_back();
  CHECK(regressions(now, kept).back() == "multiply, bf16: kept, and not measured now");
  now.device = "H100";
  CHECK(regressions(now, kept) ==
        std::vector<std::string>{"this is H100, the kept figures are of H200"});
  CHECK_THROWS(report_of(graft::parse_json("{}", "report")));
}
