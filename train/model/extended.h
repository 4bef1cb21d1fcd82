// Weights of a narrow model with the adapters' pairs around them. The linears of one input are one
// weight of bfloat16: with N the sum of their outputs, R that of their ranks and K their input,
// M [N + R, K + R] of q, k and v is
//
//     W_q  s B_q    0      0
//     W_k    0    s B_k    0
//     W_v    0      0    s B_v
//     A_q    -      -      -
//     A_k    -      -      -
//     A_v    -      -      -
//
// so that a few products serve all of them (train/engine/narrow_linear.h). What stands behind A is
// never read.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/decode_rows.h"
#include "train/engine/device.h"
#include "train/model/model.h"

namespace graft::train {

// Whether a model with names, shapes and adapters can be narrow: every linear takes bfloat16, has
// no bias, and an adapter without dropout or magnitudes whose rank is a multiple of 8 (16 bytes);
// no experts, whose router must see what was not rounded; no norm inside a head that is trained.
bool can_be_narrow(const Model& model);

// Lets a model with adapters be narrow where it can be.
void choose_width(Model& model);

// q, k and v are the most that share an input.
constexpr size_t kMostLinears = 3;

// What the linears of a group have together.
struct GroupShape {
  int64_t in = 0;                               // K, that of each
  int64_t out = 0;                              // N
  int64_t rank = 0;                             // R
  int64_t stride() const { return in + rank; }  // from row to row of M, and of x with u behind
  int64_t wide() const { return out + rank; }   // rows of M, and values of a row of dy with du
};
GroupShape shape_of(LinearGroup group);

// Values of a group's extended weight.
int64_t extended_count(LinearGroup group);

// Whether any weight of a group is in 4 bits: then the extended one is made for each use of it, or
// once by whoever keeps it, from what the linears hold.
bool is_quantized(LinearGroup group);

// Extends the dense weights of a narrow model where they lie, and lets go of the dense ones. A
// group with a weight in 4 bits is left as it is.
void extend_weights(Model& model);

// Gives the dense weights of extend_weights() back, bit for bit.
void separate_weights(Model& model);

// The extended weight of a group in out [N + R, K + R], in the device's memory.
void make_extended(LinearGroup group, const Device& device, uint16_t* out);

// The parts of out [N + R, K + R] whose weights are in 4 bits, and the rest of it in the
// processor's memory, for a product that decodes on its way (kernels/product_decode.h).
struct ExtendedTargets {
  std::array<graft_decode_target, kMostLinears> target;
  int64_t count = 0;
};
ExtendedTargets make_all_but_packed(LinearGroup group, uint16_t* out);

// Brings A and B in every extended weight to the present ones.
void refresh_extended(Model& model);

}  // namespace graft::train
