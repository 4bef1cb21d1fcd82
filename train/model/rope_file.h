// The rotations that a config.json describes (internal to model/).
#pragma once

#include "train/model/config.h"
#include "train/model/config_file.h"

namespace graft::train {

// Fills config.ropes, and raises config.max_positions where a rotation is stretched beyond it.
// Errors: kData naming the key: an unknown type, a key that its type does not have, a number out of
// range, factors that are not one for each frequency.
void read_ropes(const ConfigFile& file, ModelConfig& config);

}  // namespace graft::train
