// The gated unit of Llama-style MLPs (arXiv 2002.05202): silu(gate) * up.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// out = gate * sigmoid(gate) * up, elementwise over `count` values.
// out may be gate or up. sigmoid is within 3 ulp (kernels/simd/vector.h); -inf and NaN pass through
// as IEEE arithmetic has it. Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_swiglu_forward(const float* gate, const float* up, int64_t count, float* out);

// dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))), dup = dout * silu(gate).
// Overwrites dgate and dup. dgate may be gate (or dout), dup may be up (or dout): an element is
// read before it is written; dgate and dup must differ. Errors: as the forward.
graft_status graft_swiglu_backward(
    const float* dout, const float* gate, const float* up, int64_t count, float* dgate, float* dup);

#ifdef __cplusplus
}
#endif
