// The vector functions of kernels/simd/vector.h for one value of a CUDA thread, operation by
// operation, so that both give the same bits (internal; included by .cu files after launch.h).
#pragma once

#include <type_traits>

#include "kernels/element.h"
#include "kernels/launch.h"
#include "kernels/scalar.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
__device__ __forceinline__ int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
__device__ __forceinline__ int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// 2^n for n in -126..127.
__device__ __forceinline__ float power_of_two(int n) {
  return __uint_as_float(static_cast<unsigned>(n + 127) << 23);
}

__device__ __forceinline__ float exponential(float x) {
  x = -104.0f > x ? -104.0f : x;
  x = 89.0f < x ? 89.0f : x;
  const float shift = 12582912.0f;
  const float n = __fsub_rn(__fadd_rn(__fmul_rn(x, 1.44269504088896341f), shift), shift);
  float r = __fmaf_rn(n, -0.693359375f, x);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
  if (!(n >= -151.0f)) return p;  // NaN
  // Two factors: each power is a normal number, and only the second product can round.
  const int power = static_cast<int>(n), first = power >> 1;
  return __fmul_rn(__fmul_rn(p, power_of_two(first)), power_of_two(power - first));
}

__device__ __forceinline__ float sigmoid(float x) {
  return __fdiv_rn(1.0f, __fadd_rn(1.0f, exponential(__fsub_rn(0.0f, x))));
}

__device__ __forceinline__ float hyperbolic_tangent(float x) {
  const float size = __uint_as_float(__float_as_uint(x) & 0x7fffffffu);
  const float square = __fmul_rn(x, x);
  float p = -5.70498872745e-3f;
  p = __fmaf_rn(p, square, 2.06390887954e-2f);
  p = __fmaf_rn(p, square, -5.37397155531e-2f);
  p = __fmaf_rn(p, square, 1.33314422036e-1f);
  p = __fmaf_rn(p, square, -3.33332819422e-1f);
  if (size < 0.625f) return __fmaf_rn(__fmul_rn(p, square), x, x);
  const float tail = __fdiv_rn(2.0f, __fadd_rn(exponential(__fadd_rn(size, size)), 1.0f));
  const unsigned rest = __float_as_uint(__fsub_rn(1.0f, tail)) & 0x7fffffffu;
  return __uint_as_float(rest | (__float_as_uint(x) & 0x80000000u));
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(Bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(F16 x) {
  return __half2float(__ushort_as_half(x.bits));
}
template <class Element>
__device__ __forceinline__ Element to_element(float x) {
  if constexpr (std::is_same_v<Element, float>) {
    return x;
  } else {
    return Bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  }
}
// x as it would be read after it was written to an array of Element.
template <class Element>
__device__ __forceinline__ float rounded_to(float x) {
  return to_float(to_element<Element>(x));
}

// One store of 128 or 64 bits. An assignment of the struct may become a store of each member.
__device__ __forceinline__ void store_word(float4* p, float4 v) {
#if defined(__CUDA_ARCH__)
  asm("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "f"(v.x),
      "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
#else
  *p = v;
#endif
}
__device__ __forceinline__ void store_word(uint2* p, uint2 v) {
#if defined(__CUDA_ARCH__)
  asm("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y)
      : "memory");
#else
  *p = v;
#endif
}

// Four neighbouring values; at the end of a row the missing ones are zero and are not stored.
// kAligned: the row begins at four elements' bytes and its length is a multiple of four; float32
// then moves in 128-bit accesses, bfloat16 in 64-bit ones.
template <bool kAligned, class Element>
__device__ __forceinline__ float4 load_four(const Element* p, int64_t left) {
  if constexpr (!kAligned) {
    return float4{to_float(p[0]), left > 1 ? to_float(p[1]) : 0.0f,
                  left > 2 ? to_float(p[2]) : 0.0f, left > 3 ? to_float(p[3]) : 0.0f};
  } else if constexpr (std::is_same_v<Element, float>) {
    return *reinterpret_cast<const float4*>(p);
  } else {
    const uint2 pairs = *reinterpret_cast<const uint2*>(p);
    return float4{__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
                  __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
  }
}
template <bool kAligned, class Element>
__device__ __forceinline__ void store_four(Element* p, float4 v, int64_t left) {
  if constexpr (!kAligned) {
    p[0] = to_element<Element>(v.x);
    if (left > 1) p[1] = to_element<Element>(v.y);
    if (left > 2) p[2] = to_element<Element>(v.z);
    if (left > 3) p[3] = to_element<Element>(v.w);
  } else if constexpr (std::is_same_v<Element, float>) {
    store_word(reinterpret_cast<float4*>(p), v);
  } else {
    const auto pair = [](float low, float high) {
      return to_element<Element>(low).bits | static_cast<unsigned>(to_element<Element>(high).bits)
                                                 << 16;
    };
    store_word(reinterpret_cast<uint2*>(p), uint2{pair(v.x, v.y), pair(v.z, v.w)});
  }
}
template <class Element>
__device__ __forceinline__ float4 rounded_four(float4 v) {
  return float4{rounded_to<Element>(v.x), rounded_to<Element>(v.y), rounded_to<Element>(v.z),
                rounded_to<Element>(v.w)};
}

// body(component of a, of b) for the four.
template <class Body>
__device__ __forceinline__ float4 each_of_four(float4 a, float4 b, const Body& body) {
  return float4{body(a.x, b.x), body(a.y, b.y), body(a.z, b.z), body(a.w, b.w)};
}

// Where a thread of a launch with one thread per four neighbouring elements of each row stands.
struct Four {
  int64_t row, column, left;  // left: elements from column to the row's end
};
__device__ __forceinline__ Four four_of_thread(int64_t columns) {
  const int64_t fours = ceil_div(columns, 4);
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = item / fours, column = 4 * (item - row * fours);
  return {row, column, columns - column};
}
// Its blocks.
inline int64_t blocks_of_fours(int64_t rows, int64_t columns, int64_t threads) {
  return ceil_div(rows * ceil_div(columns, 4), threads);
}

template <class... Pointers>
bool aligned_to_16(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}
// Whether rows of these arrays can be moved in whole fours.
template <class... Pointers>
bool aligned_for_four(graft_float_type type, const Pointers*... pointers) {
  const uintptr_t bytes = type == GRAFT_F32 ? 16 : 8;
  return ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

// launch(an element of the type, std::bool_constant of `aligned`).
template <class Launch>
void for_variant(graft_float_type type, bool aligned, const Launch& launch) {
  for_element(type, [&](auto element) {
    if (aligned) {
      launch(element, std::true_type{});
    } else {
      launch(element, std::false_type{});
    }
  });
}

constexpr int64_t kMostBlocks = 0x7fffffff;

inline graft_status check_grid(const char* function, int64_t blocks) {
  if (blocks <= kMostBlocks) return GRAFT_OK;
  return fail(GRAFT_BAD_SHAPE, function, "%lld thread blocks, at most %lld fit a launch",
              static_cast<long long>(blocks), static_cast<long long>(kMostBlocks));
}

}  // namespace
}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
