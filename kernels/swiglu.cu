// Gated units on a GPU, and on the emulated device: a thread per four values. Forward 12 B a value,
// backward 20 B, about 40 operations each: bound by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

struct Activation {
  float value, slope;
};

// As activate() of simd/rows.cpp.
template <Gate kGate>
__device__ __forceinline__ Activation activate(float g) {
  if constexpr (kGate == Gate::kSilu) {
    const float s = sigmoid(g);
    return {__fmul_rn(g, s), __fmul_rn(s, __fmaf_rn(g, __fsub_rn(1.0f, s), 1.0f))};
  } else {
    constexpr float kLinear = 1.5957691216f, kCubic = 0.0713548163f;
    float bounded = -16.0f > g ? -16.0f : g;
    bounded = 16.0f < bounded ? 16.0f : bounded;
    const float square = __fmul_rn(bounded, bounded);
    const float s = sigmoid(__fmul_rn(bounded, __fmaf_rn(square, kCubic, kLinear)));
    const float slope = __fmaf_rn(square, 3.0f * kCubic, kLinear);
    const float bend = __fmul_rn(__fmul_rn(s, __fsub_rn(1.0f, s)), __fmul_rn(bounded, slope));
    return {__fmul_rn(g, s), __fadd_rn(s, bend)};
  }
}

template <Gate kGate, bool kAligned>
__global__ void __launch_bounds__(kThreads) gate_forward_kernel(GateForward call, int64_t count) {
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (i >= count) return;
  const float4 gate = load_four<kAligned>(call.gate + i, count - i);
  const float4 up = load_four<kAligned>(call.up + i, count - i);
  store_four<kAligned>(
      call.out + i,
      each_of_four(gate, up,
                   [](float g, float u) { return __fmul_rn(activate<kGate>(g).value, u); }),
      count - i);
}

template <Gate kGate, bool kAligned>
__global__ void __launch_bounds__(kThreads) gate_backward_kernel(GateBackward call, int64_t count) {
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (i >= count) return;
  const float4 g = load_four<kAligned>(call.gate + i, count - i);
  const float4 up = load_four<kAligned>(call.up + i, count - i);
  const float4 d = load_four<kAligned>(call.dout + i, count - i);
  const Activation a[4] = {activate<kGate>(g.x), activate<kGate>(g.y), activate<kGate>(g.z),
                           activate<kGate>(g.w)};
  store_four<kAligned>(call.dgate + i,
                       float4{__fmul_rn(__fmul_rn(d.x, up.x), a[0].slope),
                              __fmul_rn(__fmul_rn(d.y, up.y), a[1].slope),
                              __fmul_rn(__fmul_rn(d.z, up.z), a[2].slope),
                              __fmul_rn(__fmul_rn(d.w, up.w), a[3].slope)},
                       count - i);
  store_four<kAligned>(call.dup + i,
                       float4{__fmul_rn(d.x, a[0].value), __fmul_rn(d.y, a[1].value),
                              __fmul_rn(d.z, a[2].value), __fmul_rn(d.w, a[3].value)},
                       count - i);
}

template <Gate kGate>
graft_status start_forward(const GateForward& call, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_swiglu_forward";
  const int64_t blocks = (count + 4 * kThreads - 1) / (4 * kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(call.gate, call.up, call.out)) {
    GRAFT_LAUNCH((gate_forward_kernel<kGate, true>), grid, kThreads, stream, call, count);
  } else {
    GRAFT_LAUNCH((gate_forward_kernel<kGate, false>), grid, kThreads, stream, call, count);
  }
  return launch_status(kName);
}

template <Gate kGate>
graft_status start_backward(const GateBackward& call, int64_t count, graft_stream stream) {
  constexpr const char* kName = "graft_swiglu_backward";
  const int64_t blocks = (count + 4 * kThreads - 1) / (4 * kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (count % 4 == 0 && aligned_to_16(call.dout, call.gate, call.up, call.dgate, call.dup)) {
    GRAFT_LAUNCH((gate_backward_kernel<kGate, true>), grid, kThreads, stream, call, count);
  } else {
    GRAFT_LAUNCH((gate_backward_kernel<kGate, false>), grid, kThreads, stream, call, count);
  }
  return launch_status(kName);
}

}  // namespace

graft_status gate_forward(const GateForward& call, int64_t count, graft_stream stream) {
  return call.gate_kind == Gate::kSilu ? start_forward<Gate::kSilu>(call, count, stream)
                                       : start_forward<Gate::kGeluTanh>(call, count, stream);
}

graft_status gate_backward(const GateBackward& call, int64_t count, graft_stream stream) {
  return call.gate_kind == Gate::kSilu ? start_backward<Gate::kSilu>(call, count, stream)
                                       : start_backward<Gate::kGeluTanh>(call, count, stream);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
