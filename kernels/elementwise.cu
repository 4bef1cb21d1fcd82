// Additions, scalings, soft caps and dropout on a GPU, and on the emulated device: a thread per
// four values, 8 or 12 B a value, bound by memory. Dropout: one Philox counter gives the four.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

__device__ __forceinline__ int64_t first_of_thread() {
  return 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) add_kernel(float* x, const float* y, int64_t count) {
  const int64_t i = first_of_thread();
  if (i >= count) return;
  const float4 sum =
      each_of_four(load_four<kAligned>(x + i, count - i), load_four<kAligned>(y + i, count - i),
                   [](float a, float b) { return __fadd_rn(a, b); });
  store_four<kAligned>(x + i, sum, count - i);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) scale_kernel(float* x, float s, int64_t count) {
  const int64_t i = first_of_thread();
  if (i >= count) return;
  const float4 v = load_four<kAligned>(x + i, count - i);
  store_four<kAligned>(x + i, each_of_four(v, v, [&](float a, float) { return __fmul_rn(a, s); }),
                       count - i);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    softcap_forward_kernel(float* x, float cap, int64_t count) {
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

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    softcap_backward_kernel(const float* y, float cap, int64_t count, float* dx) {
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

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) dropout_kernel(DropoutRows call, int64_t rows) {
  const int64_t quads = ceil_div(call.dim, 4);
  const int64_t item = first_of_thread() / 4, index = item / quads, quad = item % quads;
  if (index >= rows) return;
  const uint64_t row = static_cast<uint64_t>(call.row_index[index]);
  const uint4 word =
      philox(uint4{static_cast<unsigned>(quad),
                   static_cast<unsigned>(call.stream) ^ static_cast<unsigned>(row >> 32),
                   static_cast<unsigned>(row), static_cast<unsigned>(call.stream >> 32)},
             call.seed);
  float* const x = call.x + index * call.dim + 4 * quad;
  const int64_t left = call.dim - 4 * quad;
  float4 v = load_four<kAligned>(x, left);
  v.x = word.x >= call.threshold ? __fmul_rn(v.x, call.keep_scale) : 0.0f;
  v.y = word.y >= call.threshold ? __fmul_rn(v.y, call.keep_scale) : 0.0f;
  v.z = word.z >= call.threshold ? __fmul_rn(v.z, call.keep_scale) : 0.0f;
  v.w = word.w >= call.threshold ? __fmul_rn(v.w, call.keep_scale) : 0.0f;
  store_four<kAligned>(x, v, left);
}

int64_t blocks_of(int64_t threads) {
  return (threads + kThreads - 1) / kThreads;
}

}  // namespace

graft_status add(float* x, const float* y, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_add";
  const int64_t blocks = blocks_of((count + 3) / 4);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(x, y)) {
    GRAFT_LAUNCH((add_kernel<true>), grid, kThreads, stream, x, y, count);
  } else {
    GRAFT_LAUNCH((add_kernel<false>), grid, kThreads, stream, x, y, count);
  }
  return launch_status(kName);
}

graft_status scale(float* x, float s, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_scale";
  const int64_t blocks = blocks_of((count + 3) / 4);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(x)) {
    GRAFT_LAUNCH((scale_kernel<true>), grid, kThreads, stream, x, s, count);
  } else {
    GRAFT_LAUNCH((scale_kernel<false>), grid, kThreads, stream, x, s, count);
  }
  return launch_status(kName);
}

graft_status softcap_forward(float* x, float cap, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_forward";
  const int64_t blocks = blocks_of((count + 3) / 4);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(x)) {
    GRAFT_LAUNCH((softcap_forward_kernel<true>), grid, kThreads, stream, x, cap, count);
  } else {
    GRAFT_LAUNCH((softcap_forward_kernel<false>), grid, kThreads, stream, x, cap, count);
  }
  return launch_status(kName);
}

graft_status softcap_backward(
    const float* y, float cap, int64_t count, float* dx, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_backward";
  const int64_t blocks = blocks_of((count + 3) / 4);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(y, dx)) {
    GRAFT_LAUNCH((softcap_backward_kernel<true>), grid, kThreads, stream, y, cap, count, dx);
  } else {
    GRAFT_LAUNCH((softcap_backward_kernel<false>), grid, kThreads, stream, y, cap, count, dx);
  }
  return launch_status(kName);
}

graft_status dropout(const DropoutRows& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_dropout_mask_apply";
  const int64_t blocks = blocks_of((call.dim + 3) / 4 * rows);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (call.dim % 4 == 0 && aligned_to_16(call.x)) {
    GRAFT_LAUNCH((dropout_kernel<true>), grid, kThreads, stream, call, rows);
  } else {
    GRAFT_LAUNCH((dropout_kernel<false>), grid, kThreads, stream, call, rows);
  }
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
