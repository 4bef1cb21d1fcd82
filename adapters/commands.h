// The commands of graft-adapter.
#pragma once

#include <vector>

#include "core/args.h"

namespace graft::adapters {

std::vector<Command> adapter_commands();   // graft adapter …
std::vector<Command> quantize_commands();  // graft quantize

}  // namespace graft::adapters
