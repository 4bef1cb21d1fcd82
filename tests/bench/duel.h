// `graft bench kernels`: graft's kernels beside other implementations on one thread.
//
// The arms of a row take turns, A B A B, with the probe (a fixed matrix product) before and after
// each. A sample is discarded when a probe beside it is below 85 % of the best one, or when its arm
// got less than 95 % of a processor: something else was running. Figures are medians of five.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/bench/measure.h"
#include "tests/bench/peer.h"

namespace graft::bench {

struct DuelArm {
  std::string name;
  std::function<Seconds(int64_t calls)> run;
  double work = 1;  // what a ratio compares: work of one call a second
};

struct Duel {
  std::string name;
  Unit unit = Unit::kGigabytes;
  double target = 0;  // least ratio of the first arm's rate to the second's; 0 = none
  std::vector<DuelArm> arms;
  std::vector<std::string> missing;  // peers that cannot run here, with the reason
};

struct DuelFigure {
  std::string arm;
  double milliseconds = 0;  // of a call, the median
  double rate = 0;          // in the unit
  int samples = 0;          // good ones behind it
  int discarded = 0;
};

struct DuelResult {
  std::vector<DuelFigure> figures;
  double ratio = 0;    // 0 without a second arm
  bool quiet = false;  // five good samples of each arm; otherwise figures are medians of the
                       // processor's seconds over all samples
  double least_probe = 0, most_probe = 0;  // beside the samples that count
};

// A sample of graft's own: wall and processor seconds of `calls` calls.
Seconds time_calls(const std::function<void()>& call, int64_t calls);

DuelResult fight(const Duel& duel, Bench& bench, double most_seconds);

// The rows of the command. Arms borrow `peer`.
std::vector<Duel> kernel_duels(Peer& peer, const std::string& filter);

// GF/s of graft's bfloat16 product on operands in the first-level cache: what its tile reaches at
// most on this processor.
double bf16_tile_peak();

}  // namespace graft::bench
