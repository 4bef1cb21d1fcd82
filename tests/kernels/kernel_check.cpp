// graft-kernel-check: the table of operators on a device, the faults planted in it, and its speed.
// `make mutants` and `make gpu-check` run it.
#include <cstdio>
#include <cstring>

#include "core/args.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/kernels/bench.h"
#include "tests/kernels/check_cases.h"

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

int run_bench(const Args& args) {
  const graft_device device = device_of(args);
  const std::string device_name = name_of_device(device);
  std::printf("%s\n", device_name.c_str());
  Bench bench = measure_kernels(wanted_cases(args), device, args.flag("--quick"),
                                [](const std::string& line) {
                                  std::printf("%s\n", line.c_str());
                                  std::fflush(stdout);
                                });
  bench.report.device = device_name;
  const std::string out = args.text("--out");
  if (!out.empty()) {
    graft::JsonStyle style;
    style.indent = 1;
    graft::write_file_atomically(out, graft::dump_json(to_json(bench.report), style) + "\n");
  }
  if (bench.failures > 0) std::printf("%d could not be measured\n", bench.failures);
  return bench.failures > 0 ? 1 : 0;
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
       "each kernel as a percentage of copy bandwidth or of the bfloat16 product; exit 1 when one "
       "fails",
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
