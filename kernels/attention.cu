// Packed causal attention on a GPU, and on the emulated device, with windows and capped scores.
//
// Forward: a block takes 8 queries of one head and walks the keys in the chunks of 512 that define
// the running maximum on the CPU; a thread holds one key's scores with the 8 queries, then one
// column of the result. Backward: the same for dq, and a block of 8 keys for dk and dv, which adds
// the query heads of its group in order; scores are computed again in both. Every sum has the order
// of simd/attention.cpp, so the results have its bits: fp32 multiply-adds without tensor cores.
// 2 * head_dim flops a pair forward and 7 backward, bound by arithmetic; keys and values come from
// the second-level cache. For what the libraries' flash kernels do not offer: capped scores.
// Decode: a block per head over its cache, 8 * head_dim B a key, read twice: bound by memory.
#include "kernels/device_functions.h"
#include "kernels/device_math.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kThreads = 128;
// Queries, or keys in the backward pass, of one block: half a warp each in the row operations.
constexpr int64_t kRows = 8;
constexpr unsigned kLanes = 16;
constexpr int64_t kMostHeadDim = 256;
// Keys of one chunk (simd/attention.cpp): part of the result's definition.
constexpr int64_t kForwardKeys = 512;

// A sum over the 16 lanes of half a warp in the order of sum_lanes().
__device__ __forceinline__ float sum_lanes(float x) {
  for (int distance = 8; distance > 0; distance /= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, distance));
  }
  return x;
}
__device__ __forceinline__ float largest_lane(float x) {
  for (int distance = 8; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, x, distance);
    x = x > other ? x : other;
  }
  return x;
}

struct Score {
  float value, tangent;
};
__device__ __forceinline__ Score score_of(float dot, float scale, float cap) {
  const float scaled = __fmul_rn(dot, scale);
  if (cap == 0.0f) return {scaled, 0.0f};
  const float tangent = hyperbolic_tangent(__fdiv_rn(scaled, cap));
  return {__fmul_rn(tangent, cap), tangent};
}

// Eight tokens of one document: what a block works on.
struct Place {
  int64_t document_begin, length;  // of the document; length 0 for a block without work
  int64_t row;                     // first token, counted in the document
  int64_t rows;
};

__device__ Place place_of(const graft_attention_shape& shape, int64_t tile) {
  Place place{0, 0, 0, 0};
  for (int64_t i = 0; i < shape.documents; ++i) {
    const int64_t begin = shape.cu_seqlens[i], length = shape.cu_seqlens[i + 1] - begin;
    const int64_t tiles = ceil_div(length, kRows);
    if (tile < tiles) {
      place = {begin, length, tile * kRows, least(kRows, length - tile * kRows)};
      break;
    }
    tile -= tiles;
  }
  return place;
}

// Floats from row to row of a tensor's tile in shared memory: whole fours.
__device__ __forceinline__ int64_t padded(int64_t d) {
  return (d + 3) / 4 * 4;
}

// to [kRows][padded(d)] = rows of a tensor; rows past the end are zero.
template <class Element>
__device__ void load_rows(const Element* from, int64_t stride, int64_t rows, int64_t d, float* to) {
  for (int64_t i = threadIdx.x; i < kRows * d; i += kThreads) {
    to[i / d * padded(d) + i % d] = i / d < rows ? to_float(from[i / d * stride + i % d]) : 0.0f;
  }
}

__device__ __forceinline__ float part_of(float4 v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// dot[r] = rows[r] . column for the eight rows in shared memory. fours: the column begins at four
// elements' bytes.
template <class Element>
__device__ __forceinline__ void dots(
    const float* rows, const Element* column, int64_t d, bool fours, float (&dot)[kRows]) {
#pragma unroll
  for (int64_t r = 0; r < kRows; ++r) dot[r] = 0.0f;
  const int64_t row_floats = padded(d);
  int64_t i = 0;
  // Unrolled further, the loop's addresses and values no longer fit the registers.
#pragma unroll 1
  for (; i + 4 <= d; i += 4) {
    const float4 value = fours ? load_four<true>(column + i, 4) : load_four<false>(column + i, 4);
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      const float4 row = *reinterpret_cast<const float4*>(rows + r * row_floats + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) dot[r] = __fmaf_rn(part_of(row, j), part_of(value, j), dot[r]);
    }
  }
  for (; i < d; ++i) {
    const float value = to_float(column[i]);
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      dot[r] = __fmaf_rn(rows[r * row_floats + i], value, dot[r]);
    }
  }
}

// The part of a [kRows, head_dim] result that one thread owns: some rows of a column, or of two
// columns 128 apart. Narrow heads share their rows among groups of threads.
struct Owned {
  int64_t column, first_row, rows;
};
__device__ __forceinline__ Owned owned_by_thread(int64_t d) {
  const int64_t width = d <= 32 ? 32 : d <= 64 ? 64 : 128;
  const int64_t groups = kThreads / width;
  const int64_t group = threadIdx.x / width;
  return {threadIdx.x % width, group * (kRows / groups), kRows / groups};
}

// sum[column part][row] continued over `count` factors: factor[row * stride + i] * values[i].
// Factors lie in shared memory, rows a multiple of four apart, and are read in fours.
template <int kColumns, class Element>
__device__ __forceinline__ void accumulate(const Owned& owned,
                                           const float* factor,
                                           int64_t stride,
                                           int64_t count,
                                           const Element* values,
                                           int64_t values_stride,
                                           int64_t d,
                                           float (&sum)[kColumns][kRows]) {
#pragma unroll 1
  for (int64_t i = 0; i < count; i += 4) {
#pragma unroll
    for (int part = 0; part < kColumns; ++part) {
      const int64_t column = owned.column + part * kThreads;
      float value[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool inside = column < d && i + j < count;
        value[j] = inside ? to_float(values[(i + j) * values_stride + column]) : 0.0f;
      }
#pragma unroll
      for (int64_t r = 0; r < kRows; ++r) {
        if (r >= owned.rows) break;
        const float4 factors =
            *reinterpret_cast<const float4*>(factor + (owned.first_row + r) * stride + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (i + j < count) {
            sum[part][r] = __fmaf_rn(part_of(factors, j), value[j], sum[part][r]);
          }
        }
      }
    }
  }
}

struct ForwardShared {
  alignas(16) float q[kRows * kMostHeadDim];
  alignas(16) float score[kRows][kForwardKeys];
  float correction[kRows], top[kRows], total[kRows];
};

template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads, 4)
    attention_forward_kernel(AttentionForward call, bool fours) {
  GRAFT_SHARED(ForwardShared, shared);
  const graft_attention_shape& shape = call.shape;
  const Place place = place_of(shape, blockIdx.x);
  if (place.rows == 0) return;  // the whole block
  const int64_t d = shape.head_dim, head = blockIdx.y;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t token = place.document_begin + place.row;
  const Element* const k =
      static_cast<const Element*>(call.k) + place.document_begin * shape.k_stride + kv_head * d;
  const Element* const v =
      static_cast<const Element*>(call.v) + place.document_begin * shape.v_stride + kv_head * d;
  load_rows(static_cast<const Element*>(call.q) + token * shape.q_stride + head * d, shape.q_stride,
            place.rows, d, shared.q);
  const Owned owned = owned_by_thread(d);
  float out[kColumns][kRows] = {};
  // The row whose softmax this half warp does.
  const int64_t mine = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t position = place.row + mine;
  const int64_t my_first = most(0, position + 1 - shape.window);
  const int64_t tile_first = most(0, place.row + 1 - shape.window);
  const int64_t end = place.row + place.rows;
  if (lane == 0) shared.top[mine] = shared.total[mine] = 0.0f;
  for (int64_t key = tile_first / kForwardKeys * kForwardKeys; key < end; key += kForwardKeys) {
    const int64_t chunk_end = least(key + kForwardKeys, end);
    const int64_t begin = most(key, tile_first), keys = chunk_end - begin;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < keys; j += kThreads) {
      float dot[kRows];
      dots(shared.q, k + (begin + j) * shape.k_stride, d, fours, dot);
      // Those that a row does not see are set to 0 below.
#pragma unroll
      for (int64_t r = 0; r < kRows; ++r) {
        shared.score[r][j] = score_of(dot[r], shape.scale, shape.softcap).value;
      }
    }
    __syncthreads();
    // Keys [first, last) of the chunk's part are seen by this half warp's row.
    const int64_t first = most(my_first, begin) - begin,
                  last = least(position + 1, chunk_end) - begin;
    const bool some = mine < place.rows && first < last;
    float* const score = shared.score[mine];
    float largest = -INFINITY;
    for (int64_t j = first + lane; some && j < last; j += kLanes) {
      largest = score[j] > largest ? score[j] : largest;
    }
    largest = largest_lane(largest);
    const bool starts = my_first >= key;
    const float before = shared.top[mine];
    const float top = starts || largest > before ? largest : before;
    float sum = 0.0f;
    for (int64_t j = lane; j < keys; j += kLanes) {
      if (!some || j < first || j >= last) score[j] = 0.0f;
    }
    __syncwarp();
    for (int64_t j = first + lane; some && j < last; j += kLanes) {
      score[j] = exponential(__fsub_rn(score[j], top));
      sum = __fadd_rn(sum, score[j]);
    }
    sum = sum_lanes(sum);
    __syncwarp();
    if (lane == 0) {
      const float correction = some && !starts ? exponential(__fsub_rn(before, top)) : 1.0f;
      shared.correction[mine] = correction;
      if (some) {
        shared.total[mine] =
            starts ? sum : __fadd_rn(__fmul_rn(shared.total[mine], correction), sum);
        shared.top[mine] = top;
      }
    }
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kColumns; ++part) {
#pragma unroll
      for (int64_t r = 0; r < kRows; ++r) {
        if (r >= owned.rows) break;
        out[part][r] = __fmul_rn(out[part][r], shared.correction[owned.first_row + r]);
      }
    }
    accumulate(owned, shared.score[0], kForwardKeys, keys, v + begin * shape.v_stride,
               shape.v_stride, d, out);
  }
  __syncthreads();
  if (lane == 0 && mine < place.rows) {
    call.lse[(token + mine) * shape.heads + head] =
        __fadd_rn(shared.top[mine], logarithm(shared.total[mine]));
  }
#pragma unroll
  for (int part = 0; part < kColumns; ++part) {
    const int64_t column = owned.column + part * kThreads;
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      if (r >= owned.rows) break;
      const int64_t row = owned.first_row + r;
      if (row >= place.rows || column >= d) continue;
      const float inverse = __fdiv_rn(1.0f, shared.total[row]);
      static_cast<Element*>(call.out)[(token + row) * shape.out_stride + head * d + column] =
          to_element<Element>(__fmul_rn(out[part][r], inverse));
    }
  }
}

// delta [tokens, heads] = dout . out: half a warp each, in the order of the CPU's dot().
template <class Element>
__global__ void __launch_bounds__(kThreads) attention_delta_kernel(AttentionBackward call) {
  const graft_attention_shape& shape = call.shape;
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int64_t lane = threadIdx.x % kLanes;
  const bool inside = item < shape.tokens * shape.heads;
  const int64_t at = item / shape.heads * shape.out_stride + item % shape.heads * shape.head_dim;
  const Element* const out = static_cast<const Element*>(call.out) + at;
  const Element* const dout = static_cast<const Element*>(call.dout) + at;
  float sum = 0.0f;
  for (int64_t i = lane; inside && i < shape.head_dim; i += kLanes) {
    sum = __fmaf_rn(to_float(dout[i]), to_float(out[i]), sum);
  }
  sum = sum_lanes(sum);
  if (inside && lane == 0) call.delta[item] = sum;
}

struct PairGradient {
  float p, ds;
};
// The probability of a pair and the gradient of its score's dot product, as row_gradient() has it.
__device__ __forceinline__ PairGradient
pair_gradient(float dot, float dp, float lse, float delta, const graft_attention_shape& shape) {
  const Score score = score_of(dot, shape.scale, shape.softcap);
  const float p = exponential(__fsub_rn(score.value, lse));
  float ds = __fmul_rn(__fmul_rn(p, __fsub_rn(dp, delta)), shape.scale);
  if (shape.softcap != 0.0f) {
    ds = __fmul_rn(ds, __fmul_rn(__fsub_rn(1.0f, score.tangent), __fadd_rn(1.0f, score.tangent)));
  }
  return {p, ds};
}

struct QueryGradientShared {
  alignas(16) float q[kRows * kMostHeadDim];
  alignas(16) float dout[kRows * kMostHeadDim];
  alignas(16) float ds[kRows][kThreads];
};

template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads, 3)
    attention_query_gradient_kernel(AttentionBackward call, bool fours) {
  GRAFT_SHARED(QueryGradientShared, shared);
  const graft_attention_shape& shape = call.shape;
  const Place place = place_of(shape, blockIdx.x);
  if (place.rows == 0) return;  // the whole block
  const int64_t d = shape.head_dim, head = blockIdx.y;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t token = place.document_begin + place.row;
  const Element* const k =
      static_cast<const Element*>(call.k) + place.document_begin * shape.k_stride + kv_head * d;
  const Element* const v =
      static_cast<const Element*>(call.v) + place.document_begin * shape.v_stride + kv_head * d;
  load_rows(static_cast<const Element*>(call.q) + token * shape.q_stride + head * d, shape.q_stride,
            place.rows, d, shared.q);
  load_rows(static_cast<const Element*>(call.dout) + token * shape.out_stride + head * d,
            shape.out_stride, place.rows, d, shared.dout);
  const Owned owned = owned_by_thread(d);
  float dq[kColumns][kRows] = {};
  const int64_t end = place.row + place.rows;
  for (int64_t key = most(0, place.row + 1 - shape.window); key < end; key += kThreads) {
    __syncthreads();
    const int64_t j = key + threadIdx.x;
    float dot[kRows] = {}, dp[kRows] = {};
    if (j < end) {
      dots(shared.q, k + j * shape.k_stride, d, fours, dot);
      dots(shared.dout, v + j * shape.v_stride, d, fours, dp);
    }
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t i = place.row + r;
      float ds = 0.0f;
      if (r < place.rows && j <= i && j > i - shape.window) {
        const int64_t row = (token + r) * shape.heads + head;
        ds = pair_gradient(dot[r], dp[r], call.lse[row], call.delta[row], shape).ds;
      }
      shared.ds[r][threadIdx.x] = ds;
    }
    __syncthreads();
    accumulate(owned, shared.ds[0], kThreads, least(kThreads, end - key), k + key * shape.k_stride,
               shape.k_stride, d, dq);
  }
#pragma unroll
  for (int part = 0; part < kColumns; ++part) {
    const int64_t column = owned.column + part * kThreads;
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      if (r >= owned.rows) break;
      const int64_t row = owned.first_row + r;
      if (row >= place.rows || column >= d) continue;
      static_cast<Element*>(call.dq)[(token + row) * shape.q_stride + head * d + column] =
          to_element<Element>(dq[part][r]);
    }
  }
}

struct KeyGradientShared {
  alignas(16) float k[kRows * kMostHeadDim];
  alignas(16) float v[kRows * kMostHeadDim];
  alignas(16) float p[kRows][kThreads];
  alignas(16) float ds[kRows][kThreads];
};

template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads, 2)
    attention_key_gradient_kernel(AttentionBackward call, bool fours) {
  GRAFT_SHARED(KeyGradientShared, shared);
  const graft_attention_shape& shape = call.shape;
  const Place place = place_of(shape, blockIdx.x);
  if (place.rows == 0) return;  // the whole block
  const int64_t d = shape.head_dim, kv_head = blockIdx.y;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t token = place.document_begin + place.row;
  load_rows(static_cast<const Element*>(call.k) + token * shape.k_stride + kv_head * d,
            shape.k_stride, place.rows, d, shared.k);
  load_rows(static_cast<const Element*>(call.v) + token * shape.v_stride + kv_head * d,
            shape.v_stride, place.rows, d, shared.v);
  const Owned owned = owned_by_thread(d);
  // The last key of the tile is seen by the queries before its window's end.
  const int64_t end = least(place.length, place.row + place.rows - 1 + shape.window);
  float dk_total[kColumns][kRows] = {}, dv_total[kColumns][kRows] = {};
  for (int64_t member = 0; member < group; ++member) {
    const int64_t head = kv_head * group + member;
    const Element* const q =
        static_cast<const Element*>(call.q) + place.document_begin * shape.q_stride + head * d;
    const Element* const dout =
        static_cast<const Element*>(call.dout) + place.document_begin * shape.out_stride + head * d;
    float dk[kColumns][kRows] = {}, dv[kColumns][kRows] = {};
    for (int64_t query = place.row; query < end; query += kThreads) {
      __syncthreads();
      const int64_t i = query + threadIdx.x;
      float dot[kRows] = {}, dp[kRows] = {}, lse = 0.0f, delta = 0.0f;
      if (i < end) {
        dots(shared.k, q + i * shape.q_stride, d, fours, dot);
        dots(shared.v, dout + i * shape.out_stride, d, fours, dp);
        const int64_t row = (place.document_begin + i) * shape.heads + head;
        lse = call.lse[row];
        delta = call.delta[row];
      }
#pragma unroll
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t j = place.row + r;
        PairGradient pair{0.0f, 0.0f};
        if (i < end && j <= i && j > i - shape.window) {
          pair = pair_gradient(dot[r], dp[r], lse, delta, shape);
        }
        shared.p[r][threadIdx.x] = pair.p;
        shared.ds[r][threadIdx.x] = pair.ds;
      }
      __syncthreads();
      const int64_t count = least(kThreads, end - query);
      accumulate(owned, shared.p[0], kThreads, count, dout + query * shape.out_stride,
                 shape.out_stride, d, dv);
      accumulate(owned, shared.ds[0], kThreads, count, q + query * shape.q_stride, shape.q_stride,
                 d, dk);
    }
#pragma unroll
    for (int part = 0; part < kColumns; ++part) {
#pragma unroll
      for (int64_t r = 0; r < kRows; ++r) {
        dk_total[part][r] = member == 0 ? dk[part][r] : __fadd_rn(dk_total[part][r], dk[part][r]);
        dv_total[part][r] = member == 0 ? dv[part][r] : __fadd_rn(dv_total[part][r], dv[part][r]);
      }
    }
  }
#pragma unroll
  for (int part = 0; part < kColumns; ++part) {
    const int64_t column = owned.column + part * kThreads;
#pragma unroll
    for (int64_t r = 0; r < kRows; ++r) {
      if (r >= owned.rows) break;
      const int64_t row = owned.first_row + r;
      if (row >= place.rows || column >= d) continue;
      static_cast<Element*>(call.dk)[(token + row) * shape.k_stride + kv_head * d + column] =
          to_element<Element>(dk_total[part][r]);
      static_cast<Element*>(call.dv)[(token + row) * shape.v_stride + kv_head * d + column] =
          to_element<Element>(dv_total[part][r]);
    }
  }
}

struct DecodeShared {
  float q[kMostHeadDim];
  float score[kForwardKeys];
  float lane[kLanes];
  float top[kThreads / kLanes];
};

// lane[0] = the sum of the 16 in the order of sum_lanes().
template <unsigned kWidth>
__device__ __forceinline__ void add_lanes(float (&lane)[kLanes]) {
#pragma unroll
  for (unsigned j = 0; j < kWidth; ++j) lane[j] = __fadd_rn(lane[j], lane[j + kWidth]);
  if constexpr (kWidth > 1) add_lanes<kWidth / 2>(lane);
}

// q . k in the order of the CPU's dot(): 16 lanes, then pairwise.
template <class Element>
__device__ float dot_in_lanes(const float* q, const Element* k, int64_t d, bool fours) {
  float lane[kLanes] = {};
  for (int64_t i = 0; i < d; i += kLanes) {
#pragma unroll
    for (unsigned j = 0; j < kLanes; j += 4) {
      if (i + j >= d) break;
      const Element* const from = k + i + j;
      const float4 value = fours ? load_four<true>(from, 4) : load_four<false>(from, d - i - j);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if (i + j + part >= d) break;
        lane[j + part] = __fmaf_rn(q[i + j + part], part_of(value, part), lane[j + part]);
      }
    }
  }
  add_lanes<kLanes / 2>(lane);
  return lane[0];
}

template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads)
    attention_decode_kernel(AttentionDecode call, bool fours) {
  GRAFT_SHARED(DecodeShared, shared);
  const int64_t d = call.head_dim, head = blockIdx.x, stride = call.kv_heads * d;
  const int64_t offset = call.first * stride + head / (call.heads / call.kv_heads) * d;
  const Element* const q = static_cast<const Element*>(call.q) + head * d;
  const Element* const k = static_cast<const Element*>(call.k) + offset;
  const Element* const v = static_cast<const Element*>(call.v) + offset;
  const int64_t count = call.positions - call.first;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) shared.q[i] = to_float(q[i]);
  __syncthreads();
  const auto score_at = [&](int64_t j) {
    const float dot = dot_in_lanes(shared.q, k + j * stride, d, fours);
    return score_of(dot, call.scale, call.softcap).value;
  };
  float largest = -INFINITY;
  for (int64_t j = threadIdx.x; j < count; j += kThreads) {
    const float score = score_at(j);
    largest = score > largest ? score : largest;
  }
  largest = largest_lane(largest);
  if (threadIdx.x % kLanes == 0) shared.top[threadIdx.x / kLanes] = largest;
  __syncthreads();
  for (unsigned i = 0; i < kThreads / kLanes; ++i) {
    largest = shared.top[i] > largest ? shared.top[i] : largest;
  }
  float sum = 0.0f;  // of one lane of the CPU's sum, in the first 16 threads
  float out[kColumns] = {};
  for (int64_t key = 0; key < count; key += kForwardKeys) {
    const int64_t keys = least(kForwardKeys, count - key);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < keys; j += kThreads) {
      shared.score[j] = exponential(__fsub_rn(score_at(key + j), largest));
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; threadIdx.x < kLanes && j < keys; j += kLanes) {
      sum = __fadd_rn(sum, shared.score[j]);
    }
    for (int64_t j = 0; j < keys; ++j) {
#pragma unroll
      for (int part = 0; part < kColumns; ++part) {
        const int64_t column = threadIdx.x + part * kThreads;
        if (column < d) {
          const float value = to_float(v[(key + j) * stride + column]);
          out[part] = __fmaf_rn(shared.score[j], value, out[part]);
        }
      }
    }
  }
  if (threadIdx.x < kLanes) shared.lane[threadIdx.x] = sum;
  __syncthreads();
  float total[kLanes];
#pragma unroll
  for (unsigned i = 0; i < kLanes; ++i) total[i] = shared.lane[i];
  add_lanes<kLanes / 2>(total);
  const float inverse = __fdiv_rn(1.0f, total[0]);
#pragma unroll
  for (int part = 0; part < kColumns; ++part) {
    const int64_t column = threadIdx.x + part * kThreads;
    if (column < d) {
      static_cast<Element*>(call.out)[head * d + column] =
          to_element<Element>(__fmul_rn(out[part], inverse));
    }
  }
}

// Tiles of eight tokens in all documents: at most one short tile each. A block learns its place
// from cu_seqlens, which the host does not see.
int64_t most_tiles(const graft_attention_shape& shape) {
  return (shape.tokens + kRows - 1) / kRows + shape.documents;
}

// Whether rows of heads can be read in fours.
bool has_fours(const graft_attention_shape& shape) {
  return shape.head_dim % 4 == 0 && shape.q_stride % 4 == 0 && shape.k_stride % 4 == 0 &&
         shape.v_stride % 4 == 0 && shape.out_stride % 4 == 0;
}

// launch(an element, std::integral_constant of the columns that a thread owns).
template <class Launch>
void for_head(graft_float_type type, int64_t head_dim, const Launch& launch) {
  for_element(type, [&](auto element) {
    if (head_dim <= kThreads) {
      launch(element, std::integral_constant<int, 1>{});
    } else {
      launch(element, std::integral_constant<int, 2>{});
    }
  });
}

}  // namespace

graft_status attention_forward(const AttentionForward& call, graft_stream stream) {
  constexpr const char* kName = "graft_attention_forward";
  const graft_attention_shape& shape = call.shape;
  const int64_t tiles = most_tiles(shape);
  if (const graft_status status = check_grid(kName, tiles)) return status;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(shape.heads));
  const bool fours = has_fours(shape) && aligned_for_four(shape.type, call.k);
  for_head(shape.type, shape.head_dim, [&](auto element, auto columns) {
    GRAFT_LAUNCH((attention_forward_kernel<decltype(element), columns.value>), grid, kThreads,
                 stream, call, fours);
  });
  return launch_status(kName);
}

graft_status attention_backward(const AttentionBackward& call, graft_stream stream) {
  constexpr const char* kName = "graft_attention_backward";
  const graft_attention_shape& shape = call.shape;
  const int64_t tiles = most_tiles(shape);
  const int64_t rows = shape.tokens * shape.heads;
  const int64_t delta_blocks = (rows + kThreads / kLanes - 1) / (kThreads / kLanes);
  if (const graft_status status = check_grid(kName, tiles)) return status;
  if (const graft_status status = check_grid(kName, delta_blocks)) return status;
  const dim3 queries(static_cast<unsigned>(tiles), static_cast<unsigned>(shape.heads));
  const dim3 keys(static_cast<unsigned>(tiles), static_cast<unsigned>(shape.kv_heads));
  const bool fours =
      has_fours(shape) && aligned_for_four(shape.type, call.q, call.k, call.v, call.dout);
  for_head(shape.type, shape.head_dim, [&](auto element, auto columns) {
    using Element = decltype(element);
    GRAFT_LAUNCH((attention_delta_kernel<Element>), static_cast<unsigned>(delta_blocks), kThreads,
                 stream, call);
    GRAFT_LAUNCH((attention_query_gradient_kernel<Element, columns.value>), queries, kThreads,
                 stream, call, fours);
    GRAFT_LAUNCH((attention_key_gradient_kernel<Element, columns.value>), keys, kThreads, stream,
                 call, fours);
  });
  return launch_status(kName);
}

graft_status attention_decode(const AttentionDecode& call, graft_stream stream) {
  constexpr const char* kName = "graft_attention_decode";
  if (const graft_status status = check_grid(kName, call.heads)) return status;
  const bool fours = call.head_dim % 4 == 0 && aligned_for_four(call.type, call.k);
  for_head(call.type, call.head_dim, [&](auto element, auto columns) {
    GRAFT_LAUNCH((attention_decode_kernel<decltype(element), columns.value>),
                 static_cast<unsigned>(call.heads), kThreads, stream, call, fours);
  });
  return launch_status(kName);
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
