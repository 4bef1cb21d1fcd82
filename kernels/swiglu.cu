// Gated units on a GPU, and on the emulated device: a thread per four values of a row. In float32
// forward 12 B a value, backward 20 B, half of it in bfloat16; about 40 operations: bound by
// memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

struct Activation {
  float value, slope;
};

// As activate() of simd/rows.cpp.
template <graft_gate kGate>
__device__ __forceinline__ Activation activate(float g) {
  if constexpr (kGate == GRAFT_SILU) {
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

template <class Element, graft_gate kGate, bool kAligned>
__global__ void __launch_bounds__(kThreads) gate_forward_kernel(GateForward call, int64_t rows) {
  const Four at = four_of_thread(call.dim);
  if (at.row >= rows) return;
  const int64_t in = at.row * call.gate_stride + at.column;
  const float4 gate = load_four<kAligned>(static_cast<const Element*>(call.gate) + in, at.left);
  const float4 up = load_four<kAligned>(static_cast<const Element*>(call.up) + in, at.left);
  store_four<kAligned>(
      static_cast<Element*>(call.out) + at.row * call.out_stride + at.column,
      each_of_four(gate, up,
                   [](float g, float u) { return __fmul_rn(activate<kGate>(g).value, u); }),
      at.left);
}

template <class Element, graft_gate kGate, bool kAligned>
__global__ void __launch_bounds__(kThreads) gate_backward_kernel(GateBackward call, int64_t rows) {
  const Four at = four_of_thread(call.dim);
  if (at.row >= rows) return;
  const int64_t in = at.row * call.gate_stride + at.column;
  const float4 g = load_four<kAligned>(static_cast<const Element*>(call.gate) + in, at.left);
  const float4 up = load_four<kAligned>(static_cast<const Element*>(call.up) + in, at.left);
  const float4 d = load_four<kAligned>(
      static_cast<const Element*>(call.dout) + at.row * call.dout_stride + at.column, at.left);
  const Activation a[4] = {activate<kGate>(g.x), activate<kGate>(g.y), activate<kGate>(g.z),
                           activate<kGate>(g.w)};
  store_four<kAligned>(static_cast<Element*>(call.dgate) + in,
                       float4{__fmul_rn(__fmul_rn(d.x, up.x), a[0].slope),
                              __fmul_rn(__fmul_rn(d.y, up.y), a[1].slope),
                              __fmul_rn(__fmul_rn(d.z, up.z), a[2].slope),
                              __fmul_rn(__fmul_rn(d.w, up.w), a[3].slope)},
                       at.left);
  store_four<kAligned>(static_cast<Element*>(call.dup) + in,
                       float4{__fmul_rn(d.x, a[0].value), __fmul_rn(d.y, a[1].value),
                              __fmul_rn(d.z, a[2].value), __fmul_rn(d.w, a[3].value)},
                       at.left);
}

// launch(element, gate, aligned), all as types.
template <class Launch>
void for_gate(graft_gate kind, graft_float_type type, bool aligned, const Launch& launch) {
  for_variant(type, aligned, [&](auto element, auto is_aligned) {
    if (kind == GRAFT_SILU) {
      launch(element, std::integral_constant<graft_gate, GRAFT_SILU>{}, is_aligned);
    } else {
      launch(element, std::integral_constant<graft_gate, GRAFT_GELU_TANH>{}, is_aligned);
    }
  });
}

}  // namespace

graft_status gate_forward(const GateForward& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_gate_forward";
  const int64_t blocks = blocks_of_fours(rows, call.dim, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned = call.dim % 4 == 0 && call.gate_stride % 4 == 0 && call.out_stride % 4 == 0 &&
                       aligned_for_four(call.type, call.gate, call.up, call.out);
  for_gate(call.gate_kind, call.type, aligned, [&](auto element, auto gate, auto is_aligned) {
    GRAFT_LAUNCH((gate_forward_kernel<decltype(element), gate.value, is_aligned.value>),
                 static_cast<unsigned>(blocks), kThreads, stream, call, rows);
  });
  return launch_status(kName);
}

graft_status gate_backward(const GateBackward& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_gate_backward";
  const int64_t blocks = blocks_of_fours(rows, call.dim, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const bool aligned =
      call.dim % 4 == 0 && call.gate_stride % 4 == 0 && call.dout_stride % 4 == 0 &&
      aligned_for_four(call.type, call.dout, call.gate, call.up, call.dgate, call.dup);
  for_gate(call.gate_kind, call.type, aligned, [&](auto element, auto gate, auto is_aligned) {
    GRAFT_LAUNCH((gate_backward_kernel<decltype(element), gate.value, is_aligned.value>),
                 static_cast<unsigned>(blocks), kThreads, stream, call, rows);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
