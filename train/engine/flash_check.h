// Whether a library's attention gives what graft's own does on this device: two short documents
// with gaps between their rows, forward and backward. A library that reads a place or a mask
// otherwise would train on wrong gradients without a word.
#pragma once

#include <string>

#include "train/engine/flash.h"

namespace graft::train {

// The extent of that batch in a model of `extent`: of a library that is only there to be checked,
// as what it allocates stays for its life.
FlashExtent check_extent(const FlashExtent& extent);

// False, with the reason, where results or gradients differ by more than roundings to bfloat16 do
// or the library refuses. Waits for the device and uses memory of its own, released at the end.
bool flash_agrees(Flash& flash,
                  const Device& device,
                  const FlashExtent& extent,
                  std::string* reason);

}  // namespace graft::train
