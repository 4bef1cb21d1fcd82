#include "train/job/commands.h"

#include <cstdio>

#include "core/error.h"
#include "core/progress.h"
#include "train/job/trainer.h"

namespace graft::train {
namespace {

int run_train(const Args& args) {
  const std::string path = args.positionals()[0];
  const std::vector<std::string> overrides(args.positionals().begin() + 1,
                                           args.positionals().end());
  const RunResult result =
      run_training(read_train_config(path, overrides), {args.text("--resume")});
  if (args.json()) {
    std::printf("%s\n", dump_json(result.summary).c_str());
  }
  return result.exit_code;
}

}  // namespace

std::vector<Command> train_commands() {
  return {
      {"train",
       "CONFIG.yaml [key=value …]",
       1,
       -1,
       "train an adapter or a whole model; the same command again resumes it",
       {{"--resume", "auto|none|DIR", "auto",
         "go on from the newest checkpoint of output_dir, start anew, or start from another run's"}},
       {"graft train configs/qlora.yaml", "graft train run.yaml lora_r=8 output_dir=out/r8"},
       run_train},
  };
}

}  // namespace graft::train
