// One head of one document. Scores live in a tile of a few query rows by one chunk of keys; both
// products of a tile run on the GEMM's register tile, and what lies above the diagonal is skipped
// tile by tile.
//
// Every output element is one chain of fused multiply-adds in the order of its sum, so results do
// not depend on the tile's shape (hence not on the instruction set) or on where a piece begins.
#include <math.h>

#include "kernels/scalar.h"
#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Keys of one chunk. Forward: transposed keys take 512 x 64 floats = 128 KiB of the second-level
// cache. Part of the result's definition, as the running maximum changes per chunk.
constexpr int64_t kForwardKeys = 512;
// Query rows that one task of the forward pass may have: their running maximum and sum.
constexpr int64_t kForwardRows = 240;
// Backward: two tiles of kBackwardRows x kBackwardKeys floats (96 KiB) and two transposed chunks.
constexpr int64_t kBackwardKeys = 256;
constexpr int64_t kBackwardRows = 48;
// A row of scores is followed by zeros up to here, for tiles that end past the diagonal.
constexpr int64_t kPadding = 16;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
int64_t larger_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}
// rows [keys, head_dim] with a stride -> panels of kTileColumns keys, each [head_dim,
// kTileColumns].
void pack_transposed(
    const float* rows, int64_t stride, int64_t keys, int64_t head_dim, float* panels) {
  for (int64_t j = 0; j < keys; j += kTileColumns) {
    const int64_t width = smaller_of(kTileColumns, keys - j);
    transpose(rows + j * stride, stride, width, head_dim, panels + j * head_dim, kTileColumns);
  }
}

// scores [rows, keys] = a [rows, head_dim] times the packed keys.
void score_tile(const float* a,
                int64_t a_row,
                int64_t rows,
                const float* panels,
                int64_t keys,
                int64_t head_dim,
                float* scores,
                int64_t scores_row) {
  for (int64_t j = 0; j < keys; j += kTileColumns) {
    const Tile tile{head_dim,     a,          a_row,     1, panels + j * head_dim,
                    kTileColumns, scores + j, scores_row};
    multiply_tile(rows, smaller_of(kTileColumns, keys - j), tile, TileStart::kZero);
  }
}

// c [rows, head_dim] (+)= a [rows, k] times b [k, head_dim], b in place with its own stride.
void value_tile(const float* a,
                int64_t a_row,
                int64_t a_col,
                int64_t rows,
                int64_t k,
                const float* b,
                int64_t b_row,
                int64_t head_dim,
                float* c,
                int64_t ldc,
                TileStart start) {
  for (int64_t d = 0; d < head_dim; d += kTileColumns) {
    const Tile tile{k, a, a_row, a_col, b + d, b_row, c + d, ldc};
    multiply_tile(rows, smaller_of(kTileColumns, head_dim - d), tile, start);
  }
}

float row_maximum(const float* x, int64_t count) {
  Lanes best = all(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) best = larger(load(x + i), best);
  float result = largest_lane(best);
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// The first `lanes` lanes of value at x, zeros after them up to a whole vector; gives what is
// there.
Lanes store_tail(float* x, Lanes value, int64_t lanes) {
  store(x, all(0.0f));
  store_first(x, value, lanes);
  return load(x);
}

// What a score becomes before the softmax: scaled, then capped.
struct ScoreShape {
  float scale, cap;  // cap 0 for none
};

// scale * x, and tanh(scale * x / cap) when there is a cap.
struct Score {
  Lanes value, tangent;
};
GRAFT_LANES_INLINE Score score_of(Lanes x, const ScoreShape& shape) {
  const Lanes scaled = mul(x, all(shape.scale));
  if (shape.cap == 0.0f) return {scaled, all(0.0f)};
  const Lanes tangent = hyperbolic_tangent(div(scaled, all(shape.cap)));
  return {mul(tangent, all(shape.cap)), tangent};
}

// x = its scores.
void shape_scores(float* x, int64_t count, const ScoreShape& shape) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, score_of(load(x + i), shape).value);
  if (i < count) {
    const Lanes value = score_of(load_first(x + i, count - i), shape).value;
    store_first(x + i, value, count - i);
  }
}

// x = exp(x - shift), zeros after it up to `until`; gives the sum.
float exponentials(float* x, int64_t count, int64_t until, float shift) {
  const Lanes shifts = all(shift);
  Lanes sum = all(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes e = exponential(sub(load(x + i), shifts));
    store(x + i, e);
    sum = add(sum, e);
  }
  if (i < count) {
    const Lanes e = exponential(sub(load_first(x + i, count - i), shifts));
    sum = add(sum, store_tail(x + i, e, count - i));
    i += kLanes;
  }
  for (; i < until; i += kLanes) store(x + i, all(0.0f));
  return sum_lanes(sum);
}

void scale_row(float* x, int64_t count, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, mul(load(x + i), all(factor)));
  if (i < count) {
    store_first(x + i, mul(load_first(x + i, count - i), all(factor)), count - i);
  }
}

float exponential_of(float x) {
  float lane[kLanes];
  store(lane, exponential(all(x)));
  return lane[0];
}

float dot(const float* a, const float* b, int64_t count) {
  Lanes sum = all(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller_of(kLanes, count - i);
    sum = fma(load_first(a + i, lanes), load_first(b + i, lanes), sum);
  }
  return sum_lanes(sum);
}

// Where a row's probabilities and their gradients stand, and what shapes them.
struct RowGradient {
  float *p, *dp;  // scores and their gradient's first factor, over `count` keys
  int64_t count;
  int64_t until;  // zeros follow up to here
  float lse, delta;
};

// p becomes exp(score - lse) and dp becomes p * (dp - delta) * scale, times 1 - tanh^2 under a cap.
template <bool kCapped>
void row_gradient(const RowGradient& row, const ScoreShape& shape) {
  const Lanes shift = all(row.lse), deltas = all(row.delta), scales = all(shape.scale);
  const auto step = [&](Lanes x, Lanes dp) {
    const Score score = score_of(x, {shape.scale, kCapped ? shape.cap : 0.0f});
    const Lanes p = exponential(sub(score.value, shift));
    Lanes gradient = mul(mul(p, sub(dp, deltas)), scales);
    if (kCapped) {
      const Lanes t = score.tangent;
      gradient = mul(gradient, mul(sub(all(1.0f), t), add(all(1.0f), t)));
    }
    return Score{p, gradient};
  };
  int64_t i = 0;
  for (; i + kLanes <= row.count; i += kLanes) {
    const Score result = step(load(row.p + i), load(row.dp + i));
    store(row.p + i, result.value);
    store(row.dp + i, result.tangent);
  }
  if (i < row.count) {
    const int64_t left = row.count - i;
    const Score result = step(load_first(row.p + i, left), load_first(row.dp + i, left));
    store_tail(row.p + i, result.value, left);
    store_tail(row.dp + i, result.tangent, left);
    i += kLanes;
  }
  for (; i < row.until; i += kLanes) {
    store(row.p + i, all(0.0f));
    store(row.dp + i, all(0.0f));
  }
}

void zero(float* x, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_upto(x + i, all(0.0f), n); });
}

// The first key that query `token` sees.
int64_t first_key(const AttentionHead& head, int64_t token) {
  return larger_of(0, token + 1 - head.window);
}

constexpr int64_t kForwardStride = kForwardKeys + kPadding;
constexpr int64_t kBackwardStride = kBackwardKeys + 2 * kPadding;

}  // namespace

int64_t attention_forward_scratch(int64_t head_dim) {
  return kForwardKeys * head_dim + kTileRows * kForwardStride + 2 * kForwardRows;
}

int64_t attention_backward_scratch(int64_t head_dim) {
  return 2 * kBackwardKeys * head_dim + 2 * kBackwardRows * kBackwardStride;
}

void attention_forward(const AttentionHead& head, int64_t q_begin, int64_t q_end, float* scratch) {
  float* const panels = scratch;
  float* const scores = panels + kForwardKeys * head.head_dim;
  float* const maximum = scores + kTileRows * kForwardStride;
  float* const total = maximum + kForwardRows;
  const ScoreShape shape{head.scale, head.softcap};
  // Chunks begin at multiples of kForwardKeys in every document, whatever the window.
  const int64_t first_chunk = first_key(head, q_begin) / kForwardKeys * kForwardKeys;
  for (int64_t key = first_chunk; key < q_end; key += kForwardKeys) {
    const int64_t chunk_end = smaller_of(key + kForwardKeys, q_end);
    pack_transposed(head.k + key * head.k_stride, head.k_stride, chunk_end - key, head.head_dim,
                    panels);
    for (int64_t row = q_begin; row < q_end; row += kTileRows) {
      const int64_t rows = smaller_of(kTileRows, q_end - row);
      const int64_t tile_first = first_key(head, row);  // of the row that looks back farthest
      if (tile_first >= chunk_end || row + rows <= key) continue;
      // Keys [skipped, skipped + keys) of the chunk, from a panel's beginning.
      const int64_t skipped = larger_of(0, tile_first - key) / kTileColumns * kTileColumns;
      const int64_t keys = smaller_of(row + rows, chunk_end) - key - skipped;
      score_tile(head.q + row * head.q_stride, head.q_stride, rows,
                 panels + skipped * head.head_dim, keys, head.head_dim, scores, kForwardStride);
      for (int64_t i = 0; i < rows; ++i) {
        float* const score = scores + i * kForwardStride;
        const int64_t first = larger_of(first_key(head, row + i), key) - key - skipped;
        const int64_t seen = smaller_of(row + i + 1, chunk_end) - key - skipped - first;
        float& top = maximum[row + i - q_begin];
        float& sum = total[row + i - q_begin];
        if (seen <= 0) {  // the chunk begins past this row of the tile, or ends before its window
          zero(score, keys);
          continue;
        }
        zero(score, first);
        shape_scores(score + first, seen, shape);
        const bool starts = first_key(head, row + i) >= key;
        const float largest = row_maximum(score + first, seen);
        const float new_top = starts || largest > top ? largest : top;
        const float chunk_sum = exponentials(score + first, seen, keys - first, new_top);
        if (starts) {
          sum = chunk_sum;
        } else {
          const float correction = exponential_of(top - new_top);
          sum = sum * correction + chunk_sum;
          scale_row(head.out + (row + i) * head.out_stride, head.head_dim, correction);
        }
        top = new_top;
      }
      const int64_t key_row = key + skipped;
      value_tile(scores, kForwardStride, 1, rows, keys, head.v + key_row * head.v_stride,
                 head.v_stride, head.head_dim, head.out + row * head.out_stride, head.out_stride,
                 tile_first >= key ? TileStart::kZero : TileStart::kContinue);
    }
  }
  for (int64_t row = q_begin; row < q_end; ++row) {
    const float sum = total[row - q_begin];
    scale_row(head.out + row * head.out_stride, head.head_dim, 1.0f / sum);
    head.lse[row * head.lse_stride] = maximum[row - q_begin] + logarithm(sum);
  }
}

void attention_backward(const AttentionHeadGradient& gradient, float* scratch) {
  const AttentionHead& head = gradient.forward;
  const int64_t d = head.head_dim;
  float* const k_panels = scratch;
  float* const v_panels = k_panels + kBackwardKeys * d;
  float* const p = v_panels + kBackwardKeys * d;
  float* const ds = p + kBackwardRows * kBackwardStride;
  const ScoreShape shape{head.scale, head.softcap};
  for (int64_t row = 0; row < head.length; ++row) zero(gradient.dq + row * head.q_stride, d);
  for (int64_t key = 0; key < head.length; key += kBackwardKeys) {
    const int64_t chunk_end = smaller_of(key + kBackwardKeys, head.length);
    pack_transposed(head.k + key * head.k_stride, head.k_stride, chunk_end - key, d, k_panels);
    pack_transposed(head.v + key * head.v_stride, head.v_stride, chunk_end - key, d, v_panels);
    // Queries that see some key of the chunk.
    const int64_t queries_end = smaller_of(head.length, chunk_end - 1 + head.window);
    for (int64_t block = key; block < queries_end; block += kBackwardRows) {
      const int64_t block_end = smaller_of(block + kBackwardRows, queries_end);
      for (int64_t row = block; row < block_end; row += kTileRows) {
        const int64_t rows = smaller_of(kTileRows, block_end - row);
        const int64_t tile_first = first_key(head, row);
        const int64_t skipped = larger_of(0, tile_first - key) / kTileColumns * kTileColumns;
        const int64_t keys = smaller_of(row + rows, chunk_end) - key - skipped;
        float* const p_tile = p + (row - block) * kBackwardStride;
        float* const ds_tile = ds + (row - block) * kBackwardStride;
        score_tile(head.q + row * head.q_stride, head.q_stride, rows, k_panels + skipped * d, keys,
                   d, p_tile + skipped, kBackwardStride);
        score_tile(gradient.dout + row * head.out_stride, head.out_stride, rows,
                   v_panels + skipped * d, keys, d, ds_tile + skipped, kBackwardStride);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t token = row + i;
          float* const p_row = p_tile + i * kBackwardStride;
          float* const ds_row = ds_tile + i * kBackwardStride;
          const int64_t first = smaller_of(larger_of(first_key(head, token), key), chunk_end) - key;
          const int64_t seen = smaller_of(token + 1, chunk_end) - key;
          // A tile of keys that begins at or before this row may end past it.
          const int64_t until = smaller_of(seen + kPadding, chunk_end - key + kPadding);
          zero(p_row, first);
          zero(ds_row, first);
          const float delta =
              dot(gradient.dout + token * head.out_stride, head.out + token * head.out_stride, d);
          const RowGradient here{p_row + first,
                                 ds_row + first,
                                 seen - first,
                                 until - first,
                                 head.lse[token * head.lse_stride],
                                 delta};
          if (shape.cap == 0.0f) {
            row_gradient<false>(here, shape);
          } else {
            row_gradient<true>(here, shape);
          }
        }
        const int64_t key_row = key + skipped;
        value_tile(ds_tile + skipped, kBackwardStride, 1, rows, keys,
                   head.k + key_row * head.k_stride, head.k_stride, d,
                   gradient.dq + row * head.q_stride, head.q_stride, TileStart::kContinue);
      }
      const int64_t keys_end = smaller_of(block_end, chunk_end);
      const int64_t unseen = larger_of(0, first_key(head, block) - key) / kTileRows * kTileRows;
      for (int64_t row = key + unseen; row < keys_end; row += kTileRows) {
        const int64_t rows = smaller_of(kTileRows, keys_end - row);
        const int64_t first = larger_of(block, row);  // earlier queries do not see these keys
        const int64_t offset = (first - block) * kBackwardStride + row - key;
        // The block of queries that holds these keys is the first that sees them: it starts the
        // sum.
        const TileStart start = first == row ? TileStart::kZero : TileStart::kContinue;
        value_tile(p + offset, 1, kBackwardStride, rows, block_end - first,
                   gradient.dout + first * head.out_stride, head.out_stride, d,
                   gradient.dv + row * gradient.dv_stride, gradient.dv_stride, start);
        value_tile(ds + offset, 1, kBackwardStride, rows, block_end - first,
                   head.q + first * head.q_stride, head.q_stride, d,
                   gradient.dk + row * gradient.dk_stride, gradient.dk_stride, start);
      }
    }
  }
}

void attention_decode(const AttentionDecode& call, int64_t begin, int64_t end, float* scores) {
  const int64_t stride = call.kv_heads * call.head_dim;
  const int64_t group = call.heads / call.kv_heads;
  const int64_t count = call.positions - call.first;
  for (int64_t head = begin; head < end; ++head) {
    const int64_t offset = call.first * stride + head / group * call.head_dim;
    const float* const q = call.q + head * call.head_dim;
    const float* const k = call.k + offset;
    float* const out = call.out + head * call.head_dim;
    for (int64_t t = 0; t < count; ++t) scores[t] = dot(q, k + t * stride, call.head_dim);
    shape_scores(scores, count, {call.scale, call.softcap});
    const float top = row_maximum(scores, count);
    const float sum = exponentials(scores, count, count, top);
    value_tile(scores, 0, 1, 1, count, call.v + offset, stride, call.head_dim, out, 0,
               TileStart::kZero);
    scale_row(out, call.head_dim, 1.0f / sum);
  }
}

}  // namespace graft::kernels::GRAFT_ISA
