// The commands of graft-train.
#pragma once

#include <vector>

#include "core/args.h"

namespace graft::train {

std::vector<Command> train_commands();

}  // namespace graft::train
