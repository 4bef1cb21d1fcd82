#include "kernels/rope.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

using namespace graft::kernels;

extern "C" graft_status graft_rope_tables(const int32_t* positions,
                                          int64_t tokens,
                                          const float* inv_freq,
                                          int64_t half,
                                          float scaling,
                                          float* cos,
                                          float* sin) {
  constexpr const char* kName = "graft_rope_tables";
  if (const graft_status status = check_counts(kName, {{"tokens", tokens}, {"half", half, 1}})) {
    return status;
  }
  if (tokens == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"positions", positions}, {"inv_freq", inv_freq}, {"cos", cos}, {"sin", sin}})) {
    return status;
  }
  // A sine and cosine cost about as much as 32 element operations.
  for_pieces(tokens, 32, 32 * tokens * half, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float position = static_cast<float>(positions[token]);
      for (int64_t i = 0; i < half; ++i) {
        const float rounded_angle = position * inv_freq[i];
        const double angle = static_cast<double>(rounded_angle);
        cos[token * half + i] = static_cast<float>(std::cos(angle)) * scaling;
        sin[token * half + i] = static_cast<float>(std::sin(angle)) * scaling;
      }
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_rope_apply(void* x,
                                         int64_t tokens,
                                         int64_t heads,
                                         int64_t head_dim,
                                         int64_t row_stride,
                                         const float* cos,
                                         const float* sin,
                                         graft_rope_direction dir,
                                         int64_t rotary_dim,
                                         graft_float_type type,
                                         graft_device device,
                                         graft_stream stream) {
  constexpr const char* kName = "graft_rope_apply";
  if (rotary_dim == 0) rotary_dim = head_dim;
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens},
                               {"heads", heads},
                               {"head_dim", head_dim, 2},
                               {"rotary_dim", rotary_dim, 2},
                               {"row_stride", row_stride, heads * head_dim}})) {
    return status;
  }
  if (rotary_dim % 2 != 0 || rotary_dim > head_dim) {
    return fail(GRAFT_BAD_SHAPE, kName, "rotary_dim is %lld, expected an even number up to %lld",
                static_cast<long long>(rotary_dim), static_cast<long long>(head_dim));
  }
  if (dir != GRAFT_ROPE_FORWARD && dir != GRAFT_ROPE_INVERSE) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "direction is %d, expected 0 or 1",
                static_cast<int>(dir));
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (tokens == 0 || heads == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}, {"cos", cos}, {"sin", sin}})) {
    return status;
  }
  const float sign = dir == GRAFT_ROPE_FORWARD ? 1.0f : -1.0f;
  const RopeTurn call{x, type, heads, head_dim, rotary_dim, row_stride, cos, sin, sign};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.rope_apply(call, tokens, stream);
    });
  }
  const Table& isa = table();
  for_pieces(tokens, 16, tokens * heads * rotary_dim,
             [&](int64_t begin, int64_t end) { isa.rope_apply(call, begin, end); });
  return GRAFT_OK;
}
