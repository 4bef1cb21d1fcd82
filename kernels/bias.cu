// The bias of a linear layer on a GPU, and on the emulated device: 8 B a value forward and 4 B
// backward, bound by memory. Backward: a block per 32 columns, a warp per tile of 64 rows, tiles
// added in order.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarpLanes = 32;
// Rows of one partial sum (bias.h), tiles of one block at a time.
constexpr int64_t kRowTile = 64;
constexpr unsigned kTilesOfBlock = 8;

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    bias_add_kernel(float* y, const float* bias, int64_t dim) {
  float* const row = y + static_cast<int64_t>(blockIdx.x) * dim;
  for (int64_t i = 4 * threadIdx.x; i < dim; i += 4 * kThreads) {
    const float4 sum =
        each_of_four(load_four<kAligned>(row + i, dim - i), load_four<kAligned>(bias + i, dim - i),
                     [](float a, float b) { return __fadd_rn(a, b); });
    store_four<kAligned>(row + i, sum, dim - i);
  }
}

struct BiasShared {
  float sum[kTilesOfBlock][kWarpLanes];
};

__global__ void __launch_bounds__(kTilesOfBlock* kWarpLanes)
    bias_backward_kernel(const float* dy, int64_t rows, int64_t dim, float* dbias) {
  GRAFT_SHARED(BiasShared, shared);
  const unsigned lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarpLanes + lane;
  const bool inside = column < dim;
  float total = inside && warp == 0 ? dbias[column] : 0.0f;
  for (int64_t base = 0; base < rows; base += kRowTile * kTilesOfBlock) {
    const int64_t begin = base + warp * kRowTile;
    const int64_t end = least(begin + kRowTile, rows);
    float sum = 0.0f;
    for (int64_t row = begin; row < end && inside; ++row) {
      sum = __fadd_rn(sum, dy[row * dim + column]);
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
  if (inside && warp == 0) dbias[column] = total;
}

}  // namespace

graft_status bias_add(float* y, const float* bias, int64_t rows, int64_t dim, graft_stream stream) {
  constexpr const char* kName = "graft_bias_add";
  if (const graft_status status = check_grid(kName, rows)) return status;
  const unsigned grid = static_cast<unsigned>(rows);
  if (dim % 4 == 0 && aligned_to_16(y, bias)) {
    GRAFT_LAUNCH((bias_add_kernel<true>), grid, kThreads, stream, y, bias, dim);
  } else {
    GRAFT_LAUNCH((bias_add_kernel<false>), grid, kThreads, stream, y, bias, dim);
  }
  return launch_status(kName);
}

graft_status bias_backward(
    const float* dy, int64_t rows, int64_t dim, float* dbias, graft_stream stream) {
  constexpr const char* kName = "graft_bias_backward";
  const int64_t blocks = (dim + kWarpLanes - 1) / kWarpLanes;
  if (const graft_status status = check_grid(kName, blocks)) return status;
  GRAFT_LAUNCH(bias_backward_kernel, static_cast<unsigned>(blocks), kTilesOfBlock * kWarpLanes,
               stream, dy, rows, dim, dbias);
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
