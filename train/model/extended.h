// Weights of a narrow model with the adapter's pair around them: [out + r, in + r] of bfloat16, W
// in the corner, scale * B behind its rows, A below (train/engine/narrow_linear.h).
#pragma once

#include <cstdint>

#include "train/engine/device.h"
#include "train/model/model.h"

namespace graft::train {

// Whether a model with names, shapes and adapters can be narrow: every linear takes bfloat16, has
// no bias, and an adapter without dropout or magnitudes whose rank is a multiple of 8 (16 bytes);
// no experts, whose router must see what was not rounded; no norm inside a head that is trained.
bool can_be_narrow(const Model& model);

// Lets a model with adapters be narrow where it can be and the device is not the processor.
void choose_width(Model& model, const Device& device);

// Values of a linear's extended weight.
int64_t extended_count(const Linear& linear);

// Extends the dense weights of a narrow model where they lie, and lets go of the dense ones; a
// weight in 4 bits is left as it is.
void extend_weights(Model& model);

// The extended form of one weight in 4 bits, in the device's memory.
void decode_extended(const Linear& linear, const Device& device, uint16_t* out);

// Brings A and B in every extended weight to the present ones.
void refresh_extended(Model& model);

}  // namespace graft::train
