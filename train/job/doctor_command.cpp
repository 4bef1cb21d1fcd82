#include <cstdio>

#include <omp.h>

#include "core/progress.h"
#include "train/job/doctor.h"
#include "train/job/machine.h"

namespace graft::train {
namespace {

constexpr const char* kVerdictNames[] = {"ok", "FAILED", "skipped"};

const char* verdict_name(Verdict verdict) {
  return kVerdictNames[static_cast<size_t>(verdict)];
}

DoctorCheck check_openmp() {
  const size_t count = openmp_runtimes().size();
  return {"OpenMP", "runtimes in this process", count == 1 ? Verdict::kPassed : Verdict::kFailed,
          std::to_string(count), 0};
}

Json report_to_json(const std::vector<MachineFact>& facts, const DoctorReport& report) {
  Json machine = Json::object();
  for (const MachineFact& fact : facts) machine.set(fact.name, fact.value);
  Json checks = Json::array();
  for (const DoctorCheck& check : report.checks) {
    checks.push_back(Json::object({{"check", check.name},
                                   {"compared", check.compared},
                                   {"verdict", verdict_name(check.verdict)},
                                   {"result", check.result},
                                   {"seconds", check.seconds}}));
  }
  return Json::object({{"passed", report.passed()},
                       {"machine", machine},
                       {"model", report.model.empty() ? Json() : Json(report.model)},
                       {"checks", checks}});
}

void print_report(const std::vector<MachineFact>& facts, const DoctorReport& report) {
  std::vector<std::vector<std::string>> machine = {{"machine", ""}};
  for (const MachineFact& fact : facts) machine.push_back({fact.name, fact.value});
  std::printf("%s\n", format_table("<<", machine).c_str());
  if (!report.model.empty()) std::printf("model  %s\n\n", report.model.c_str());
  std::vector<std::vector<std::string>> rows = {{"check", "compared", "", "seconds", "result"}};
  for (const DoctorCheck& check : report.checks) {
    rows.push_back({check.name, check.compared, verdict_name(check.verdict),
                    format_fixed(check.seconds, 1), check.result});
  }
  std::printf("%s", format_table("<<<><", rows).c_str());
}

}  // namespace

int run_doctor(const Args& args) {
  DoctorReport report;
  const std::vector<MachineFact> facts = machine_facts();
  if (!args.positionals().empty()) {
    const TrainConfig config = read_train_config(args);
    if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
    DoctorOptions options;
    options.layers = args.integer("--layers", 0, 1 << 20);
    report = run_checks(config, options);
  }
  report.checks.insert(report.checks.begin(), check_openmp());
  if (args.json()) {
    std::printf("%s\n", dump_json(report_to_json(facts, report), {.indent = 2}).c_str());
  } else {
    print_report(facts, report);
  }
  return static_cast<int>(report.passed() ? ExitCode::kOk : ExitCode::kFindings);
}

}  // namespace graft::train
