// graft-adapter: adapters and 4-bit checkpoints as files. No LibTorch: nothing here runs a model.
#include <string_view>
#include <vector>

#include "adapters/commands.h"
#include "core/args.h"
#include "core/error.h"

int main(int argc, char** argv) {
  return graft::run_main([&] {
    const bool quantize = argc > 1 && std::string_view(argv[1]) == "quantize";
    if (quantize) {
      return graft::run_program("graft", "4-bit checkpoints", graft::adapters::quantize_commands(),
                                argc, argv);
    }
    return graft::run_program("graft adapter", "inspect and merge adapters",
                              graft::adapters::adapter_commands(), argc, argv);
  });
}
