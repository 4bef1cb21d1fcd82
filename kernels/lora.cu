// Pairs of several projections around their weight on a GPU, and on the emulated device: a thread
// per four values of a row, first those of s B's blocks with the zeros beside them, then those of
// A. 6 B a value of A or B, 2 B a zero: bound by memory, of which there is little (a launch is most
// of it).
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;

// The value of s B's blocks at [row, column].
__device__ __forceinline__ float block_value(const LoraPairs& call, int64_t row, int64_t column) {
  for (int64_t i = 0; i < call.count; ++i) {
    const graft_lora_pair& pair = call.pair[i];
    if (row < pair.out_features) {
      if (column < 0 || column >= pair.rank) return 0.0f;
      return __fmul_rn(pair.b[row * pair.rank + column], pair.scale);
    }
    row -= pair.out_features;
    column -= pair.rank;
  }
  return 0.0f;
}

// kAligned: every row that is read or written begins at four elements' bytes, and is whole fours.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) place_pairs_kernel(LoraPairs call) {
  const int64_t b_fours = ceil_div(call.rank, 4), a_fours = ceil_div(call.in, 4);
  int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  Bf16* const to = reinterpret_cast<Bf16*>(call.to);
  if (item < call.out * b_fours) {
    const int64_t row = item / b_fours, column = 4 * (item - row * b_fours);
    const float4 value{block_value(call, row, column), block_value(call, row, column + 1),
                       block_value(call, row, column + 2), block_value(call, row, column + 3)};
    store_four<kAligned>(to + row * call.to_stride + call.in + column, value, call.rank - column);
    return;
  }
  item -= call.out * b_fours;
  int64_t row = item / a_fours;
  const int64_t column = 4 * (item - row * a_fours);
  if (row >= call.rank) return;
  Bf16* const out = to + (call.out + row) * call.to_stride + column;
  for (int64_t i = 0; i < call.count; ++i) {
    const graft_lora_pair& pair = call.pair[i];
    if (row < pair.rank) {
      const float4 value = load_four<kAligned>(pair.a + row * call.in + column, call.in - column);
      store_four<kAligned>(out, value, call.in - column);
      return;
    }
    row -= pair.rank;
  }
}

}  // namespace

graft_status place_pairs(const LoraPairs& call, graft_stream stream) {
  constexpr const char* kName = "graft_lora_place_pairs";
  const int64_t fours = call.out * ceil_div(call.rank, 4) + call.rank * ceil_div(call.in, 4);
  const int64_t blocks = ceil_div(fours, kThreads);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  bool aligned = call.rank % 4 == 0 && call.in % 4 == 0 && call.to_stride % 4 == 0 &&
                 aligned_for_four(GRAFT_BF16, call.to);
  for (int64_t i = 0; i < call.count; ++i) aligned = aligned && aligned_to_16(call.pair[i].a);
  const unsigned grid = static_cast<unsigned>(blocks);
  if (aligned) {
    GRAFT_LAUNCH((place_pairs_kernel<true>), grid, kThreads, stream, call);
  } else {
    GRAFT_LAUNCH((place_pairs_kernel<false>), grid, kThreads, stream, call);
  }
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
