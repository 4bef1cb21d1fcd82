// LibTorch's FlashAttention-2, from the part of it that needs a GPU's libraries (flash.h).
#pragma once

#include "train/engine/flash.h"

namespace graft::train {

std::unique_ptr<Flash> load_torch_flash(const Device& device,
                                        bool deterministic,
                                        std::string* reason);

}  // namespace graft::train
