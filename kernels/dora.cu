// DoRA's gain on a GPU, and on the emulated device: 8 B a value forward (12 when adding) and 12 B
// backward, bound by memory. Backward: a block per 32 columns, a warp per tile of 64 rows, tiles
// added in order.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarpLanes = 32;
// Rows of one partial sum (dora.h), tiles of one block at a time.
constexpr int64_t kRowTile = 64;
constexpr unsigned kTilesOfBlock = 8;

template <bool kAligned, bool kAdds>
__global__ void __launch_bounds__(kThreads)
    gain_forward_kernel(const float* h, const float* gain, int64_t dim, float* y) {
  const float* const from = h + static_cast<int64_t>(blockIdx.x) * dim;
  float* const to = y + static_cast<int64_t>(blockIdx.x) * dim;
#pragma unroll 1  // ptxas spills for sm_100 when it unrolls
  for (int64_t i = 4 * threadIdx.x; i < dim; i += 4 * kThreads) {
    float4 value =
        each_of_four(load_four<kAligned>(from + i, dim - i), load_four<kAligned>(gain + i, dim - i),
                     [](float a, float b) { return __fmul_rn(a, b); });
    if (kAdds) {
      value = each_of_four(load_four<kAligned>(to + i, dim - i), value,
                           [](float a, float b) { return __fadd_rn(a, b); });
    }
    store_four<kAligned>(to + i, value, dim - i);
  }
}

struct GainShared {
  float sum[kTilesOfBlock][kWarpLanes];
};

__global__ void __launch_bounds__(kTilesOfBlock* kWarpLanes)
    gain_backward_kernel(const float* dy,
                         const float* h,
                         const float* gain,
                         const float* inverse_norm,
                         int64_t rows,
                         int64_t dim,
                         float* dh,
                         float* dmagnitude) {
  GRAFT_SHARED(GainShared, shared);
  const unsigned lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarpLanes + lane;
  const bool inside = column < dim;
  const float factor = inside ? gain[column] : 0.0f;
  float total = 0.0f;
  for (int64_t base = 0; base < rows; base += kRowTile * kTilesOfBlock) {
    const int64_t begin = base + warp * kRowTile;
    const int64_t end = least(begin + kRowTile, rows);
    float sum = 0.0f;
    for (int64_t row = begin; row < end && inside; ++row) {
      const int64_t place = row * dim + column;
      const float d = dy[place];
      sum = __fadd_rn(sum, __fmul_rn(d, h[place]));
      dh[place] = __fmul_rn(factor, d);
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
  if (inside && warp == 0) {
    dmagnitude[column] = __fadd_rn(dmagnitude[column], __fmul_rn(inverse_norm[column], total));
  }
}

template <bool kAdds>
void launch_forward(
    const float* h, const float* gain, unsigned rows, int64_t dim, float* y, graft_stream stream) {
  if (dim % 4 == 0 && aligned_to_16(h, y) && aligned_to_16(gain, y)) {
    GRAFT_LAUNCH((gain_forward_kernel<true, kAdds>), rows, kThreads, stream, h, gain, dim, y);
  } else {
    GRAFT_LAUNCH((gain_forward_kernel<false, kAdds>), rows, kThreads, stream, h, gain, dim, y);
  }
}

}  // namespace

graft_status gain_forward(const float* h,
                          const float* gain,
                          int64_t rows,
                          int64_t dim,
                          int adds,
                          float* y,
                          graft_stream stream) {
  constexpr const char* kName = "graft_gain_forward";
  if (const graft_status status = check_grid(kName, rows)) return status;
  if (adds != 0) {
    launch_forward<true>(h, gain, static_cast<unsigned>(rows), dim, y, stream);
  } else {
    launch_forward<false>(h, gain, static_cast<unsigned>(rows), dim, y, stream);
  }
  return launch_status(kName);
}

graft_status gain_backward(const float* dy,
                           const float* h,
                           const float* gain,
                           const float* inverse_norm,
                           int64_t rows,
                           int64_t dim,
                           float* dh,
                           float* dmagnitude,
                           graft_stream stream) {
  constexpr const char* kName = "graft_gain_backward";
  const int64_t blocks = (dim + kWarpLanes - 1) / kWarpLanes;
  if (const graft_status status = check_grid(kName, blocks)) return status;
  GRAFT_LAUNCH(gain_backward_kernel, static_cast<unsigned>(blocks), kTilesOfBlock * kWarpLanes,
               stream, dy, h, gain, inverse_norm, rows, dim, dh, dmagnitude);
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
