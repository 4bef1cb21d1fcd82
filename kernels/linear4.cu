// Up to four rows of x times a packed 4-bit weight on a GPU, and on the emulated device:
// generation.
//
// Half a warp per row of the weight, lane j with the sums that lane j of the CPU's vectors has
// (simd/small_product.cpp), so that the bits are the same. A row's packed bytes are read once, in
// 128-bit loads where they are aligned, 256 B at a time through shared memory, from where each lane
// takes its bytes; the sixteen codes lie in sixteen banks. 0.52 B a weight and nothing of size n x
// k is written: bound by memory, and for small weights by the launch.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"
#include "kernels/nf4_tables.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kLanes = 16;
constexpr unsigned kGroups = kThreads / kLanes;  // rows of the weight of one block
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kRows = GRAFT_LINEAR4_ROWS;
// Bytes of a row that half a warp stages at once: 16 for each lane.
constexpr int64_t kStagedBytes = 256;

template <int kCount>
struct Values {
  float value[kCount];
};
template <int kCount>
constexpr Values<kCount> values_of(const float (&table)[kCount]) {
  Values<kCount> result{};
  for (int i = 0; i < kCount; ++i) result.value[i] = table[i];
  return result;
}
// By graft_quant4_type.
__constant__ Values<16> codebook[2] = {values_of(kNf4Code), values_of(kFp4Code)};
__constant__ Values<256> dynamic_map = values_of(kDynamicMapSigned);

struct SmallProductShared {
  float code[16];
  float map[256];
  alignas(16) uint8_t staged[kGroups][kStagedBytes];
};

__device__ float absmax_of(const SmallProductShared& shared,
                           const graft_nf4_weight& weight,
                           int64_t block) {
  if (weight.absmax != nullptr) return __ldg(weight.absmax + block);
  const float nested = __ldg(weight.nested_absmax + block / GRAFT_NF4_NESTED_BLOCK);
  return __fadd_rn(__fmul_rn(shared.map[__ldg(weight.absmax8 + block)], nested), weight.offset);
}

// A sum over the lanes of half a warp in the order of sum_lanes() on the CPU.
__device__ __forceinline__ float sum_lanes(float x) {
  for (int distance = 8; distance > 0; distance /= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}

// kHalves: a row is whole units of 32 * kHalves weights; 0: it begins anywhere in a block or byte.
template <class X, int kHalves>
__global__ void __launch_bounds__(kThreads) small_product_kernel(SmallRows call, bool aligned) {
  GRAFT_SHARED(SmallProductShared, shared);
  const graft_nf4_weight& weight = call.weight;
  if (threadIdx.x < 16) shared.code[threadIdx.x] = codebook[weight.type].value[threadIdx.x];
  for (unsigned i = threadIdx.x; i < 256; i += kThreads) shared.map[i] = dynamic_map.value[i];
  __syncthreads();
  const int64_t lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kGroups + group, k = call.k;
  // Half warps past the last row go on with it and store nothing: the other half shuffles with
  // them.
  const int64_t row = least(n, call.n - 1);
  const X* const x = static_cast<const X*>(call.x);
  float total[kRows] = {};
  if constexpr (kHalves == 0) {
    for (int64_t i = lane; i < k; i += kLanes) {
      const int64_t element = row * k + i;
      const unsigned byte = weight.packed[element / 2];
      const float code = shared.code[element % 2 == 0 ? byte >> 4 : byte & 15u];
      const float value = __fmul_rn(code, absmax_of(shared, weight, element / weight.block_size));
#pragma unroll
      for (int64_t m = 0; m < kRows; ++m) {
        if (m < call.m) total[m] = __fmaf_rn(value, to_float(x[m * call.ldx + i]), total[m]);
      }
    }
  } else {
    constexpr int64_t kStepBytes = 16 * kHalves, kSteps = kStagedBytes / kStepBytes;
    const int64_t row_bytes = k / 2;
    const uint8_t* const packed = weight.packed + row * row_bytes;
    uint8_t* const staged = shared.staged[group];
    for (int64_t base = 0; base < row_bytes; base += kStagedBytes) {
      __syncwarp();
      const int64_t mine = base + 16 * lane;
      if (mine < row_bytes) {
        if (aligned) {
          *reinterpret_cast<uint4*>(staged + 16 * lane) =
              __ldcs(reinterpret_cast<const uint4*>(packed + mine));
        } else {
          for (int64_t i = 0; i < 16; ++i) staged[16 * lane + i] = packed[mine + i];
        }
      }
      // The scale of the lane's step among those of the staged bytes.
      const int64_t my_step = base / kStepBytes + lane;
      const int64_t step_weights = 2 * kStepBytes;
      float scale = 0.0f;
      if (lane < kSteps && my_step * kStepBytes < row_bytes) {
        scale = absmax_of(shared, weight, (row * k + my_step * step_weights) / weight.block_size);
      }
      __syncwarp();
#pragma unroll 2
      for (int64_t s = 0; s < kSteps; ++s) {
        const float absmax =
            __shfl_sync(kAllLanes, scale, static_cast<int>(threadIdx.x % 32 / kLanes * kLanes + s));
        if (base + s * kStepBytes >= row_bytes) continue;
        float sum[kRows] = {};
#pragma unroll
        for (int64_t h = 0; h < kHalves; ++h) {
          const unsigned byte = staged[s * kStepBytes + 16 * h + lane];
          const float high = shared.code[byte >> 4], low = shared.code[byte & 15u];
          const int64_t at = 2 * (base + s * kStepBytes + 16 * h + lane);
#pragma unroll
          for (int64_t m = 0; m < kRows; ++m) {
            if (m >= call.m) break;
            const float even = to_float(x[m * call.ldx + at]);
            const float odd = to_float(x[m * call.ldx + at + 1]);
            sum[m] = h == 0 ? __fmul_rn(high, even) : __fmaf_rn(high, even, sum[m]);
            sum[m] = __fmaf_rn(low, odd, sum[m]);
          }
        }
#pragma unroll
        for (int64_t m = 0; m < kRows; ++m) total[m] = __fmaf_rn(sum[m], absmax, total[m]);
      }
    }
  }
#pragma unroll
  for (int64_t m = 0; m < kRows; ++m) {
    if (m >= call.m) break;
    const float sum = sum_lanes(total[m]);
    if (lane != 0 || n >= call.n) continue;
    const int64_t at = m * call.ldy + n;
    if (call.y_type == GRAFT_F32) {
      float* const y = static_cast<float*>(call.y) + at;
      *y = call.beta == 0.0f ? sum : __fmaf_rn(call.beta, *y, sum);
    } else {
      Bf16* const y = static_cast<Bf16*>(call.y) + at;
      *y = to_element<Bf16>(call.beta == 0.0f ? sum : __fmaf_rn(call.beta, to_float(*y), sum));
    }
  }
}

}  // namespace

graft_status small_product(const SmallRows& call, graft_stream stream) {
  constexpr const char* kName = "graft_linear4_forward";
  const int64_t blocks = ceil_div(call.n, kGroups);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  const unsigned grid = static_cast<unsigned>(blocks);
  const int64_t unit = call.weight.block_size < 64 ? call.weight.block_size : 64;
  const bool aligned = reinterpret_cast<uintptr_t>(call.weight.packed) % 16 == 0;
  for_element(call.x_type, [&](auto element) {
    using X = decltype(element);
    if (call.k % unit != 0) {
      GRAFT_LAUNCH((small_product_kernel<X, 0>), grid, kThreads, stream, call, aligned);
    } else if (unit == 64) {
      GRAFT_LAUNCH((small_product_kernel<X, 2>), grid, kThreads, stream, call, aligned);
    } else {
      GRAFT_LAUNCH((small_product_kernel<X, 1>), grid, kThreads, stream, call, aligned);
    }
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
