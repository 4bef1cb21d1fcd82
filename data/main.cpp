// graft-data: the dataset side of graft. No LibTorch, so that it starts in milliseconds.
#include <vector>

#include "core/args.h"
#include "core/error.h"
#include "data/curate/commands.h"
#include "data/text/commands.h"

int main(int argc, char** argv) {
  return graft::run_main([&] {
    std::vector<graft::Command> commands = graft::data::curate_commands();
    std::vector<graft::Command> text = graft::data::text_commands();
    for (graft::Command& command : text) {
      commands.push_back(std::move(command));
    }
    return graft::run_program("graft data", "curate, deduplicate and tokenize instruction data",
                              commands, argc, argv);
  });
}
