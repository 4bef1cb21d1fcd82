// Functions of one float32 that give the same bits on the processor and on a device (internal).
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define GRAFT_SCALAR static __device__ __forceinline__
#define GRAFT_SCALAR_FMA(a, b, c) __fmaf_rn(a, b, c)
#else
#define GRAFT_SCALAR [[maybe_unused]] static inline
#define GRAFT_SCALAR_FMA(a, b, c) __builtin_fmaf(a, b, c)
#endif

namespace graft::kernels {

// ln(x) of a positive normal number within 1 unit in the last place (tested at every 509th);
// infinity and NaN give themselves. Cephes' polynomial on [sqrt(1/2), sqrt(2)).
GRAFT_SCALAR float logarithm(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  // The bits of sqrt(1/2): mantissas from there to sqrt(2) keep their power of two.
  constexpr uint32_t kRootHalf = 0x3f3504f3u;
  const int32_t power = static_cast<int32_t>(bits - kRootHalf) >> 23;
  bits -= static_cast<uint32_t>(power) << 23;
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  const float z = mantissa - 1.0f, square = z * z, n = static_cast<float>(power);
  float p = 7.0376836292e-2f;
  p = GRAFT_SCALAR_FMA(p, z, -1.1514610310e-1f);
  p = GRAFT_SCALAR_FMA(p, z, 1.1676998740e-1f);
  p = GRAFT_SCALAR_FMA(p, z, -1.2420140846e-1f);
  p = GRAFT_SCALAR_FMA(p, z, 1.4249322787e-1f);
  p = GRAFT_SCALAR_FMA(p, z, -1.6668057665e-1f);
  p = GRAFT_SCALAR_FMA(p, z, 2.0000714765e-1f);
  p = GRAFT_SCALAR_FMA(p, z, -2.4999993993e-1f);
  p = GRAFT_SCALAR_FMA(p, z, 3.3333331174e-1f);
  // ln 2 in two parts: n times the first is exact.
  float tail = GRAFT_SCALAR_FMA(p * z, square, n * -2.12194440e-4f);
  tail = GRAFT_SCALAR_FMA(-0.5f, square, tail);
  return GRAFT_SCALAR_FMA(n, 0.693359375f, z + tail);
}

}  // namespace graft::kernels
