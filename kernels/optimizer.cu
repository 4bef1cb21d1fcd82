// One AdamW step over many tensors on a GPU, and on the emulated device.
//
// Sums of squares: four threads a tile of 16384, each with 4 of its 16 lanes, 4 B a value. Norm:
// one block adds the tiles' doubles in order and leaves the factor in memory, so that the host
// never waits. Step: a thread per four values, 28 B a value; 192 tensors' pointers are kernel
// arguments, a block finds its own among them. All bound by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kTile = GRAFT_SQUARES_TILE;
constexpr int64_t kTilesOfBlock = kThreads / 4;
// 192 tensors' arguments take 20 KB of the 32 KB that every launch may have.
constexpr int64_t kParts = 192;

struct Part {
  float *param, *m, *v;
  const float* grad;
  int64_t count;
  int64_t first_unit;  // of this part among the launch's blocks (step) or the step's tiles (sums)
  float decay, step_size;
  bool aligned;
  bool copy_in_fours;  // four neighbours of the copy lie in one row and move at once
  graft_float_type copy_type;
  float copy_scale;
  void* copy;
  int64_t copy_columns, copy_stride;
};
struct Parts {
  Part part[kParts];
  int64_t count;
};
struct Factors {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, bias2_root, eps;
};

// The last part that begins at or before the unit.
__device__ const Part& part_of(const Parts& parts, int64_t unit) {
  int64_t first = 0, end = parts.count;  // it is one of these
  while (end - first > 1) {
    const int64_t middle = (first + end) / 2;
    if (parts.part[middle].first_unit <= unit) {
      first = middle;
    } else {
      end = middle;
    }
  }
  return parts.part[first];
}

__global__ void __launch_bounds__(kThreads)
    adamw_squares_kernel(Parts parts, int64_t first_tile, int64_t tiles, double* squares) {
  const int64_t tile =
      first_tile + static_cast<int64_t>(blockIdx.x) * kTilesOfBlock + threadIdx.x / 4;
  const bool inside = tile < first_tile + tiles;
  const Part& part = part_of(parts, inside ? tile : first_tile);
  const int64_t begin = (tile - part.first_unit) * kTile, lane = 4 * (threadIdx.x % 4);
  const int64_t end = inside ? least(begin + kTile, part.count) : 0;
  double lanes[4] = {};
#pragma unroll 4
  for (int64_t i = begin + lane; i < end; i += 16) {
    float4 g;
    if (part.aligned) {
      g = load_four<true>(part.grad + i, end - i);
    } else {
      g = load_four<false>(part.grad + i, end - i);
    }
    // A product of two float32 is exact in double.
    lanes[0] = __dadd_rn(lanes[0], __dmul_rn(static_cast<double>(g.x), static_cast<double>(g.x)));
    lanes[1] = __dadd_rn(lanes[1], __dmul_rn(static_cast<double>(g.y), static_cast<double>(g.y)));
    lanes[2] = __dadd_rn(lanes[2], __dmul_rn(static_cast<double>(g.z), static_cast<double>(g.z)));
    lanes[3] = __dadd_rn(lanes[3], __dmul_rn(static_cast<double>(g.w), static_cast<double>(g.w)));
  }
  // The 16 lanes are added one after another: thread 0's four, then those of the next three.
  double total = 0.0;
  for (int from = 0; from < 4; ++from) {
    const int source = static_cast<int>(threadIdx.x % 32 / 4 * 4) + from;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      total = __dadd_rn(total, __shfl_sync(kAllLanes, lanes[j], source));
    }
  }
  if (inside && threadIdx.x % 4 == 0) squares[tile] = total;
}

struct NormShared {
  double part[kThreads];
};

__global__ void __launch_bounds__(kThreads) adamw_norm_kernel(
    const double* squares, int64_t tiles, float grad_scale, float max_norm, float* result) {
  GRAFT_SHARED(NormShared, shared);
  double sum = 0.0;
  for (int64_t base = 0; base < tiles; base += kThreads) {
    shared.part[threadIdx.x] = base + threadIdx.x < tiles ? squares[base + threadIdx.x] : 0.0;
    __syncthreads();
    if (threadIdx.x == 0) {
      const int64_t count = least(kThreads, tiles - base);
      for (int64_t i = 0; i < count; ++i) sum = __dadd_rn(sum, shared.part[i]);
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const double scale = static_cast<double>(grad_scale), most = static_cast<double>(max_norm);
  const double norm = __dmul_rn(scale < 0.0 ? -scale : scale, __dsqrt_rn(sum));
  const bool clips = most > 0.0 && norm > most;
  const double factor = clips ? __dmul_rn(scale, __ddiv_rn(most, norm)) : scale;
  const bool finite = norm <= 1.7976931348623157e308;  // false for NaN
  result[0] = __double2float_rn(norm);
  result[1] = finite ? __double2float_rn(factor) : 0.0f;
}

// Elements i.. of the parameter to their places in the copy.
template <class Element>
__device__ __forceinline__ void store_copy(const Part& part, int64_t i, float4 p, int64_t left) {
  const float4 scaled =
      each_of_four(p, p, [&](float a, float) { return __fmul_rn(a, part.copy_scale); });
  Element* const copy = static_cast<Element*>(part.copy);
  if (part.copy_in_fours) {
    const int64_t row = i / part.copy_columns, column = i - row * part.copy_columns;
    store_four<true>(copy + row * part.copy_stride + column, scaled, 4);
    return;
  }
  const float value[4] = {scaled.x, scaled.y, scaled.z, scaled.w};
#pragma unroll
  for (int64_t j = 0; j < 4; ++j) {
    if (j >= left) return;
    const int64_t row = (i + j) / part.copy_columns;
    const int64_t column = i + j - row * part.copy_columns;
    copy[row * part.copy_stride + column] = to_element<Element>(value[j]);
  }
}

__global__ void __launch_bounds__(kThreads)
    adamw_step_kernel(Parts parts, Factors f, const float* result) {
  const float norm = result[0], grad_scale = result[1];
  if (!(norm <= 3.4028234e38f)) return;
  const Part& part = part_of(parts, blockIdx.x);
  const int64_t i = 4 * ((blockIdx.x - part.first_unit) * kThreads + threadIdx.x);
  if (i >= part.count) return;
  const int64_t left = part.count - i;
  const auto load = [&](const float* from) {
    return part.aligned ? load_four<true>(from + i, left) : load_four<false>(from + i, left);
  };
  const auto store = [&](float* to, float4 value) {
    if (part.aligned) {
      store_four<true>(to + i, value, left);
    } else {
      store_four<false>(to + i, value, left);
    }
  };
  const float4 g = each_of_four(load(part.grad), load(part.grad),
                                [&](float a, float) { return __fmul_rn(a, grad_scale); });
  const float4 m = each_of_four(load(part.m), g, [&](float a, float b) {
    return __fmaf_rn(b, f.one_minus_beta1, __fmul_rn(a, f.beta1));
  });
  const float4 v = each_of_four(load(part.v), g, [&](float a, float b) {
    return __fmaf_rn(__fmul_rn(b, b), f.one_minus_beta2, __fmul_rn(a, f.beta2));
  });
  const float4 move = each_of_four(m, v, [&](float a, float b) {
    const float divisor = __fadd_rn(__fdiv_rn(__fsqrt_rn(b), f.bias2_root), f.eps);
    return __fdiv_rn(__fmul_rn(a, part.step_size), divisor);
  });
  const float4 p = each_of_four(load(part.param), move, [&](float a, float b) {
    return __fsub_rn(__fmul_rn(a, part.decay), b);
  });
  store(part.m, m);
  store(part.v, v);
  store(part.param, p);
  if (part.copy == nullptr) return;
  if (part.copy_type == GRAFT_F32) {
    store_copy<float>(part, i, p, left);
  } else {
    store_copy<Bf16>(part, i, p, left);
  }
}

int64_t ceil_of(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

graft_status adamw_parts(const AdamTensors& call, graft_stream stream) {
  constexpr const char* kName = "graft_adamw_parts_step";
  const Factors factors{call.beta1,           call.one_minus_beta1, call.beta2,
                        call.one_minus_beta2, call.bias2_root,      call.eps};
  // Calls body(parts, units) for groups of parts; a unit is `unit` elements of one part.
  const auto for_groups = [&](int64_t unit, const auto& body) {
    int64_t done = 0;
    for (int64_t begin = 0; begin < call.count; begin += kParts) {
      Parts parts{};
      int64_t units = 0;
      for (int64_t i = begin; i < call.count && i < begin + kParts; ++i) {
        const graft_adamw_part& from = call.parts[i];
        if (from.count == 0) continue;
        Part& part = parts.part[parts.count++];
        part.param = from.param;
        part.m = from.m;
        part.v = from.v;
        part.grad = from.grad;
        part.count = from.count;
        part.first_unit = units;
        const auto lr = static_cast<double>(from.lr);
        part.step_size = static_cast<float>(lr / call.bias1);
        part.decay = static_cast<float>(1.0 - lr * static_cast<double>(from.weight_decay));
        part.aligned = from.count % 4 == 0 && aligned_to_16(from.param, from.m, from.v, from.grad);
        part.copy = from.copy;
        part.copy_type = from.copy_type;
        part.copy_scale = from.copy_scale;
        part.copy_columns = from.copy_columns;
        part.copy_stride = from.copy_stride;
        part.copy_in_fours = from.copy_columns % 4 == 0 && from.copy_stride % 4 == 0 &&
                             aligned_for_four(from.copy_type, from.copy);
        units += ceil_of(from.count, unit);
      }
      if (units > 0) body(parts, done, units);
      done += units;
    }
    return done;
  };
  const int64_t tiles = for_groups(kTile, [&](Parts& parts, int64_t done, int64_t units) {
    for (int64_t i = 0; i < parts.count; ++i) parts.part[i].first_unit += done;
    const unsigned grid = static_cast<unsigned>(ceil_of(units, kTilesOfBlock));
    GRAFT_LAUNCH(adamw_squares_kernel, grid, kThreads, stream, parts, done, units, call.squares);
  });
  GRAFT_LAUNCH(adamw_norm_kernel, 1, kThreads, stream, call.squares, tiles, call.grad_scale,
               call.max_norm, call.result);
  for_groups(4 * kThreads, [&](const Parts& parts, int64_t, int64_t units) {
    GRAFT_LAUNCH(adamw_step_kernel, static_cast<unsigned>(units), kThreads, stream, parts, factors,
                 call.result);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
