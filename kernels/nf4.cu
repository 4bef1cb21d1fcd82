// NF4 on a GPU, and on the emulated device.
//
// Quantize: one warp per block of weights, so that its maximum is five shuffles; weights are read
// twice, the second time from the first-level cache. 4 B read and 0.5 B written a weight: bound by
// memory. Compress: 1/64 of that; one block for the mean (its order of sums is part of the format),
// then one block per 256 values. Decode: 0.516 B read and 2 or 4 B written a weight in one launch,
// the nested absmax decoded in line; neighbouring threads read neighbouring words and, for 16-bit
// results, store neighbouring 16 bytes. Bound by memory: 0.59 ps a weight at 4.3 TB/s to bfloat16.
#include <mutex>

#include "kernels/device_functions.h"
#include "kernels/device_math.h"
#include "kernels/nf4_tables.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// Eight weights: one 32-bit word of packed bytes, 16 bytes of 16-bit results.
constexpr int64_t kWordWeights = 8;
// Words of one thread, a block's width apart: four loads in flight.
constexpr int64_t kThreadWords = 4;

template <int kCount>
struct Values {
  float value[kCount];
};

// A host table as a value that a __constant__ can start from.
template <int kCount>
constexpr Values<kCount> values_of(const float (&table)[kCount]) {
  Values<kCount> result{};
  for (int i = 0; i < kCount; ++i) result.value[i] = table[i];
  return result;
}

// By graft_quant4_type.
__constant__ Values<16> device_code[2] = {values_of(kNf4Code), values_of(kFp4Code)};
__constant__ Values<15> device_midpoints[2] = {values_of(kNf4Midpoints.value),
                                               values_of(kFp4Midpoints.value)};
// The codes of FP4 by ascending value; NF4's are ascending themselves.
struct Order {
  uint8_t code[16];
};
constexpr Order order_of(const uint8_t (&table)[16]) {
  Order result{};
  for (int i = 0; i < 16; ++i) result.code[i] = table[i];
  return result;
}
__constant__ Order device_fp4_order = order_of(kFp4Order);
__constant__ Values<256> device_map = values_of(kDynamicMapSigned);

// Set when an input is not finite. One for all streams: the host functions that use it take turns.
__device__ unsigned not_finite_flag;

std::mutex& flag_mutex() {
  static std::mutex mutex;
  return mutex;
}

__device__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

__device__ float inverse_of(float absmax) {
  return __fdiv_rn(1.0f, absmax > kNf4SmallestAbsmax ? absmax : kNf4SmallestAbsmax);
}

struct QuantizeShared {
  float midpoints[16];
  unsigned order[16];
};

__device__ unsigned code_of(float weight, float inverse, const QuantizeShared& shared) {
  float scaled = __fmul_rn(weight, inverse);
  scaled = scaled > 1.0f ? 1.0f : (scaled < -1.0f ? -1.0f : scaled);
  unsigned place = 0;
  for (unsigned step = 8; step > 0; step /= 2) {
    if (scaled > shared.midpoints[place + step - 1]) place += step;
  }
  return shared.order[place];
}

template <class Element>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const Element* __restrict__ weight,
                                                            int64_t count,
                                                            int block_size,
                                                            graft_quant4_type type,
                                                            uint8_t* __restrict__ packed,
                                                            float* __restrict__ absmax) {
  GRAFT_SHARED(QuantizeShared, shared);
  if (threadIdx.x < 15) shared.midpoints[threadIdx.x] = device_midpoints[type].value[threadIdx.x];
  if (threadIdx.x < 16) {
    shared.order[threadIdx.x] =
        type == GRAFT_FP4 ? device_fp4_order.code[threadIdx.x] : threadIdx.x;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarpLanes;
  const int64_t block =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  const int64_t first = block * block_size;
  if (first >= count) return;  // the whole warp
  const int64_t length = count - first < block_size ? count - first : block_size;

  // Magnitudes compare as integers, and NaN and infinity above every finite number.
  unsigned largest = 0;
  for (int64_t i = lane; i < length; i += kWarpLanes) {
    const unsigned bits = __float_as_uint(to_float(weight[first + i])) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const unsigned other = __shfl_xor_sync(kAllLanes, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (lane == 0) {
    absmax[block] = __uint_as_float(largest);
    if (largest >= 0x7f800000u) atomicOr(&not_finite_flag, 1u);
  }
  const float inverse = inverse_of(__uint_as_float(largest));
  for (int64_t i = 2 * lane; i < length; i += 2 * kWarpLanes) {
    const float low_weight = i + 1 < length ? to_float(weight[first + i + 1]) : 0.0f;
    const unsigned high = code_of(to_float(weight[first + i]), inverse, shared);
    const unsigned low = code_of(low_weight, inverse, shared);
    packed[(first + i) / 2] = static_cast<uint8_t>(high << 4 | low);
  }
}

struct MeanShared {
  double lane[kThreads];
};

__global__ void __launch_bounds__(kThreads)
    mean_kernel(const float* __restrict__ absmax, int64_t blocks, float* __restrict__ offset) {
  GRAFT_SHARED(MeanShared, shared);
  double sum = 0.0;
  bool finite = true;
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
    const float value = absmax[i];
    finite = finite && is_finite(value);
    sum = __dadd_rn(sum, static_cast<double>(value));
  }
  if (!finite) atomicOr(&not_finite_flag, 1u);
  shared.lane[threadIdx.x] = sum;
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      shared.lane[threadIdx.x] =
          __dadd_rn(shared.lane[threadIdx.x], shared.lane[threadIdx.x + width]);
    }
  }
  if (threadIdx.x == 0) {
    *offset = __double2float_rn(__ddiv_rn(shared.lane[0], static_cast<double>(blocks)));
  }
}

struct CompressShared {
  float map[GRAFT_NF4_NESTED_BLOCK];
  unsigned largest[GRAFT_NF4_NESTED_BLOCK];
};

__global__ void __launch_bounds__(GRAFT_NF4_NESTED_BLOCK)
    compress_kernel(const float* __restrict__ absmax,
                    int64_t blocks,
                    const float* __restrict__ offset,
                    uint8_t* __restrict__ absmax8,
                    float* __restrict__ nested_absmax) {
  GRAFT_SHARED(CompressShared, shared);
  const unsigned lane = threadIdx.x;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * GRAFT_NF4_NESTED_BLOCK + lane;
  const float centred = i < blocks ? __fsub_rn(absmax[i], *offset) : 0.0f;
  shared.map[lane] = device_map.value[lane];
  shared.largest[lane] = __float_as_uint(centred) & 0x7fffffffu;
  for (unsigned width = GRAFT_NF4_NESTED_BLOCK / 2; width > 0; width /= 2) {
    __syncthreads();
    if (lane < width && shared.largest[lane + width] > shared.largest[lane]) {
      shared.largest[lane] = shared.largest[lane + width];
    }
  }
  __syncthreads();
  const float largest = __uint_as_float(shared.largest[0]);
  if (lane == 0) nested_absmax[blockIdx.x] = largest;
  if (i >= blocks) return;
  const float scaled = __fmul_rn(centred, inverse_of(largest));
  unsigned low = 0, high = 255;
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    const float midpoint = __fmul_rn(__fadd_rn(shared.map[middle], shared.map[middle + 1]), 0.5f);
    if (scaled > midpoint) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  absmax8[i] = static_cast<uint8_t>(low);
}

// Eight results of a word, as they are stored. A masked tail goes one by one.
struct ToF32 {
  using Type = float;
  static __device__ Type round(float x) { return x; }
  static __device__ void store_word(Type* out, const float (&x)[kWordWeights]) {
    __stcs(reinterpret_cast<float4*>(out), float4{x[0], x[1], x[2], x[3]});
    __stcs(reinterpret_cast<float4*>(out) + 1, float4{x[4], x[5], x[6], x[7]});
  }
};

template <class Round>
__device__ void store_word_16(uint16_t* out, const float (&x)[kWordWeights]) {
  unsigned pair[4];
  for (int i = 0; i < 4; ++i) {
    pair[i] = Round::round(x[2 * i]) | static_cast<unsigned>(Round::round(x[2 * i + 1])) << 16;
  }
  __stcs(reinterpret_cast<uint4*>(out), uint4{pair[0], pair[1], pair[2], pair[3]});
}

struct ToBf16 {
  using Type = uint16_t;
  static __device__ Type round(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
  static __device__ void store_word(Type* out, const float (&x)[kWordWeights]) {
    store_word_16<ToBf16>(out, x);
  }
};

struct ToF16 {
  using Type = uint16_t;
  static __device__ Type round(float x) { return __half_as_ushort(__float2half_rn(x)); }
  static __device__ void store_word(Type* out, const float (&x)[kWordWeights]) {
    store_word_16<ToF16>(out, x);
  }
};

struct DecodeShared {
  float code[16];
  float map[256];
};

__device__ void load_tables(DecodeShared& shared, graft_quant4_type type) {
  if (threadIdx.x < 16) shared.code[threadIdx.x] = device_code[type].value[threadIdx.x];
  shared.map[threadIdx.x] = device_map.value[threadIdx.x];
  __syncthreads();
}

// The eight weights of a word. kAligned: packed is 4-byte aligned.
template <bool kAligned>
__device__ __forceinline__ void decode_word(const DecodeShared& shared,
                                            const graft_nf4_weight& weight,
                                            int block_shift,
                                            int64_t word,
                                            float (&value)[kWordWeights]) {
  const int64_t element = word * kWordWeights, bytes = (weight.count + 1) / 2;
  unsigned packed = 0;
  if (kAligned && element + kWordWeights <= weight.count) {
    packed = __ldcs(reinterpret_cast<const unsigned*>(weight.packed) + word);
  } else {
    for (int64_t i = 0; i < 4 && word * 4 + i < bytes; ++i) {
      packed |= static_cast<unsigned>(weight.packed[word * 4 + i]) << (8 * i);
    }
  }
  // Eight weights never cross a block: block sizes are multiples of 32.
  const int64_t block = element >> block_shift;
  float absmax;
  if (weight.absmax != nullptr) {
    absmax = __ldg(weight.absmax + block);
  } else {
    const float nested = __ldg(weight.nested_absmax + block / GRAFT_NF4_NESTED_BLOCK);
    absmax = __fadd_rn(__fmul_rn(shared.map[__ldg(weight.absmax8 + block)], nested), weight.offset);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = __fmul_rn(shared.code[packed >> (8 * i + 4) & 15u], absmax);
    value[2 * i + 1] = __fmul_rn(shared.code[packed >> (8 * i) & 15u], absmax);
  }
}

// kAligned: packed is 4-byte and out 16-byte aligned, so that whole words move at once.
template <class Out, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(graft_nf4_weight weight, int block_shift, typename Out::Type* __restrict__ out) {
  GRAFT_SHARED(DecodeShared, shared);
  load_tables(shared, weight.type);
  const int64_t words = ceil_div(weight.count, kWordWeights);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kThreadWords + threadIdx.x;
#pragma unroll
  for (int64_t step = 0; step < kThreadWords; ++step) {
    const int64_t word = first + step * kThreads;
    if (word >= words) return;
    const int64_t element = word * kWordWeights;
    float value[kWordWeights];
    decode_word<kAligned>(shared, weight, block_shift, word, value);
    if (kAligned && element + kWordWeights <= weight.count) {
      Out::store_word(out + element, value);
    } else {
      for (int64_t i = 0; i < kWordWeights && element + i < weight.count; ++i) {
        out[element + i] = Out::round(value[i]);
      }
    }
  }
}

// Targets of one launch as kernel arguments.
struct RowsTarget {
  graft_nf4_weight weight;
  int64_t columns, row_stride;
  void* out;
  const void* tail;
  int64_t tail_columns;
  int64_t first_block, first_tail_block;  // blocks of the weight, then those of the tail
  int block_shift;
  bool aligned;  // whole words: packed 4-byte, rows of out 16-byte aligned, columns a multiple of 8
  bool tail_aligned;  // whole 16 bytes likewise
};
struct RowsTargets {
  RowsTarget target[GRAFT_DECODE_TARGETS];
  int count;
};

// Elements of one thread of a tail's blocks.
template <class Type>
constexpr int64_t kTailElements = 16 / static_cast<int64_t>(sizeof(Type));

template <class Type>
__device__ void copy_tail(const RowsTarget& target, const Type* tail, Type* out) {
  const int64_t rows = target.weight.count / target.columns;
  const int64_t words = ceil_div(target.tail_columns, kTailElements<Type>);
  const int64_t item = (blockIdx.x - target.first_tail_block) * kThreads + threadIdx.x;
  const int64_t row = item / words, column = (item - row * words) * kTailElements<Type>;
  if (row >= rows) return;
  const Type* const from = tail + row * target.tail_columns + column;
  Type* const to = out + row * target.row_stride + target.columns + column;
  if (target.tail_aligned) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    return;
  }
  for (int64_t i = 0; i < kTailElements<Type> && column + i < target.tail_columns; ++i) {
    to[i] = from[i];
  }
}

template <class Out>
__global__ void __launch_bounds__(kThreads) decode_rows_kernel(RowsTargets targets) {
  GRAFT_SHARED(DecodeShared, shared);
  int index = 0;
  for (int i = 1; i < targets.count; ++i) {
    if (targets.target[i].first_block <= blockIdx.x) index = i;
  }
  const RowsTarget& target = targets.target[index];
  load_tables(shared, target.weight.type);
  typename Out::Type* const out = static_cast<typename Out::Type*>(target.out);
  if (blockIdx.x >= target.first_tail_block) {
    return copy_tail(target, static_cast<const typename Out::Type*>(target.tail), out);
  }
  const int64_t words = ceil_div(target.weight.count, kWordWeights);
  const int64_t first = (blockIdx.x - target.first_block) * kThreads * kThreadWords + threadIdx.x;
#pragma unroll
  for (int64_t step = 0; step < kThreadWords; ++step) {
    const int64_t word = first + step * kThreads;
    if (word >= words) return;
    const int64_t element = word * kWordWeights;
    float value[kWordWeights];
    if (target.aligned) {
      decode_word<true>(shared, target.weight, target.block_shift, word, value);
      const int64_t row = element / target.columns;
      Out::store_word(out + row * target.row_stride + element % target.columns, value);
      continue;
    }
    decode_word<false>(shared, target.weight, target.block_shift, word, value);
    for (int64_t i = 0; i < kWordWeights && element + i < target.weight.count; ++i) {
      const int64_t row = (element + i) / target.columns;
      out[row * target.row_stride + (element + i) % target.columns] = Out::round(value[i]);
    }
  }
}

graft_status cuda_failure(const char* function, cudaError_t error) {
  return fail(GRAFT_DEVICE_ERROR, function, "%s", cudaGetErrorString(error));
}

// Runs `launches` with the flag lowered before and read after.
template <class Launches>
graft_status launch_checking_finite(const char* function,
                                    cudaStream_t stream,
                                    const Launches& launches) {
  const std::lock_guard<std::mutex> lock(flag_mutex());
  unsigned flag = 0;
  cudaError_t error = cudaMemcpyToSymbolAsync(not_finite_flag, &flag, sizeof flag, 0,
                                              cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess) return cuda_failure(function, error);
  launches();
  if (const graft_status status = launch_status(function)) return status;
  error = cudaMemcpyFromSymbolAsync(&flag, not_finite_flag, sizeof flag, 0, cudaMemcpyDeviceToHost,
                                    stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) return cuda_failure(function, error);
  if (flag == 0) return GRAFT_OK;
  return fail(GRAFT_NOT_FINITE, function, "an input is NaN or infinite, expected finite values");
}

}  // namespace

graft_status quant4_quantize(graft_quant4_type type,
                             graft_float_type weight_type,
                             const void* weight,
                             int64_t count,
                             int block_size,
                             uint8_t* packed,
                             float* absmax,
                             graft_stream stream) {
  constexpr const char* kName = "graft_quant4_quantize";
  const int64_t warps = ceil_div(count, block_size);
  const int64_t blocks = ceil_div(warps, kThreads / kWarpLanes);
  if (const graft_status status = check_grid(kName, blocks)) return status;
  return launch_checking_finite(kName, static_cast<cudaStream_t>(stream), [&] {
    const auto launch = [&](auto element) {
      using Element = decltype(element);
      GRAFT_LAUNCH((quantize_kernel<Element>), static_cast<unsigned>(blocks), kThreads, stream,
                   static_cast<const Element*>(weight), count, block_size, type, packed, absmax);
    };
    if (weight_type == GRAFT_F16) {
      launch(F16{});
    } else {
      for_element(weight_type, launch);
    }
  });
}

graft_status nf4_compress_absmax(const float* absmax,
                                 int64_t blocks,
                                 uint8_t* absmax8,
                                 float* nested_absmax,
                                 float* offset,
                                 graft_stream stream) {
  constexpr const char* kName = "graft_nf4_compress_absmax";
  const int64_t nested = ceil_div(blocks, GRAFT_NF4_NESTED_BLOCK);
  if (const graft_status status = check_grid(kName, nested)) return status;
  return launch_checking_finite(kName, static_cast<cudaStream_t>(stream), [&] {
    GRAFT_LAUNCH(mean_kernel, 1, kThreads, stream, absmax, blocks, offset);
    GRAFT_LAUNCH(compress_kernel, static_cast<unsigned>(nested), GRAFT_NF4_NESTED_BLOCK, stream,
                 absmax, blocks, offset, absmax8, nested_absmax);
  });
}

namespace {

template <class Out>
graft_status decode(const char* function,
                    const graft_nf4_weight& weight,
                    typename Out::Type* out,
                    graft_stream stream) {
  const int64_t words = ceil_div(weight.count, kWordWeights);
  const int64_t blocks = ceil_div(words, kThreads * kThreadWords);
  if (const graft_status status = check_grid(function, blocks)) return status;
  const int block_shift = __builtin_ctz(static_cast<unsigned>(weight.block_size));
  const bool aligned = reinterpret_cast<uintptr_t>(weight.packed) % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const unsigned grid = static_cast<unsigned>(blocks);
  if (aligned) {
    GRAFT_LAUNCH((decode_kernel<Out, true>), grid, kThreads, stream, weight, block_shift, out);
  } else {
    GRAFT_LAUNCH((decode_kernel<Out, false>), grid, kThreads, stream, weight, block_shift, out);
  }
  return launch_status(function);
}

}  // namespace

graft_status nf4_decode_f32(const graft_nf4_weight& weight, float* out, graft_stream stream) {
  return decode<ToF32>("graft_nf4_decode", weight, out, stream);
}
graft_status nf4_decode_bf16(const graft_nf4_weight& weight, uint16_t* out, graft_stream stream) {
  return decode<ToBf16>("graft_nf4_decode_bf16", weight, out, stream);
}
graft_status nf4_decode_f16(const graft_nf4_weight& weight, uint16_t* out, graft_stream stream) {
  return decode<ToF16>("graft_nf4_decode_f16", weight, out, stream);
}

namespace {

template <class Out>
graft_status start_rows(const DecodeRows& call, graft_stream stream) {
  constexpr const char* kName = "graft_nf4_decode_rows";
  RowsTargets targets{};
  int64_t blocks = 0;
  for (int64_t i = 0; i < call.count; ++i) {
    const graft_decode_target& from = call.targets[i];
    const int64_t row_bytes = from.row_stride * static_cast<int64_t>(sizeof(typename Out::Type));
    if (from.weight.count == 0) continue;
    RowsTarget& target = targets.target[targets.count++];
    target.weight = from.weight;
    target.columns = from.columns;
    target.row_stride = from.row_stride;
    target.out = from.out;
    target.tail = from.tail;
    target.tail_columns = from.tail != nullptr ? from.tail_columns : 0;
    target.first_block = blocks;
    target.block_shift = __builtin_ctz(static_cast<unsigned>(from.weight.block_size));
    target.aligned = from.columns % kWordWeights == 0 && row_bytes % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(from.weight.packed) % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(from.out) % 16 == 0;
    const int64_t element = static_cast<int64_t>(sizeof(typename Out::Type));
    target.tail_aligned = target.tail_columns * element % 16 == 0 && row_bytes % 16 == 0 &&
                          from.columns * element % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(from.tail) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(from.out) % 16 == 0;
    blocks += ceil_div(ceil_div(from.weight.count, kWordWeights), kThreads * kThreadWords);
    target.first_tail_block = blocks;
    const int64_t tail_words = ceil_div(target.tail_columns, kTailElements<typename Out::Type>);
    blocks += ceil_div(from.weight.count / from.columns * tail_words, kThreads);
  }
  if (blocks == 0) return GRAFT_OK;
  if (const graft_status status = check_grid(kName, blocks)) return status;
  GRAFT_LAUNCH(decode_rows_kernel<Out>, static_cast<unsigned>(blocks), kThreads, stream, targets);
  return launch_status(kName);
}

}  // namespace

graft_status decode_rows(const DecodeRows& call, graft_stream stream) {
  if (call.type == DecodedType::kF32) return start_rows<ToF32>(call, stream);
  return call.type == DecodedType::kBf16 ? start_rows<ToBf16>(call, stream)
                                         : start_rows<ToF16>(call, stream);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
