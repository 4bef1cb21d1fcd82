// Additions, conversions, soft caps and dropout on a GPU, and on the emulated device: a thread per
// four values of a row, 8 or 12 B a value in float32, bound by memory. Dropout: one Philox counter
// gives the four.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

__device__ __forceinline__ int64_t first_of_thread() {
  return 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <class X, class Y, bool kAligned>
__global__ void __launch_bounds__(kThreads) addition_kernel(X* x, const Y* y, int64_t count) {
  const int64_t i = first_of_thread();
  if (i >= count) return;
  const float4 sum =
      each_of_four(load_four<kAligned>(x + i, count - i), load_four<kAligned>(y + i, count - i),
                   [](float a, float b) { return __fadd_rn(a, b); });
  store_four<kAligned>(x + i, sum, count - i);
}

template <class From, class To, bool kAligned>
__global__ void __launch_bounds__(kThreads) conversion_kernel(Conversion call, int64_t rows) {
  const Four at = four_of_thread(call.columns);
  if (at.row >= rows) return;
  const From* const from = static_cast<const From*>(call.from) + at.row * call.from_stride;
  To* const to = static_cast<To*>(call.to) + at.row * call.to_stride;
  const float4 v = load_four<kAligned>(from + at.column, at.left);
  store_four<kAligned>(to + at.column,
                       each_of_four(v, v, [&](float a, float) { return __fmul_rn(a, call.scale); }),
                       at.left);
}

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    softcap_forward_kernel(Element* x, float cap, int64_t count) {
  const int64_t i = first_of_thread();
  if (i >= count) return;
  const float4 v = load_four<kAligned>(x + i, count - i);
  store_four<kAligned>(x + i,
                       each_of_four(v, v,
                                    [&](float a, float) {
                                      const float t = hyperbolic_tangent(__fdiv_rn(a, cap));
                                      return __fmul_rn(t, cap);
                                    }),
                       count - i);
}

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    softcap_backward_kernel(const Element* y, Element* dx, float cap, int64_t count) {
  const int64_t i = first_of_thread();
  if (i >= count) return;
  const float4 d =
      each_of_four(load_four<kAligned>(y + i, count - i), load_four<kAligned>(dx + i, count - i),
                   [&](float value, float gradient) {
                     const float t = __fdiv_rn(value, cap);
                     return __fmul_rn(gradient, __fmul_rn(__fsub_rn(1.0f, t), __fadd_rn(1.0f, t)));
                   });
  store_four<kAligned>(dx + i, d, count - i);
}

// Philox4x32-10 (Salmon et al., SC 2011, fig. 2).
__device__ __forceinline__ uint4 philox(uint4 counter, uint64_t seed) {
  unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.x, p1 = uint64_t{0xCD9E8D57u} * counter.z;
    counter = uint4{static_cast<unsigned>(p1 >> 32) ^ counter.y ^ key0, static_cast<unsigned>(p1),
                    static_cast<unsigned>(p0 >> 32) ^ counter.w ^ key1, static_cast<unsigned>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kThreads) dropout_kernel(DropoutRows call, int64_t rows) {
  const Four at = four_of_thread(call.dim);
  if (at.row >= rows) return;
  const uint64_t row = static_cast<uint64_t>(call.row_index[at.row]);
  const uint4 word =
      philox(uint4{static_cast<unsigned>(at.column / 4),
                   static_cast<unsigned>(call.stream) ^ static_cast<unsigned>(row >> 32),
                   static_cast<unsigned>(row), static_cast<unsigned>(call.stream >> 32)},
             call.seed);
  Element* const x = static_cast<Element*>(call.x) + at.row * call.dim + at.column;
  float4 v = load_four<kAligned>(x, at.left);
  v.x = word.x >= call.threshold ? __fmul_rn(v.x, call.keep_scale) : 0.0f;
  v.y = word.y >= call.threshold ? __fmul_rn(v.y, call.keep_scale) : 0.0f;
  v.z = word.z >= call.threshold ? __fmul_rn(v.z, call.keep_scale) : 0.0f;
  v.w = word.w >= call.threshold ? __fmul_rn(v.w, call.keep_scale) : 0.0f;
  store_four<kAligned>(x, v, at.left);
}

}  // namespace

graft_status addition(const Addition& call, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_add";
  const int64_t blocks = blocks_of_fours(1, count, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned = count % 4 == 0 && aligned_for_four(call.x_type, call.x) &&
                       aligned_for_four(call.y_type, call.y);
  for_variant(call.x_type, aligned, [&](auto x_element, auto is_aligned) {
    for_element(call.y_type, [&](auto y_element) {
      using X = decltype(x_element);
      using Y = decltype(y_element);
      GRAFT_LAUNCH((addition_kernel<X, Y, is_aligned.value>), static_cast<unsigned>(blocks),
                   kThreads, stream, static_cast<X*>(call.x), static_cast<const Y*>(call.y), count);
    });
  });
  return launch_status(kName);
}

graft_status conversion(const Conversion& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_convert";
  const int64_t blocks = blocks_of_fours(rows, call.columns, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned = call.columns % 4 == 0 && call.from_stride % 4 == 0 &&
                       call.to_stride % 4 == 0 && aligned_for_four(call.from_type, call.from) &&
                       aligned_for_four(call.to_type, call.to);
  for_variant(call.from_type, aligned, [&](auto from, auto is_aligned) {
    for_element(call.to_type, [&](auto to) {
      GRAFT_LAUNCH((conversion_kernel<decltype(from), decltype(to), is_aligned.value>),
                   static_cast<unsigned>(blocks), kThreads, stream, call, rows);
    });
  });
  return launch_status(kName);
}

graft_status softcap_forward(
    void* x, graft_float_type type, float cap, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_forward";
  const int64_t blocks = blocks_of_fours(1, count, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  for_variant(type, count % 4 == 0 && aligned_for_four(type, x), [&](auto element, auto aligned) {
    using Element = decltype(element);
    GRAFT_LAUNCH((softcap_forward_kernel<Element, aligned.value>), static_cast<unsigned>(blocks),
                 kThreads, stream, static_cast<Element*>(x), cap, count);
  });
  return launch_status(kName);
}

graft_status softcap_backward(
    const void* y, void* dx, graft_float_type type, float cap, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_backward";
  const int64_t blocks = blocks_of_fours(1, count, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned = count % 4 == 0 && aligned_for_four(type, y, dx);
  for_variant(type, aligned, [&](auto element, auto is_aligned) {
    using Element = decltype(element);
    GRAFT_LAUNCH((softcap_backward_kernel<Element, is_aligned.value>),
                 static_cast<unsigned>(blocks), kThreads, stream, static_cast<const Element*>(y),
                 static_cast<Element*>(dx), cap, count);
  });
  return launch_status(kName);
}

graft_status dropout(const DropoutRows& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_dropout_mask_apply";
  const int64_t blocks = blocks_of_fours(rows, call.dim, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned = call.dim % 4 == 0 && aligned_for_four(call.type, call.x);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    GRAFT_LAUNCH((dropout_kernel<decltype(element), is_aligned.value>),
                 static_cast<unsigned>(blocks), kThreads, stream, call, rows);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
