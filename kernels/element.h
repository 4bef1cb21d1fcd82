// The element types of activations (internal).
#pragma once

#include "kernels/status.h"

namespace graft::kernels {

// A bfloat16: the upper half of a float32.
struct Bf16 {
  uint16_t bits;
};

// An IEEE half, for weights only.
struct F16 {
  uint16_t bits;
};

// What every NaN becomes when it is rounded to bfloat16.
constexpr uint16_t kBf16NaN = 0x7fff;

// body(an element of the type); the caller has checked that it is float32 or bfloat16. Without
// linkage outside the file, as simd/ compiles it once per instruction set.
namespace {
template <class Body>
auto for_element(graft_float_type type, const Body& body) {
  return type == GRAFT_BF16 ? body(Bf16{}) : body(float{});
}
}  // namespace

}  // namespace graft::kernels
