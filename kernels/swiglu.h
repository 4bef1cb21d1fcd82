// The gated units of MLPs (arXiv 2002.05202): activation(gate) * up.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// out = gate * sigmoid(gate) * up, elementwise over `count` values.
// out may be gate or up. sigmoid is within 3 ulp (kernels/simd/vector.h); -inf and NaN pass through
// as IEEE arithmetic has it. Every device gives the same bits.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_swiglu_forward(const float* gate,
                                  const float* up,
                                  int64_t count,
                                  float* out,
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

// dgate = dout * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))), dup = dout * silu(gate).
// Overwrites dgate and dup. dgate may be gate (or dout), dup may be up (or dout): an element is
// read before it is written; dgate and dup must differ. Errors: as the forward.
graft_status graft_swiglu_backward(const float* dout,
                                   const float* gate,
                                   const float* up,
                                   int64_t count,
                                   float* dgate,
                                   float* dup,
                                   graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                   graft_stream stream GRAFT_DEFAULT(nullptr));

// out = gelu(gate) * up with the tanh form of GELU (arXiv 1606.08415; Gemma), taken as
// gate * sigmoid(2 sqrt(2 / pi) * (gate + 0.044715 gate^3)), which does not cancel for negative
// gates. Aliasing and errors as graft_swiglu_forward.
graft_status graft_geglu_forward(const float* gate,
                                 const float* up,
                                 int64_t count,
                                 float* out,
                                 graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                 graft_stream stream GRAFT_DEFAULT(nullptr));

// dgate = dout * up * gelu'(gate), dup = dout * gelu(gate). As graft_swiglu_backward.
graft_status graft_geglu_backward(const float* dout,
                                  const float* gate,
                                  const float* up,
                                  int64_t count,
                                  float* dgate,
                                  float* dup,
                                  graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                                  graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
