// One head of one document. Scores live in a tile of a few query rows by one chunk of keys; both
// products of a tile run on the GEMM's register tile, and what lies above the diagonal is skipped
// tile by tile.
//
// Every output element is one chain of fused multiply-adds in the order of its sum, so results do
// not depend on the tile's shape (hence not on the instruction set) or on where a piece begins.
#include <math.h>

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
int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
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

// x = exp(scale * x - shift), zeros after it up to `until`; gives the sum.
float exponentials(float* x, int64_t count, int64_t until, float scale, float shift) {
  const Lanes scales = all(scale), shifts = all(shift);
  Lanes sum = all(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes e = exponential(sub(mul(load(x + i), scales), shifts));
    store(x + i, e);
    sum = add(sum, e);
  }
  if (i < count) {
    const Lanes e = exponential(sub(mul(load_first(x + i, count - i), scales), shifts));
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

// p becomes p * (dp - delta) * scale over `count` keys, zeros up to `until`.
void score_gradients(
    const float* p, float* dp, int64_t count, int64_t until, float delta, float scale) {
  const Lanes deltas = all(delta), scales = all(scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes centred = sub(load(dp + i), deltas);
    store(dp + i, mul(mul(load(p + i), centred), scales));
  }
  if (i < count) {
    const Lanes centred = sub(load_first(dp + i, count - i), deltas);
    store_tail(dp + i, mul(mul(load_first(p + i, count - i), centred), scales), count - i);
    i += kLanes;
  }
  for (; i < until; i += kLanes) store(dp + i, all(0.0f));
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
  for (int64_t key = 0; key < q_end; key += kForwardKeys) {
    const int64_t chunk_end = smaller_of(key + kForwardKeys, q_end);
    pack_transposed(head.k + key * head.k_stride, head.k_stride, chunk_end - key, head.head_dim,
                    panels);
    for (int64_t row = q_begin; row < q_end; row += kTileRows) {
      const int64_t rows = smaller_of(kTileRows, q_end - row);
      const int64_t keys = smaller_of(row + rows, chunk_end) - key;
      if (keys <= 0) continue;
      score_tile(head.q + row * head.q_stride, head.q_stride, rows, panels, keys, head.head_dim,
                 scores, kForwardStride);
      for (int64_t i = 0; i < rows; ++i) {
        float* const score = scores + i * kForwardStride;
        const int64_t seen = smaller_of(row + i + 1, chunk_end) - key;
        float& top = maximum[row + i - q_begin];
        float& sum = total[row + i - q_begin];
        if (seen <= 0) {  // the chunk begins past this row of the tile
          for (int64_t j = 0; j < round_up(keys, kLanes); ++j) score[j] = 0.0f;
          continue;
        }
        scale_row(score, seen, head.scale);
        const float largest = row_maximum(score, seen);
        const float new_top = key == 0 || largest > top ? largest : top;
        const float chunk_sum = exponentials(score, seen, keys, 1.0f, new_top);
        if (key == 0) {
          sum = chunk_sum;
        } else {
          const float correction = exponential_of(top - new_top);
          sum = sum * correction + chunk_sum;
          scale_row(head.out + (row + i) * head.out_stride, head.head_dim, correction);
        }
        top = new_top;
      }
      value_tile(scores, kForwardStride, 1, rows, keys, head.v + key * head.v_stride, head.v_stride,
                 head.head_dim, head.out + row * head.out_stride, head.out_stride,
                 key == 0 ? TileStart::kZero : TileStart::kContinue);
    }
  }
  for (int64_t row = q_begin; row < q_end; ++row) {
    const float sum = total[row - q_begin];
    scale_row(head.out + row * head.out_stride, head.head_dim, 1.0f / sum);
    head.lse[row * head.lse_stride] = maximum[row - q_begin] + logf(sum);
  }
}

void attention_backward(const AttentionHeadGradient& gradient, float* scratch) {
  const AttentionHead& head = gradient.forward;
  const int64_t d = head.head_dim;
  float* const k_panels = scratch;
  float* const v_panels = k_panels + kBackwardKeys * d;
  float* const p = v_panels + kBackwardKeys * d;
  float* const ds = p + kBackwardRows * kBackwardStride;
  for (int64_t key = 0; key < head.length; key += kBackwardKeys) {
    const int64_t chunk_end = smaller_of(key + kBackwardKeys, head.length);
    pack_transposed(head.k + key * head.k_stride, head.k_stride, chunk_end - key, d, k_panels);
    pack_transposed(head.v + key * head.v_stride, head.v_stride, chunk_end - key, d, v_panels);
    for (int64_t block = key; block < head.length; block += kBackwardRows) {
      const int64_t block_end = smaller_of(block + kBackwardRows, head.length);
      for (int64_t row = block; row < block_end; row += kTileRows) {
        const int64_t rows = smaller_of(kTileRows, block_end - row);
        const int64_t keys = smaller_of(row + rows, chunk_end) - key;
        float* const p_tile = p + (row - block) * kBackwardStride;
        float* const ds_tile = ds + (row - block) * kBackwardStride;
        score_tile(head.q + row * head.q_stride, head.q_stride, rows, k_panels, keys, d, p_tile,
                   kBackwardStride);
        score_tile(gradient.dout + row * head.out_stride, head.out_stride, rows, v_panels, keys, d,
                   ds_tile, kBackwardStride);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t token = row + i;
          const int64_t seen = smaller_of(token + 1, chunk_end) - key;
          // A tile of keys that begins at or before this row may end past it.
          const int64_t until = smaller_of(seen + kPadding, chunk_end - key + kPadding);
          const float delta =
              dot(gradient.dout + token * head.out_stride, head.out + token * head.out_stride, d);
          exponentials(p_tile + i * kBackwardStride, seen, until, head.scale,
                       head.lse[token * head.lse_stride]);
          score_gradients(p_tile + i * kBackwardStride, ds_tile + i * kBackwardStride, seen, until,
                          delta, head.scale);
        }
        value_tile(ds_tile, kBackwardStride, 1, rows, keys, head.k + key * head.k_stride,
                   head.k_stride, d, gradient.dq + row * head.q_stride, head.q_stride,
                   key == 0 ? TileStart::kZero : TileStart::kContinue);
      }
      const int64_t keys_end = smaller_of(block_end, chunk_end);
      for (int64_t row = key; row < keys_end; row += kTileRows) {
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

void attention_decode(const float* q,
                      const float* k,
                      const float* v,
                      int64_t stride,
                      int64_t positions,
                      int64_t head_dim,
                      float scale,
                      float* scores,
                      float* out) {
  for (int64_t t = 0; t < positions; ++t) scores[t] = scale * dot(q, k + t * stride, head_dim);
  const float top = row_maximum(scores, positions);
  const float sum = exponentials(scores, positions, positions, 1.0f, top);
  value_tile(scores, 0, 1, 1, positions, v, stride, head_dim, out, 0, TileStart::kZero);
  scale_row(out, head_dim, 1.0f / sum);
}

}  // namespace graft::kernels::GRAFT_ISA
