// graft-train: the programs that need the engine.
#include <cstdlib>

#include <unistd.h>

#include "core/args.h"
#include "core/error.h"
#include "train/job/commands.h"

int main(int argc, char** argv) {
  // OpenMP's threads spin while they wait, unless told otherwise before the library is loaded. On
  // shared cores (Slurm, laptops) spinning costs more than it saves, so the program starts itself
  // once more with the setting in place.
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) {
    ::setenv("OMP_WAIT_POLICY", "passive", 0);
    ::execv("/proc/self/exe", argv);
  }
  return graft::run_main([&] {
    return graft::run_program("graft", "train, evaluate and run models and adapters",
                              graft::train::train_commands(), argc, argv);
  });
}
