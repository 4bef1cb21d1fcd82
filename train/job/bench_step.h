// graft bench step: speed, memory and breakdown of training steps on random tokens.
#pragma once

#include "core/args.h"

namespace graft::train {

Command bench_step_command();

}  // namespace graft::train
