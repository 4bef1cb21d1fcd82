// RMSNorm on a GPU, and on the emulated device.
//
// One warp per row: lane t holds elements 4t..4t+3 of every 128, so that a row moves in 128-bit
// accesses (64-bit for bfloat16) and its sum has the 128 lanes that rmsnorm.h defines. In float32
// forward 8 B a value (12 B with the residual's addition, which a separate kernel would make 20),
// backward 16 B, half of it in bfloat16: bound by memory; the second reading of a row comes from
// the first-level cache. Weight gradient: one warp per tile of 64 rows and 32 columns, 16 tiles at
// a time, added in order.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kRowsOfBlock = 8;
constexpr int64_t kStep = 4 * kWarpLanes;
// Steps of a row whose loads are on their way at once: a warp has a row to itself, and the compiler
// may not move a load before a store.
constexpr int kGroup = 4;
// Rows of one partial sum of the weight gradient (rmsnorm.h), tiles of one block at a time.
constexpr int64_t kRowTile = 64;
constexpr unsigned kTilesOfBlock = 16;

// The sum of the row's 128 lanes, on every lane of the warp.
__device__ float row_sum(float4 lanes) {
  for (int distance = 16; distance > 0; distance /= 2) {
    lanes.x = __fadd_rn(lanes.x, __shfl_xor_sync(kAllLanes, lanes.x, distance));
    lanes.y = __fadd_rn(lanes.y, __shfl_xor_sync(kAllLanes, lanes.y, distance));
    lanes.z = __fadd_rn(lanes.z, __shfl_xor_sync(kAllLanes, lanes.z, distance));
    lanes.w = __fadd_rn(lanes.w, __shfl_xor_sync(kAllLanes, lanes.w, distance));
  }
  return __fadd_rn(__fadd_rn(lanes.x, lanes.z), __fadd_rn(lanes.y, lanes.w));
}

__device__ __forceinline__ float4 fma_four(float4 a, float4 b, float4 c) {
  return float4{__fmaf_rn(a.x, b.x, c.x), __fmaf_rn(a.y, b.y, c.y), __fmaf_rn(a.z, b.z, c.z),
                __fmaf_rn(a.w, b.w, c.w)};
}

// Calls body(number in the group, element) for the steps of the group that begins at `base`.
template <class Body>
__device__ __forceinline__ void for_group(int64_t base, int64_t dim, const Body& body) {
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    const int64_t i = base + g * kStep;
    if (i < dim) body(g, i);
  }
}

template <bool kAligned>
__device__ __forceinline__ float4 factors(const float* weight, int64_t left, bool plus_one) {
  const float4 w = load_four<kAligned>(weight, left);
  if (!plus_one) return w;
  return float4{__fadd_rn(1.0f, w.x), __fadd_rn(1.0f, w.y), __fadd_rn(1.0f, w.z),
                __fadd_rn(1.0f, w.w)};
}

template <class Element, class Out, bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes)
    rmsnorm_forward_kernel(NormForward call, Element* sums, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarpLanes;
  if (row >= rows) return;  // the whole warp
  const int64_t lane = 4 * (threadIdx.x % kWarpLanes), dim = call.dim;
  const Element* const x = static_cast<const Element*>(call.x) + row * dim;
  const Element* const added = static_cast<const Element*>(call.added);
  Out* const out = static_cast<Out*>(call.out) + row * call.out_stride;
  float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
  for (int64_t base = lane; base < dim; base += kGroup * kStep) {
    float4 value[kGroup];
    for_group(base, dim, [&](int g, int64_t i) { value[g] = load_four<kAligned>(x + i, dim - i); });
    if (added != nullptr) {
      float4 y[kGroup];
      for_group(base, dim, [&](int g, int64_t i) {
        y[g] = load_four<kAligned>(added + row * dim + i, dim - i);
      });
      for_group(base, dim, [&](int g, int64_t i) {
        value[g] = each_of_four(value[g], y[g], [](float a, float b) { return __fadd_rn(a, b); });
        value[g] = rounded_four<Element>(value[g]);
        store_four<kAligned>(sums + row * dim + i, value[g], dim - i);
      });
    }
    for_group(base, dim, [&](int g, int64_t) { sum = fma_four(value[g], value[g], sum); });
  }
  const float mean = __fdiv_rn(row_sum(sum), static_cast<float>(dim));
  const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, call.eps)));
  if (lane == 0) call.inv_rms[row] = inverse;
  const bool plus_one = call.kind == GRAFT_RMSNORM_ONE_PLUS_WEIGHT;
  const bool rounds_twice = call.kind == GRAFT_RMSNORM_WEIGHT;
  for (int64_t base = lane; base < dim; base += kGroup * kStep) {
    float4 value[kGroup], factor[kGroup];
    for_group(base, dim, [&](int g, int64_t i) {
      value[g] = load_four<kAligned>(x + i, dim - i);
      factor[g] = factors<kAligned>(call.weight + i, dim - i, plus_one);
    });
    for_group(base, dim, [&](int g, int64_t i) {
      float4 normal =
          each_of_four(value[g], value[g], [&](float a, float) { return __fmul_rn(a, inverse); });
      if (rounds_twice) normal = rounded_four<Element>(normal);
      store_four<kAligned>(
          out + i,
          each_of_four(normal, factor[g], [](float a, float f) { return __fmul_rn(a, f); }),
          dim - i);
    });
  }
}

template <class Element, bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes)
    rmsnorm_backward_kernel(NormBackward call, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarpLanes;
  if (row >= rows) return;  // the whole warp
  const int64_t lane = 4 * (threadIdx.x % kWarpLanes), dim = call.dim;
  const Element* const dout = static_cast<const Element*>(call.dout) + row * call.dout_stride;
  const Element* const from = static_cast<const Element*>(call.x) + row * dim;
  Element* const dx = static_cast<Element*>(call.dx) + row * dim;
  const bool plus_one = call.kind == GRAFT_RMSNORM_ONE_PLUS_WEIGHT;
  const float inverse = call.inv_rms[row];
  const auto product = [](float a, float b) { return __fmul_rn(a, b); };
  float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
  // g = dout * factor(weight), and x, of a group.
  float4 g_of[kGroup], x_of[kGroup];
  const auto load = [&](int64_t base) {
    float4 weight[kGroup];
    for_group(base, dim, [&](int g, int64_t i) {
      g_of[g] = load_four<kAligned>(dout + i, dim - i);
      x_of[g] = load_four<kAligned>(from + i, dim - i);
      weight[g] = factors<kAligned>(call.weight + i, dim - i, plus_one);
    });
    for_group(base, dim,
              [&](int g, int64_t) { g_of[g] = each_of_four(g_of[g], weight[g], product); });
  };
  for (int64_t base = lane; base < dim; base += kGroup * kStep) {
    load(base);
    for_group(base, dim, [&](int g, int64_t) { sum = fma_four(g_of[g], x_of[g], sum); });
  }
  const float mean = __fdiv_rn(__fmul_rn(row_sum(sum), inverse), static_cast<float>(dim));
  const float factor = __fmul_rn(mean, inverse);
  for (int64_t base = lane; base < dim; base += kGroup * kStep) {
    float4 before[kGroup];
    for_group(base, dim,
              [&](int g, int64_t i) { before[g] = load_four<kAligned>(dx + i, dim - i); });
    load(base);
    for_group(base, dim, [&](int g, int64_t i) {
      const float4 centred = each_of_four(g_of[g], x_of[g], [&](float d, float value) {
        return __fsub_rn(d, __fmul_rn(value, factor));
      });
      store_four<kAligned>(dx + i,
                           each_of_four(centred, before[g],
                                        [&](float c, float b) { return __fmaf_rn(c, inverse, b); }),
                           dim - i);
    });
  }
}

struct WeightGradientShared {
  float sum[kTilesOfBlock][kWarpLanes];
};

template <class Element>
__global__ void __launch_bounds__(kTilesOfBlock* kWarpLanes)
    rmsnorm_weight_gradient_kernel(NormBackward call, int64_t rows) {
  GRAFT_SHARED(WeightGradientShared, shared);
  const Element* const x = static_cast<const Element*>(call.x);
  const Element* const dout = static_cast<const Element*>(call.dout);
  const unsigned lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarpLanes + lane;
  const bool inside = column < call.dim;
  float total = inside && warp == 0 ? call.dweight[column] : 0.0f;
  for (int64_t base = 0; base < rows; base += kRowTile * kTilesOfBlock) {
    const int64_t begin = base + warp * kRowTile;
    const int64_t end = least(begin + kRowTile, rows);
    float sum = 0.0f;
    for (int64_t row = begin; row < end && inside; ++row) {
      const float normal = __fmul_rn(to_float(x[row * call.dim + column]), call.inv_rms[row]);
      sum = __fmaf_rn(to_float(dout[row * call.dout_stride + column]), normal, sum);
    }
    shared.sum[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
      const int64_t tiles = least(ceil_div(rows - base, kRowTile), kTilesOfBlock);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        total = __fadd_rn(total, shared.sum[tile][lane]);
      }
    }
    __syncthreads();
  }
  if (inside && warp == 0) call.dweight[column] = total;
}

}  // namespace

graft_status rmsnorm_forward(const NormForward& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_rmsnorm_forward";
  const int64_t blocks = (rows + kRowsOfBlock - 1) / kRowsOfBlock;
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  const bool aligned = call.dim % 4 == 0 && call.out_stride % 4 == 0 &&
                       aligned_for_four(call.type, call.x, call.added) &&
                       aligned_for_four(call.out_type, call.out) && aligned_to_16(call.weight);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    using Element = decltype(element);
    // With an addition x is the sum, which the caller gave to be written.
    Element* const sums =
        call.added != nullptr ? const_cast<Element*>(static_cast<const Element*>(call.x)) : nullptr;
    const auto launch = [&](auto out) {
      GRAFT_LAUNCH((rmsnorm_forward_kernel<Element, decltype(out), is_aligned.value>), grid,
                   kRowsOfBlock * kWarpLanes, stream, call, sums, rows);
    };
    if constexpr (std::is_same_v<Element, float>) {
      for_element(call.out_type, launch);
    } else {
      launch(element);
    }
  });
  return launch_status(kName);
}

graft_status rmsnorm_backward(const NormBackward& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_rmsnorm_backward";
  const int64_t blocks = (rows + kRowsOfBlock - 1) / kRowsOfBlock;
  const int64_t columns = (call.dim + kWarpLanes - 1) / kWarpLanes;
  if (const graft_status status = check_grid(kName, blocks)) return status;
  if (const graft_status status = check_grid(kName, columns)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  const bool aligned = call.dim % 4 == 0 && call.dout_stride % 4 == 0 &&
                       aligned_for_four(call.type, call.dout, call.x, call.dx) &&
                       aligned_to_16(call.weight);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    using Element = decltype(element);
    GRAFT_LAUNCH((rmsnorm_backward_kernel<Element, is_aligned.value>), grid,
                 kRowsOfBlock * kWarpLanes, stream, call, rows);
  });
  if (call.dweight != nullptr) {
    for_element(call.type, [&](auto element) {
      GRAFT_LAUNCH((rmsnorm_weight_gradient_kernel<decltype(element)>),
                   static_cast<unsigned>(columns), kTilesOfBlock * kWarpLanes, stream, call, rows);
    });
  }
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
