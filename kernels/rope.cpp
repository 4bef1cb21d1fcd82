#include "kernels/rope.h"

#include <cmath>

#include "kernels/check.h"
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

extern "C" graft_status graft_rope_apply(float* x,
                                         int64_t tokens,
                                         int64_t heads,
                                         int64_t head_dim,
                                         int64_t row_stride,
                                         const float* cos,
                                         const float* sin,
                                         graft_rope_direction dir) {
  constexpr const char* kName = "graft_rope_apply";
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens}, {"heads", heads}, {"head_dim", head_dim, 2}})) {
    return status;
  }
  if (head_dim % 2 != 0) {
    return fail(GRAFT_BAD_SHAPE, kName, "head_dim is %lld, expected an even number",
                static_cast<long long>(head_dim));
  }
  if (const graft_status status =
          check_counts(kName, {{"row_stride", row_stride, heads * head_dim}})) {
    return status;
  }
  if (dir != GRAFT_ROPE_FORWARD && dir != GRAFT_ROPE_INVERSE) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "direction is %d, expected 0 or 1",
                static_cast<int>(dir));
  }
  if (tokens == 0 || heads == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}, {"cos", cos}, {"sin", sin}})) {
    return status;
  }
  const Table& isa = table();
  const float sign = dir == GRAFT_ROPE_FORWARD ? 1.0f : -1.0f;
  const int64_t half = head_dim / 2;
  for_pieces(tokens, 16, tokens * heads * head_dim, [&](int64_t begin, int64_t end) {
    isa.rope_apply(x + begin * row_stride, end - begin, heads, head_dim, row_stride,
                   cos + begin * half, sin + begin * half, sign);
  });
  return GRAFT_OK;
}
