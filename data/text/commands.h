// The commands of graft-data that turn text into tokens.
#pragma once

#include <vector>

#include "core/args.h"

namespace graft::data {

std::vector<Command> text_commands();

}  // namespace graft::data
