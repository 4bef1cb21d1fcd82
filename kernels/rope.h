// Rotary position embedding (arXiv 2104.09864) in Hugging Face's pairing: element i of a head turns
// with element i + head_dim / 2 (rotate_half).
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_rope_direction GRAFT_ANY_INT {
  GRAFT_ROPE_FORWARD = 0,
  GRAFT_ROPE_INVERSE = 1  // the transpose, which is the gradient of the forward rotation
} graft_rope_direction;

// cos[t, i] = cos(a) * scaling and sin[t, i] likewise, a = float32(positions[t]) * inv_freq[i].
// The angle is rounded to float32 before the functions, as Hugging Face does; the functions are
// then the nearest float32 of the double-precision ones.
//   positions [tokens]   any int32
//   inv_freq  [half]     already scaled for long context by the caller
//   scaling              attention_factor of the long-context variants, else 1
//   cos, sin  [tokens, half] out
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT.
graft_status graft_rope_tables(const int32_t* positions,
                               int64_t tokens,
                               const float* inv_freq,
                               int64_t half,
                               float scaling,
                               float* cos,
                               float* sin);

// Turns every head of every token in place, with half = rotary_dim / 2:
//   x[i]        <- x[i] * cos - x[i + half] * sin
//   x[i + half] <- x[i + half] * cos + x[i] * sin        (sin negated for GRAFT_ROPE_INVERSE)
//   x           [tokens, heads, head_dim] of `type`, `row_stride` elements from token to token
//   cos, sin    [tokens, rotary_dim / 2]
//   row_stride  >= heads * head_dim
//   rotary_dim  even, at most head_dim: the first elements of a head turn, the others stay (partial
//               rotary of Phi, GLM and StableLM); 0 for head_dim, which is then even
// Products are rounded before they are added, on every device.
// Errors: GRAFT_BAD_SHAPE, GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE, GRAFT_DEVICE_ERROR.
graft_status graft_rope_apply(void* x,
                              int64_t tokens,
                              int64_t heads,
                              int64_t head_dim,
                              int64_t row_stride,
                              const float* cos,
                              const float* sin,
                              graft_rope_direction dir,
                              int64_t rotary_dim GRAFT_DEFAULT(0),
                              graft_float_type type GRAFT_DEFAULT(GRAFT_F32),
                              graft_device device GRAFT_DEFAULT(GRAFT_CPU),
                              graft_stream stream GRAFT_DEFAULT(nullptr));

#ifdef __cplusplus
}
#endif
