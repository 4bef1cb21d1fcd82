// graft-bench: the speed of kernels, data steps and a training step on this machine.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include <omp.h>
#include <unistd.h>

#include "core/args.h"
#include "core/error.h"
#include "core/idle_threads.h"
#include "core/json.h"
#include "core/progress.h"
#include "tests/bench/duel.h"
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

Json to_json(const graft::bench::Duel& duel, const graft::bench::DuelResult& result) {
  Json arms = Json::array();
  for (const graft::bench::DuelFigure& figure : result.figures) {
    arms.push_back(Json::object({{"arm", figure.arm},
                                 {"ms", figure.milliseconds},
                                 {"rate", figure.rate},
                                 {"samples", figure.samples},
                                 {"discarded", figure.discarded}}));
  }
  Json missing = Json::array();
  for (const std::string& reason : duel.missing) missing.push_back(reason);
  return Json::object({{"name", duel.name},
                       {"unit", graft::bench::unit_name(duel.unit)},
                       {"ratio", result.ratio > 0 ? Json(result.ratio) : Json()},
                       {"target", duel.target > 0 ? Json(duel.target) : Json()},
                       {"quiet", result.quiet},
                       {"probe_gflops", Json::array({result.least_probe, result.most_probe})},
                       {"arms", std::move(arms)},
                       {"missing", std::move(missing)}});
}

bool misses(const graft::bench::Duel& duel, const graft::bench::DuelResult& result) {
  return duel.target > 0 && result.ratio > 0 && result.ratio < duel.target;
}

// What the first arm reaches of the machine's own limit.
std::string limit_note(const graft::bench::Duel& duel,
                       const graft::bench::DuelResult& result,
                       double copy,
                       double peak) {
  const double rate = result.figures[0].rate;
  if (duel.unit == Unit::kGigabytes && copy > 0) {
    return graft::format_fixed(100 * rate / copy, 0) + " % of copy";
  }
  if (duel.name.find("forward nf4") == std::string::npos &&
      duel.name.find("bf16") == std::string::npos) {
    return "";
  }
  return graft::format_fixed(100 * rate / peak, 0) + " % of the tile's peak";
}

void print(const graft::bench::Duel& duel,
           const graft::bench::DuelResult& result,
           double copy,
           double peak) {
  for (size_t at = 0; at < result.figures.size(); ++at) {
    const graft::bench::DuelFigure& figure = result.figures[at];
    std::string note;
    if (at == 0) {
      note = limit_note(duel, result, copy, peak);
    } else {
      note = "graft is " + graft::format_fixed(result.ratio, 2) + "x";
      if (duel.target > 0) {
        note += ", target " + graft::format_fixed(duel.target, 2) +
                (misses(duel, result) ? ": MISSED" : ": met");
      }
    }
    if (!result.quiet) {
      note += (note.empty() ? "" : "; ") + std::string("rough: processor time, ") +
              std::to_string(figure.samples) + " quiet samples of " +
              std::to_string(figure.samples + figure.discarded);
    }
    std::printf("%-38s %-24s %9s ms %8s %-5s probe %3.0f-%.0f  %s\n",
                at == 0 ? duel.name.c_str() : "", figure.arm.c_str(),
                graft::format_fixed(figure.milliseconds, 3).c_str(),
                graft::format_fixed(figure.rate, 2).c_str(), graft::bench::unit_name(duel.unit),
                result.least_probe, result.most_probe, note.c_str());
  }
  for (const std::string& reason : duel.missing) {
    std::printf("%-38s missing: %s\n", "", reason.c_str());
  }
  std::fflush(stdout);
}

int run_kernels(const graft::Args& args) {
  omp_set_num_threads(1);
  graft::bench::Peer peer;
  Bench bench("");
  const double peak = graft::bench::bf16_tile_peak();
  if (!args.json()) {
    std::printf("%s, one thread, 4096 x 4096; bfloat16 tile in the first-level cache %.0f GF/s\n",
                processor_name().c_str(), peak);
  }
  Json rows = Json::array();
  bool missed = false;
  double copy = 0;
  const double seconds = static_cast<double>(args.integer("--seconds", 1, 3600));
  for (const graft::bench::Duel& duel : graft::bench::kernel_duels(peer, args.text("--only"))) {
    const graft::bench::DuelResult result = graft::bench::fight(duel, bench, seconds);
    for (const graft::bench::DuelFigure& figure : result.figures) {
      if (figure.arm == "copy") copy = figure.rate;
    }
    missed = missed || (result.quiet && misses(duel, result));
    if (args.json()) {
      rows.push_back(to_json(duel, result));
    } else {
      print(duel, result, copy, peak);
    }
  }
  if (args.json()) {
    std::printf("%s\n",
                graft::dump_json(Json::object({{"device", processor_name()},
                                               {"threads", 1},
                                               {"best_probe_gflops", bench.best_probe_gflops()},
                                               {"bf16_tile_gflops", peak},
                                               {"copy_gbps", copy > 0 ? Json(copy) : Json()},
                                               {"rows", std::move(rows)}}))
                    .c_str());
  } else {
    std::printf("probe: best %s GF/s\n", graft::format_fixed(bench.best_probe_gflops(), 1).c_str());
  }
  return missed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  // As in graft-train: OpenMP reads the setting when it is loaded, and threads that spin while they
  // wait take the processors from what is being measured.
  if (graft::let_idle_threads_sleep()) ::execv("/proc/self/exe", argv);
  const std::vector<graft::Command> commands = {
      {"run",
       "",
       0,
       0,
       "measure and print a table; five quiet samples a line",
       {{"--only", "TEXT", "", "only lines whose name holds this text"},
        {"--threads", "N", "0", "threads of the kernels; 0 = every processor"}},
       {"graft-bench run --only gemm"},
       run},
      {"kernels",
       "",
       0,
       0,
       "graft beside bitsandbytes, torch and oneDNN on one thread; exit 1 when a target is missed",
       {{"--only", "TEXT", "", "only rows whose name holds this text"},
        {"--seconds", "N", "60", "the longest wait for five quiet samples of a row"}},
       {"graft bench kernels --only adamw"},
       run_kernels}};
  return graft::run_main([&] {
    if (argc == 1) {  // `make bench`
      char word[] = "run";
      char* words[] = {argv[0], word, nullptr};
      return graft::run_program("graft-bench", "speed on this machine", commands, 2, words);
    }
    return graft::run_program("graft-bench", "speed on this machine", commands, argc, argv);
  });
}
