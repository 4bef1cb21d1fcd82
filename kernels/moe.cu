// Mixtures of experts on a GPU, and on the emulated device.
//
// Routing: a thread per token, 12 B a logit; the sums run over experts in order, so one thread does
// them. Sorting: one block, a thread per expert, each of which reads all choices through shared
// memory twice: 2 ns a pair, no atomics, stable. Moves of rows: a warp per row in 128-bit accesses,
// 8 B a value, bound by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kRowsOfBlock = 8;
constexpr unsigned kTokensOfBlock = 64;
constexpr int64_t kStep = 4 * kWarpLanes;
constexpr unsigned kSorters = 1024;  // the most experts

__global__ void __launch_bounds__(kTokensOfBlock) moe_route_kernel(MoeRoute call) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokensOfBlock + threadIdx.x;
  if (token >= call.shape.tokens) return;
  const int64_t experts = call.shape.experts, top = call.shape.top;
  const float* const logits = call.logits + token * experts;
  float* const p = call.probabilities + token * experts;
  int32_t* const expert = call.expert + token * top;
  float* const weight = call.weight + token * top;
  float largest = logits[0];
  for (int64_t e = 1; e < experts; ++e) largest = logits[e] > largest ? logits[e] : largest;
  float sum = 0.0f;
  for (int64_t e = 0; e < experts; ++e) {
    p[e] = exponential(__fsub_rn(logits[e], largest));
    sum = __fadd_rn(sum, p[e]);
  }
  for (int64_t e = 0; e < experts; ++e) p[e] = __fdiv_rn(p[e], sum);
  float chosen_sum = 0.0f;
  for (int64_t j = 0; j < top; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      bool taken = false;
      for (int64_t i = 0; i < j; ++i) taken = taken || expert[i] == e;
      if (!taken && (best < 0 || p[e] > p[best])) best = e;
    }
    expert[j] = static_cast<int32_t>(best);
    weight[j] = p[best];
    chosen_sum = __fadd_rn(chosen_sum, p[best]);
  }
  if (call.shape.renormalise != 0) {
    for (int64_t j = 0; j < top; ++j) weight[j] = __fdiv_rn(weight[j], chosen_sum);
  }
}

__global__ void __launch_bounds__(kTokensOfBlock) moe_route_backward_kernel(MoeRouteBackward call) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokensOfBlock + threadIdx.x;
  if (token >= call.shape.tokens) return;
  const int64_t experts = call.shape.experts, top = call.shape.top;
  const float* const p = call.probabilities + token * experts;
  const int32_t* const expert = call.expert + token * top;
  const float* const weight = call.weight + token * top;
  const float* const dweight = call.dweight + token * top;
  float* const dlogits = call.dlogits + token * experts;
  float mean = 0.0f, sum = 1.0f;
  if (call.shape.renormalise != 0) {
    sum = 0.0f;
    for (int64_t j = 0; j < top; ++j) {
      mean = __fadd_rn(mean, __fmul_rn(dweight[j], weight[j]));
      sum = __fadd_rn(sum, p[expert[j]]);
    }
  }
  const auto slope = [&](int64_t j) { return __fdiv_rn(__fsub_rn(dweight[j], mean), sum); };
  float drift = 0.0f;
  for (int64_t j = 0; j < top; ++j) {
    drift = __fadd_rn(drift, __fmul_rn(slope(j), p[expert[j]]));
  }
  for (int64_t e = 0; e < experts; ++e) dlogits[e] = __fmul_rn(p[e], __fsub_rn(0.0f, drift));
  for (int64_t j = 0; j < top; ++j) {
    dlogits[expert[j]] = __fmul_rn(p[expert[j]], __fsub_rn(slope(j), drift));
  }
}

struct MoeSortShared {
  int32_t expert[kSorters];
  int32_t first[kSorters];  // row of each expert
};

// Thread e places the pairs of expert e; one with no expert only loads.
__global__ void __launch_bounds__(kSorters) moe_sort_kernel(MoeSort call) {
  GRAFT_SHARED(MoeSortShared, shared);
  const int64_t pairs = call.shape.tokens * call.shape.top;
  const int own = static_cast<int>(threadIdx.x);
  const bool sorts = own < call.shape.experts;
  const int64_t block = blockDim.x;
  const auto load = [&](int64_t base) {
    __syncthreads();
    shared.expert[threadIdx.x] = base + own < pairs ? call.expert[base + own] : -1;
    __syncthreads();
  };
  int32_t count = 0;
  for (int64_t base = 0; base < pairs; base += block) {
    load(base);
    for (int64_t i = 0; i < block && sorts; ++i) count += shared.expert[i] == own ? 1 : 0;
  }
  shared.first[threadIdx.x] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t first = 0;
    for (int64_t e = 0; e < call.shape.experts; ++e) {
      const int32_t rows = shared.first[e];
      call.offsets[e] = first;
      shared.first[e] = first;
      first += rows;
    }
    call.offsets[call.shape.experts] = first;
  }
  __syncthreads();
  int32_t row = shared.first[threadIdx.x];
  for (int64_t base = 0; base < pairs; base += block) {
    load(base);
    for (int64_t i = 0; i < block && sorts; ++i) {
      if (shared.expert[i] != own) continue;
      call.row_pair[row] = static_cast<int32_t>(base + i);
      call.pair_row[base + i] = row;
      ++row;
    }
  }
}

// body(first of four values) over the warp's row.
template <class Body>
__device__ __forceinline__ void for_row(int64_t dim, const Body& body) {
  for (int64_t i = 4 * (threadIdx.x % kWarpLanes); i < dim; i += kStep) body(i);
}
__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarpLanes;
}

template <bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes) moe_gather_kernel(MoeMove call) {
  const int64_t row = row_of_warp();
  if (row >= call.shape.tokens * call.shape.top) return;  // the whole warp
  const float* const from = call.from + call.index[row] / call.shape.top * call.dim;
  float* const to = call.to + row * call.dim;
  for_row(call.dim, [&](int64_t i) {
    store_four<kAligned>(to + i, load_four<kAligned>(from + i, call.dim - i), call.dim - i);
  });
}

template <bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes) moe_combine_kernel(MoeMove call) {
  const int64_t token = row_of_warp(), top = call.shape.top;
  if (token >= call.shape.tokens) return;  // the whole warp
  const int32_t* const place = call.index + token * top;
  float* const to = call.to + token * call.dim;
  for_row(call.dim, [&](int64_t i) {
    const auto value = [&](int64_t j) {
      return load_four<kAligned>(call.from + place[j] * call.dim + i, call.dim - i);
    };
    float4 sum = value(0);
#pragma unroll 1
    for (int64_t j = 1; j < top; ++j) {  // unrolled it spilled a register on sm_90a
      sum = each_of_four(sum, value(j), [](float a, float b) { return __fadd_rn(a, b); });
    }
    store_four<kAligned>(to + i, sum, call.dim - i);
  });
}

__device__ __forceinline__ float4 times(float4 values, float factor) {
  return each_of_four(values, values, [&](float a, float) { return __fmul_rn(a, factor); });
}

template <bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes) moe_weigh_kernel(MoeMove call) {
  const int64_t row = row_of_warp();
  if (row >= call.shape.tokens * call.shape.top) return;  // the whole warp
  const float factor = call.weight[call.index[row]];
  const int64_t begin = row * call.dim;
  for_row(call.dim, [&](int64_t i) {
    const float4 values = load_four<kAligned>(call.from + begin + i, call.dim - i);
    store_four<kAligned>(call.to + begin + i, times(values, factor), call.dim - i);
  });
}

template <bool kAligned>
__global__ void __launch_bounds__(kRowsOfBlock* kWarpLanes)
    moe_weigh_backward_kernel(MoeWeighBackward call) {
  const int64_t row = row_of_warp();
  if (row >= call.shape.tokens * call.shape.top) return;  // the whole warp
  const float factor = call.weight[call.row_pair[row]];
  const int64_t begin = row * call.dim;
  float4 lanes{0.0f, 0.0f, 0.0f, 0.0f};
  for_row(call.dim, [&](int64_t i) {
    const float4 d = load_four<kAligned>(call.dout + begin + i, call.dim - i);
    const float4 x = load_four<kAligned>(call.rows + begin + i, call.dim - i);
    const float4 product = each_of_four(d, x, [](float a, float b) { return __fmul_rn(a, b); });
    lanes = each_of_four(lanes, product, [](float a, float b) { return __fadd_rn(a, b); });
    store_four<kAligned>(call.drows + begin + i, times(d, factor), call.dim - i);
  });
  for (int distance = 16; distance > 0; distance /= 2) {
    lanes.x = __fadd_rn(lanes.x, __shfl_xor_sync(kAllLanes, lanes.x, distance));
    lanes.y = __fadd_rn(lanes.y, __shfl_xor_sync(kAllLanes, lanes.y, distance));
    lanes.z = __fadd_rn(lanes.z, __shfl_xor_sync(kAllLanes, lanes.z, distance));
    lanes.w = __fadd_rn(lanes.w, __shfl_xor_sync(kAllLanes, lanes.w, distance));
  }
  if (threadIdx.x % kWarpLanes == 0) {
    call.dweight[call.row_pair[row]] =
        __fadd_rn(__fadd_rn(lanes.x, lanes.z), __fadd_rn(lanes.y, lanes.w));
  }
}

int64_t blocks_of(int64_t rows) {
  return (rows + kRowsOfBlock - 1) / kRowsOfBlock;
}

}  // namespace

graft_status moe_route(const MoeRoute& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_route";
  const int64_t blocks = ceil_div(call.shape.tokens, kTokensOfBlock);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  GRAFT_LAUNCH(moe_route_kernel, static_cast<unsigned>(blocks), kTokensOfBlock, stream, call);
  return launch_status(kName);
}

graft_status moe_route_backward(const MoeRouteBackward& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_route_backward";
  const int64_t blocks = ceil_div(call.shape.tokens, kTokensOfBlock);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  GRAFT_LAUNCH(moe_route_backward_kernel, static_cast<unsigned>(blocks), kTokensOfBlock, stream,
               call);
  return launch_status(kName);
}

graft_status moe_sort(const MoeSort& call, graft_stream stream) {
  const int64_t warps = ceil_div(call.shape.experts, kWarpLanes);
  GRAFT_LAUNCH(moe_sort_kernel, 1u, static_cast<unsigned>(warps) * kWarpLanes, stream, call);
  return launch_status("graft_moe_sort");
}

graft_status moe_gather(const MoeMove& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_gather";
  const int64_t blocks = blocks_of(call.shape.tokens * call.shape.top);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks), block = kRowsOfBlock * kWarpLanes;
  if (call.dim % 4 == 0 && aligned_to_16(call.from, call.to)) {
    GRAFT_LAUNCH((moe_gather_kernel<true>), grid, block, stream, call);
  } else {
    GRAFT_LAUNCH((moe_gather_kernel<false>), grid, block, stream, call);
  }
  return launch_status(kName);
}

graft_status moe_combine(const MoeMove& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_combine";
  const int64_t blocks = blocks_of(call.shape.tokens);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks), block = kRowsOfBlock * kWarpLanes;
  if (call.dim % 4 == 0 && aligned_to_16(call.from, call.to)) {
    GRAFT_LAUNCH((moe_combine_kernel<true>), grid, block, stream, call);
  } else {
    GRAFT_LAUNCH((moe_combine_kernel<false>), grid, block, stream, call);
  }
  return launch_status(kName);
}

graft_status moe_weigh(const MoeMove& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_weigh";
  const int64_t blocks = blocks_of(call.shape.tokens * call.shape.top);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks), block = kRowsOfBlock * kWarpLanes;
  if (call.dim % 4 == 0 && aligned_to_16(call.from, call.to)) {
    GRAFT_LAUNCH((moe_weigh_kernel<true>), grid, block, stream, call);
  } else {
    GRAFT_LAUNCH((moe_weigh_kernel<false>), grid, block, stream, call);
  }
  return launch_status(kName);
}

graft_status moe_weigh_backward(const MoeWeighBackward& call, graft_stream stream) {
  constexpr const char* kName = "graft_moe_weigh_backward";
  const int64_t blocks = blocks_of(call.shape.tokens * call.shape.top);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks), block = kRowsOfBlock * kWarpLanes;
  if (call.dim % 4 == 0 && aligned_to_16(call.dout, call.rows, call.drows)) {
    GRAFT_LAUNCH((moe_weigh_backward_kernel<true>), grid, block, stream, call);
  } else {
    GRAFT_LAUNCH((moe_weigh_backward_kernel<false>), grid, block, stream, call);
  }
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
