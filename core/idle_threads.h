// How OpenMP's threads wait for work. The runtime reads it when it is loaded, so it is set before a
// program starts.
#pragma once

#include <cstdlib>

namespace graft {

// GNU's threads spin for milliseconds while they wait unless told otherwise; on shared cores
// (Slurm, laptops) that costs more than it saves. Asleep at once, they wake late for the next of a
// step's thousands of short pieces: 30 microseconds of spinning, some 2,000 turns, take 3 % off a
// step. False, and nothing is changed, where the user has set OMP_WAIT_POLICY.
inline bool let_idle_threads_sleep() {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) return false;
  ::setenv("OMP_WAIT_POLICY", "passive", 0);
  ::setenv("GOMP_SPINCOUNT", "2000", 0);
  return true;
}

}  // namespace graft
