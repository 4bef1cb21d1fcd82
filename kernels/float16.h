// The 16-bit floating types as their bits (internal). Nothing here has linkage outside the file
// that includes it, as simd/ compiles it once per instruction set.
#pragma once

#include <stdint.h>

#include "kernels/element.h"

namespace graft::kernels {
namespace {

[[maybe_unused]] inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
[[maybe_unused]] inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// To nearest, ties to even; for values that are not NaN.
[[maybe_unused]] inline uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// The same; any NaN becomes the one that GPUs give.
[[maybe_unused]] inline uint16_t to_bf16_or_nan(float x) {
  return (bits_of(x) & 0x7fffffffu) > 0x7f800000u ? uint16_t{kBf16NaN} : to_bf16(x);
}
[[maybe_unused]] inline float from_bf16(uint16_t x) {
  return float_of(static_cast<uint32_t>(x) << 16);
}

[[maybe_unused]] inline uint16_t to_f16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {  // below 2^-14: a denormal half, a multiple of 2^-24
    // Adding 0.5 puts the last kept bit at 2^-24 of the sum, so the addition does the rounding.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}
// Exact: the product with 2^112 moves the exponent and makes a denormal half a normal float.
[[maybe_unused]] inline float from_f16(uint16_t x) {
  const uint32_t magnitude = x & 0x7fffu;
  const uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(scaled | special | static_cast<uint32_t>(x & 0x8000u) << 16);
}

// out[i] = value i of an array of `type` at any alignment.
[[maybe_unused]] inline void widen(const void* values,
                                   graft_float_type type,
                                   int64_t count,
                                   float* out) {
  if (type == GRAFT_F32) {
    __builtin_memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const unsigned char* const bytes = static_cast<const unsigned char*>(values);
  if (type == GRAFT_BF16) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t x;
      __builtin_memcpy(&x, bytes + 2 * i, sizeof x);
      out[i] = from_bf16(x);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t x;
    __builtin_memcpy(&x, bytes + 2 * i, sizeof x);
    out[i] = from_f16(x);
  }
}

}  // namespace
}  // namespace graft::kernels
