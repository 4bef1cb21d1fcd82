// DoRA: adapters whose weight has rows of trained lengths (Weight-Decomposed Low-Rank Adaptation,
// arXiv 2402.09353). W' = magnitude (W + scale * B A) / |row of W + scale * B A|.
//
// The norm of a row is found without making the sum: |W + s B A|^2 = |W|^2 + 2 s B (A W^T) +
// s^2 B (A A^T) B^T, with |W|^2 kept from the start.
#pragma once

#include "train/model/model.h"

namespace graft::train {

// Gives an adapted linear magnitudes, the lengths that its rows have now. The model keeps computing
// what it did.
void add_magnitude(Linear& linear);

// The same with magnitudes of a stored adapter, [out] values.
void set_magnitude(Linear& linear, const float* values);

// Brings every gain to the present A, B and magnitude: after anything changed them, and before the
// next forward pass.
void refresh_gains(Model& model);

}  // namespace graft::train
