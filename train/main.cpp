// graft-train: the programs that need the engine.
#include <unistd.h>

#include "core/args.h"
#include "core/error.h"
#include "core/idle_threads.h"
#include "train/job/commands.h"

int main(int argc, char** argv) {
  // OpenMP is loaded already: the program starts itself once more.
  if (graft::let_idle_threads_sleep()) ::execv("/proc/self/exe", argv);
  return graft::run_main([&] {
    return graft::run_program("graft", "train, evaluate and run models and adapters",
                              graft::train::train_commands(), argc, argv);
  });
}
