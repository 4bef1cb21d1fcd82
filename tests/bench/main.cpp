// graft-bench: the speed of kernels, data steps and a training step on this machine.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include <omp.h>
#include <unistd.h>

#include "core/args.h"
#include "core/error.h"
#include "core/json.h"
#include "core/progress.h"
#include "tests/bench/measure.h"

namespace {

using graft::Json;
using graft::bench::Bench;
using graft::bench::Figure;
using graft::bench::Result;
using graft::bench::Unit;

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      return line.substr(line.find(':') + 2);
    }
  }
  return "unknown processor";
}

Json to_json(const Result& result, double copy_bandwidth) {
  Json arms = Json::array();
  for (const Figure& figure : result.figures) {
    Json arm = Json::object({{"arm", figure.arm},
                             {"rate", figure.samples > 0 ? Json(figure.rate) : Json()},
                             {"samples", figure.samples},
                             {"discarded", figure.discarded}});
    if (result.unit == Unit::kGigabytes && copy_bandwidth > 0 && figure.samples > 0) {
      arm.set("percent_of_copy", 100 * figure.rate / copy_bandwidth);
    }
    if (!figure.thread_bits.empty()) {
      arm.set("thread_bits", figure.thread_bits);
    }
    arms.push_back(std::move(arm));
  }
  return Json::object({{"name", result.name},
                       {"unit", graft::bench::unit_name(result.unit)},
                       {"arms", std::move(arms)}});
}

// One line an arm; a peer's line ends in graft's rate as a multiple of its own.
void print(const Result& result, double copy_bandwidth) {
  for (const Figure& figure : result.figures) {
    std::string note;
    if (result.unit == Unit::kGigabytes && copy_bandwidth > 0 && figure.samples > 0) {
      note = graft::format_fixed(100 * figure.rate / copy_bandwidth, 0) + " % of copy";
    }
    if (result.figures.size() > 1 && &figure != &result.figures[0] && figure.samples > 0 &&
        result.figures[0].samples > 0) {
      note = "graft is " + graft::format_fixed(result.figures[0].rate / figure.rate, 2) + "x";
    }
    if (!figure.thread_bits.empty()) {
      note += (note.empty() ? "" : ", ") + ("bits of 1 and all threads " + figure.thread_bits);
    }
    if (figure.samples < 5) {
      note += (note.empty() ? "" : ", ") +
              ("only " + std::to_string(figure.samples) + " quiet samples of " +
               std::to_string(figure.samples + figure.discarded));
    }
    const std::string rate =
        figure.samples == 0 ? "-" : graft::format_fixed(figure.rate, figure.rate < 1000 ? 1 : 0);
    std::printf("%-46s %-7s %12s %-9s %s\n", result.name.c_str(), figure.arm.c_str(), rate.c_str(),
                graft::bench::unit_name(result.unit), note.c_str());
  }
  std::fflush(stdout);
}

int run(const graft::Args& args) {
  const int64_t threads = args.integer("--threads", 0, 1024);
  if (threads > 0) {
    omp_set_num_threads(static_cast<int>(threads));
  }
  Bench bench(args.text("--only"));
  graft::bench::add_kernels(bench);
  graft::bench::add_products(bench);
  graft::bench::add_data(bench);
#ifdef GRAFT_BENCH_TRAIN
  graft::bench::add_training(bench);
#endif
  if (!args.json()) {
    std::printf("%s, %d threads\n", processor_name().c_str(), omp_get_max_threads());
  }
  Json results = Json::array();
  bench.run([&](const Result& result) {
    if (args.json()) {
      results.push_back(to_json(result, bench.copy_bandwidth()));
    } else {
      print(result, bench.copy_bandwidth());
    }
  });
  if (args.json()) {
    std::printf("%s\n", graft::dump_json(Json::object({{"device", processor_name()},
                                                       {"threads", omp_get_max_threads()},
                                                       {"probe_gflops", bench.best_probe_gflops()},
                                                       {"results", std::move(results)}}))
                            .c_str());
  } else {
    std::printf("probe: best %s GF/s\n", graft::format_fixed(bench.best_probe_gflops(), 1).c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // As in graft-train: OpenMP reads the setting when it is loaded, and threads that spin while they
  // wait take the processors from what is being measured.
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) {
    ::setenv("OMP_WAIT_POLICY", "passive", 0);
    ::execv("/proc/self/exe", argv);
  }
  const std::vector<graft::Command> commands = {
      {"run",
       "",
       0,
       0,
       "measure and print a table; five quiet samples a line",
       {{"--only", "TEXT", "", "only lines whose name holds this text"},
        {"--threads", "N", "0", "threads of the kernels; 0 = every processor"}},
       {"graft-bench run --only gemm"},
       run}};
  return graft::run_main([&] {
    if (argc == 1) {  // `make bench`
      char word[] = "run";
      char* words[] = {argv[0], word, nullptr};
      return graft::run_program("graft-bench", "speed on this machine", commands, 2, words);
    }
    return graft::run_program("graft-bench", "speed on this machine", commands, argc, argv);
  });
}
