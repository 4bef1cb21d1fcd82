// The commands of graft-data that judge and clean records.
#pragma once

#include <vector>

#include "core/args.h"

namespace graft::data {

std::vector<Command> curate_commands();

}  // namespace graft::data
