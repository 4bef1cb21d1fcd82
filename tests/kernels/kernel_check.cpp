// graft-kernel-check: the table of operators on a device, the faults planted in it, and its speed.
// `make mutants` and `make gpu-check` run it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "core/args.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"  // format_fixed
#include "kernels/product.h"
#include "tests/kernels/bench_report.h"
#include "tests/kernels/check_cases.h"
#include "tests/kernels/values.h"

namespace {

using graft::Args;
using namespace graft::kernels::test;

graft_device device_of(const Args& args) {
  const std::string name = args.text("--device");
  if (name == "cpu") return GRAFT_CPU;
  if (name == "emu") return GRAFT_EMU;
  if (name == "cuda") return GRAFT_CUDA;
  graft::fail(graft::ExitCode::kUsage, "unknown device \"" + name + "\"",
              "expected cpu, emu or cuda");
}

std::vector<KernelCase> wanted_cases(const Args& args) {
  std::vector<KernelCase> cases;
  for (const CasePart& part : case_parts()) {
    for (const KernelCase& one : part.cases) {
      const std::string name = one.name, only = args.text("--only");
      if (only.empty() || name == only) cases.push_back(one);
    }
  }
  if (cases.empty()) {
    graft::fail(graft::ExitCode::kUsage, "no case \"" + args.text("--only") + "\"");
  }
  return cases;
}

std::string name_of_device(graft_device device) {
  char name[256] = "";
  double unused = 0;
  if (graft_device_describe(device, name, sizeof name, &unused) != GRAFT_OK) {
    graft::fail(graft::ExitCode::kDevice, graft_last_error());
  }
  return name;
}

int run_cases(const Args& args) {
  const graft_device device = device_of(args);
  const std::string device_name = name_of_device(device);
  int64_t problems = 0, failures = 0;
  for (const KernelCase& one : wanted_cases(args)) {
    int64_t of_case = 0;
    for (const Problem& problem : problems_of(one)) {
      if (args.flag("--quick") && problem.input != Input::kNormal) continue;
      ++of_case;
      const std::string text = difference(one, problem, device);
      if (text.empty()) continue;
      ++failures;
      std::printf("DIFFERS %s: %s\n", text_of(one, problem).c_str(), text.c_str());
      if (args.flag("--first")) return 1;
    }
    std::printf("%-32s %4lld problems\n", one.name, static_cast<long long>(of_case));
    std::fflush(stdout);
    problems += of_case;
  }
  std::printf("%s: %lld problems, %lld differ\n", device_name.c_str(),
              static_cast<long long>(problems), static_cast<long long>(failures));
  return failures > 0 ? 1 : 0;
}

struct NumberedMutation {
  const KernelCase* kernel_case;
  const Mutation* mutation;
};
std::vector<NumberedMutation> all_mutations() {
  std::vector<NumberedMutation> all;
  for (const CasePart& part : case_parts()) {
    for (const KernelCase& one : part.cases) {
      for (const Mutation& mutation : one.mutations) all.push_back({&one, &mutation});
    }
  }
  return all;
}

int list_mutations(const Args&) {
  int number = 0;
  for (const NumberedMutation& one : all_mutations()) {
    std::printf("%d\t%s\t%s\t%s\t%s\n", number++, one.mutation->file, one.kernel_case->name,
                one.mutation->kernel, one.mutation->fault);
  }
  return 0;
}

int write_mutant(const Args& args) {
  const std::vector<NumberedMutation> all = all_mutations();
  const size_t number = std::stoul(args.positionals()[0]);
  if (number >= all.size()) {
    graft::fail(graft::ExitCode::kUsage, "there are " + std::to_string(all.size()) + " mutations");
  }
  const Mutation& mutation = *all[number].mutation;
  std::string text = graft::read_file(args.positionals()[1]);
  const size_t at = text.find(mutation.from);
  if (at == std::string::npos) {
    graft::fail(graft::ExitCode::kData,
                std::string(mutation.fault) + ": its text is not in " + args.positionals()[1]);
  }
  text.replace(at, std::strlen(mutation.from), mutation.to);
  graft::write_file_atomically(args.positionals()[2], text);
  return 0;
}

using Clock = std::chrono::steady_clock;

struct Times {
  double median, p10, p90;
};

// Seconds of one launch: at least 30 samples of as many launches as take a hundredth of a second,
// so that waiting for the device does not count.
Times time_of(const std::function<void()>& launch, graft_device device, bool is_quick) {
  const auto seconds_of = [&](int64_t launches) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < launches; ++i) launch();
    need(graft_device_synchronize(device, nullptr));
    return std::chrono::duration<double>(Clock::now() - start).count() /
           static_cast<double>(launches);
  };
  seconds_of(1);
  const double once = std::max(seconds_of(1), 1e-7);
  const int64_t launches = is_quick ? 1 : std::max<int64_t>(1, static_cast<int64_t>(0.01 / once));
  std::vector<double> samples;
  for (int i = 0; i < (is_quick ? 3 : 30); ++i) samples.push_back(seconds_of(launches));
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples[samples.size() / 10],
          samples[samples.size() * 9 / 10]};
}

// Bytes read plus written a second by copies inside the device.
double copy_bandwidth(graft_device device, bool is_quick) {
  const size_t bytes = is_quick ? size_t{1} << 16 : size_t{1} << 29;
  void *from = nullptr, *to = nullptr;
  need(graft_device_allocate(bytes, device, &from));
  need(graft_device_allocate(bytes, device, &to));
  const Times times =
      time_of([&] { need(graft_device_copy(to, from, bytes, device, nullptr)); }, device, is_quick);
  need(graft_device_release(from, device));
  need(graft_device_release(to, device));
  return 2.0 * static_cast<double>(bytes) / times.median;
}

// Flops a second of a bfloat16 product of random values.
double product_rate(graft_device device, bool is_quick) {
  const int64_t side = is_quick ? 16 : 8192;
  Problem problem = sizes(side);
  problem.type = GRAFT_BF16;
  Job job(device, problem);
  graft_product product{};
  product.tb = GRAFT_T;
  product.m = product.n = product.k = product.lda = product.ldb = product.ldc = side;
  product.alpha = 1.0f;
  product.type = product.c_type = GRAFT_BF16;
  product.a = job.elements(random_floats(side * side, 1))->data();
  product.b = job.elements(random_floats(side * side, 2))->data();
  product.c = job.elements(zeros(side * side))->data();
  const Times times = time_of([&] { need(graft_multiply(&product, device)); }, device, is_quick);
  return 2.0 * static_cast<double>(side * side) * static_cast<double>(side) / times.median;
}

KernelFigure measure(const KernelCase& one,
                     Problem problem,
                     const BenchReport& report,
                     graft_device device,
                     bool is_quick) {
  Job job = one.prepare(device, problem);
  const Times times = time_of(job.launch, device, is_quick);
  KernelFigure figure;
  figure.name = std::string(one.name) + ", " + name_of(problem.type);
  figure.seconds = times.median;
  figure.p10 = times.p10;
  figure.p90 = times.p90;
  const double flops = one.flops(problem);
  figure.is_flops = flops > 0;
  figure.percent = figure.is_flops
                       ? 100 * flops / times.median / report.product_flops_per_second
                       : 100 * one.bytes(problem) / times.median / report.copy_bytes_per_second;
  return figure;
}

int run_bench(const Args& args) {
  const graft_device device = device_of(args);
  const bool is_quick = args.flag("--quick");
  BenchReport report;
  report.device = name_of_device(device);
  report.copy_bytes_per_second = copy_bandwidth(device, is_quick);
  report.product_flops_per_second = product_rate(device, is_quick);
  std::printf("%s: copies %s GB/s, bfloat16 product %s TF/s\n", report.device.c_str(),
              graft::format_fixed(report.copy_bytes_per_second / 1e9, 0).c_str(),
              graft::format_fixed(report.product_flops_per_second / 1e12, 1).c_str());
  for (const KernelCase& one : wanted_cases(args)) {
    for (const graft_float_type type : one.types) {
      Problem problem = is_quick ? one.shapes[0] : one.bench;
      problem.type = type;
      report.figures.push_back(measure(one, problem, report, device, is_quick));
      const KernelFigure& figure = report.figures.back();
      std::printf("%-40s %12s us  %6s %% of %s\n", figure.name.c_str(),
                  graft::format_fixed(1e6 * figure.seconds, 1).c_str(),
                  graft::format_fixed(figure.percent, 1).c_str(),
                  figure.is_flops ? "the bf16 product" : "copies");
      std::fflush(stdout);
    }
  }
  const std::string out = args.text("--out");
  if (!out.empty()) {
    graft::JsonStyle style;
    style.indent = 1;
    graft::write_file_atomically(out, graft::dump_json(to_json(report), style) + "\n");
  }
  return 0;
}

int run_compare(const Args& args) {
  const auto read = [&](size_t at) {
    return report_of(graft::read_json_file(args.positionals()[at]));
  };
  const std::vector<std::string> lines = regressions(read(0), read(1));
  for (const std::string& line : lines) std::printf("%s\n", line.c_str());
  if (lines.empty()) std::printf("no kernel is slower than 92 %% of what was kept\n");
  return lines.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const graft::Option device{"--device", "NAME", "emu", "cpu, emu or cuda"};
  const graft::Option only{"--only", "CASE", "", "one case"};
  const graft::Option quick{"--quick", "", "", "small shapes of normal values only"};
  const std::vector<graft::Command> commands = {
      {"cases",
       "",
       0,
       0,
       "every problem on a device against the processor; exit 1 when one differs",
       {device, only, quick, {"--first", "", "", "stop at the first that differs"}},
       {"graft-kernel-check cases --device cuda"},
       run_cases},
      {"mutations",
       "",
       0,
       0,
       "the planted faults: number, file, case, kernel, fault",
       {},
       {"graft-kernel-check mutations"},
       list_mutations},
      {"mutate",
       "NUMBER FROM TO",
       3,
       3,
       "a source file with one planted fault",
       {},
       {"graft-kernel-check mutate 7 kernels/rope.cu /tmp/rope.cu"},
       write_mutant},
      {"bench",
       "",
       0,
       0,
       "each kernel as a percentage of copy bandwidth or of the bfloat16 product",
       {device, only, quick, {"--out", "FILE", "", "the figures as JSON"}},
       {"graft-kernel-check bench --device cuda --out gpu.json"},
       run_bench},
      {"compare",
       "NOW.json KEPT.json",
       2,
       2,
       "exit 1 when a kernel has lost more than 8 % of its kept percentage",
       {},
       {"graft-kernel-check compare gpu.json docs/measurements/gpu-h200.json"},
       run_compare}};
  return graft::run_main([&] {
    return graft::run_program("graft-kernel-check", "the kernels of graft on a device", commands,
                              argc, argv);
  });
}
