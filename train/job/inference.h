// The commands that only run a model: eval, logits, generate.
#pragma once

#include <memory>
#include <string>

#include "core/args.h"
#include "train/model/model.h"

namespace graft::train {

int run_eval(const Args& args);
int run_logits(const Args& args);
int run_generate(const Args& args);

}  // namespace graft::train
