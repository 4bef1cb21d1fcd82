// Cross entropy over rows of logits on a GPU, and on the emulated device: the row operator of the
// frozen head (one chunk of logits, replaced by its gradient).
//
// One block per row. Four threads take a tile of 512 logits in 128-bit accesses (64-bit for
// bfloat16): thread t of the four has 4 of the 16 lanes that cross_entropy.h defines; the tiles'
// sums are added in double, in order. A row is read three times (maximum, sum, gradient) and
// written once: 12 B read and 4 B written a float32 logit with a gradient, the second and third
// reading from the second-level cache for vocabularies up to 128k; exponentials are computed twice
// rather than stored, as bfloat16 could not hold them. Bound by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kSumTile = 512;
constexpr int64_t kTilesOfBlock = kThreads / 4;

struct CrossEntropyShared {
  float top[kThreads / 32];
  int64_t first[kThreads / 32];
  float tile[kTilesOfBlock];
  double total;
  float label_logit;
};

struct Largest {
  float value;
  int64_t index;  // of the first that is as large; the vocabulary's size for none
};
__device__ __forceinline__ Largest larger_of(Largest a, Largest b) {
  if (b.value > a.value) return b;
  if (b.value == a.value && b.index < a.index) return b;
  return a;
}

// y of four logits, and dy / dlogit where that is asked for.
template <bool kCapped>
__device__ __forceinline__ float4 capped(float4 x, float cap) {
  if (!kCapped) return x;
  return each_of_four(
      x, x, [&](float a, float) { return __fmul_rn(hyperbolic_tangent(__fdiv_rn(a, cap)), cap); });
}
__device__ __forceinline__ float cap_slope(float y, float cap) {
  const float t = __fdiv_rn(y, cap);
  return __fmul_rn(__fsub_rn(1.0f, t), __fadd_rn(1.0f, t));
}

template <class Element, class Gradient, bool kAligned, bool kCapped>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropyRows call) {
  GRAFT_SHARED(CrossEntropyShared, shared);
  const int64_t row = blockIdx.x, vocab = call.vocab, label = call.labels[row];
  const Element* const x = static_cast<const Element*>(call.logits) + row * vocab;
  Gradient* const gradient = static_cast<Gradient*>(call.gradient) + row * vocab;
  const bool known = label >= 0 && label < vocab;
  const auto load = [&](int64_t i) {
    return capped<kCapped>(load_four<kAligned>(x + i, vocab - i), call.softcap);
  };
  Largest best{-INFINITY, vocab};
  for (int64_t i = 4 * threadIdx.x; i < vocab; i += 4 * kThreads) {
    const float4 v = load(i);
    const float value[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i + j < vocab && value[j] > best.value) best = {value[j], i + j};
      if (i + j == label) shared.label_logit = value[j];
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const Largest other{__shfl_xor_sync(kAllLanes, best.value, distance),
                        __shfl_xor_sync(kAllLanes, best.index, distance)};
    best = larger_of(best, other);
  }
  if (threadIdx.x % 32 == 0) {
    shared.top[threadIdx.x / 32] = best.value;
    shared.first[threadIdx.x / 32] = best.index;
  }
  __syncthreads();
  for (unsigned i = 0; i < kThreads / 32; ++i) {
    best = larger_of(best, {shared.top[i], shared.first[i]});
  }
  const float top = best.value;
  const int64_t part = threadIdx.x % 4, tile_of_block = threadIdx.x / 4;
  double total = 0.0;  // kept by thread 0
  for (int64_t base = 0; base < vocab; base += kSumTile * kTilesOfBlock) {
    const int64_t begin = base + tile_of_block * kSumTile, end = least(begin + kSumTile, vocab);
    float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t i = begin + 4 * part; i < end; i += 16) {
      const float4 v = load(i);
      float4 e;
      e.x = exponential(__fsub_rn(v.x, top));
      e.y = end - i > 1 ? exponential(__fsub_rn(v.y, top)) : 0.0f;
      e.z = end - i > 2 ? exponential(__fsub_rn(v.z, top)) : 0.0f;
      e.w = end - i > 3 ? exponential(__fsub_rn(v.w, top)) : 0.0f;
      sum = each_of_four(sum, e, [](float a, float b) { return __fadd_rn(a, b); });
    }
    // Lanes j + 8, j + 4 are those of the threads two and one further; j + 2, j + 1 the own.
    for (int distance = 2; distance > 0; distance /= 2) {
      sum.x = __fadd_rn(sum.x, __shfl_xor_sync(kAllLanes, sum.x, distance));
      sum.y = __fadd_rn(sum.y, __shfl_xor_sync(kAllLanes, sum.y, distance));
      sum.z = __fadd_rn(sum.z, __shfl_xor_sync(kAllLanes, sum.z, distance));
      sum.w = __fadd_rn(sum.w, __shfl_xor_sync(kAllLanes, sum.w, distance));
    }
    if (part == 0) {
      shared.tile[tile_of_block] = __fadd_rn(__fadd_rn(sum.x, sum.z), __fadd_rn(sum.y, sum.w));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const int64_t tiles = least(ceil_div(vocab - base, kSumTile), kTilesOfBlock);
      for (int64_t i = 0; i < tiles; ++i) {
        total = __dadd_rn(total, static_cast<double>(shared.tile[i]));
      }
      shared.total = total;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    const float label_logit = known ? shared.label_logit : 0.0f;
    const double above = static_cast<double>(top) - static_cast<double>(label_logit);
    call.row_loss[row] = known ? __double2float_rn(__dadd_rn(log(shared.total), above))
                               : __uint_as_float(0x7fc00000u);
    if (call.row_correct != nullptr) call.row_correct[row] = known && best.index == label;
  }
  if (!call.with_gradient) return;
  const float weight = call.weight != nullptr ? call.weight[row] : 1.0f;
  const float scale = known ? __fmul_rn(weight, call.scale) : 0.0f;
  const float factor = __double2float_rn(__ddiv_rn(static_cast<double>(scale), shared.total));
  for (int64_t i = 4 * threadIdx.x; i < vocab; i += 4 * kThreads) {
    const float4 y = load(i);
    float4 v = each_of_four(
        y, y, [&](float a, float) { return __fmul_rn(exponential(__fsub_rn(a, top)), factor); });
    if (known && label >= i && label < i + 4) {
      float* const lane = label == i ? &v.x : label == i + 1 ? &v.y : label == i + 2 ? &v.z : &v.w;
      *lane = __fsub_rn(*lane, scale);
    }
    if (kCapped) {
      v = each_of_four(v, y,
                       [&](float a, float b) { return __fmul_rn(a, cap_slope(b, call.softcap)); });
    }
    store_four<kAligned>(gradient + i, v, vocab - i);
  }
}

struct LossSumsShared {
  double lane[3][kThreads];
};

__global__ void __launch_bounds__(kThreads) loss_sums_kernel(LossSums call) {
  GRAFT_SHARED(LossSumsShared, shared);
  double sum[3] = {};
  for (int64_t i = threadIdx.x; i < call.count; i += kThreads) {
    const double weight = call.weight != nullptr ? static_cast<double>(call.weight[i]) : 1.0;
    sum[0] = __dadd_rn(sum[0], __dmul_rn(weight, static_cast<double>(call.row_loss[i])));
    sum[1] = __dadd_rn(sum[1], weight);
    sum[2] = __dadd_rn(sum[2], static_cast<double>(call.correct[i]));
  }
  for (int j = 0; j < 3; ++j) shared.lane[j][threadIdx.x] = sum[j];
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    for (int j = 0; j < 3 && threadIdx.x < width; ++j) {
      double* const lane = shared.lane[j] + threadIdx.x;
      lane[0] = __dadd_rn(lane[0], lane[width]);
    }
  }
  if (threadIdx.x != 0) return;
  for (int j = 0; j < 3; ++j) call.sums[j] = __dadd_rn(call.sums[j], shared.lane[j][0]);
}

}  // namespace

graft_status loss_sums(const LossSums& call, graft_stream stream) {
  GRAFT_LAUNCH(loss_sums_kernel, 1, kThreads, stream, call);
  return launch_status("graft_head_rows_loss");
}

graft_status cross_entropy(const CrossEntropyRows& call, int64_t rows, graft_stream stream) {
  constexpr const char* kName = "graft_cross_entropy";
  if (const graft_status status = check_grid(kName, rows)) return status;
  const unsigned grid = static_cast<unsigned>(rows);
  const bool aligned = call.vocab % 4 == 0 && aligned_for_four(call.type, call.logits) &&
                       aligned_for_four(call.gradient_type, call.gradient);
  for_variant(call.type, aligned, [&](auto element, auto is_aligned) {
    for_element(call.gradient_type, [&](auto gradient) {
      using Element = decltype(element);
      using Gradient = decltype(gradient);
      if (call.softcap > 0.0f) {
        GRAFT_LAUNCH((cross_entropy_kernel<Element, Gradient, is_aligned.value, true>), grid,
                     kThreads, stream, call);
      } else {
        GRAFT_LAUNCH((cross_entropy_kernel<Element, Gradient, is_aligned.value, false>), grid,
                     kThreads, stream, call);
      }
    });
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
