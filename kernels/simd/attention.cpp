// One head of one document. Scores live in a tile of a few query rows by one chunk of keys; both
// products of a tile run on the GEMM's register tile, and what lies above the diagonal is skipped
// tile by tile.
//
// Every output element is one chain of fused multiply-adds in the order of its sum, so results do
// not depend on the tile's shape (hence not on the instruction set) or on where a piece begins.
//
// bfloat16 heads are widened piece by piece into scratch and run through the same float32 code.
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
constexpr int64_t kForwardRows = 264;
// Backward: two blocks of kBlockRows x kBackwardKeys floats (96 KiB) and two transposed chunks.
constexpr int64_t kBackwardKeys = 256;
// Queries whose scores are there at once: a panel of 16 keys in the first-level cache meets them
// all.
constexpr int64_t kBlockRows = 48;
// A row of scores is followed by zeros up to here, for tiles that end past the diagonal.
constexpr int64_t kPadding = 16;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
int64_t larger_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Rows of an array as float32.
struct Rows {
  const float* values;
  int64_t stride;
};

// Rows are fetched into the caches before their turn: the processor does not foresee such strides.
constexpr int64_t kRowsAhead = 16;
template <class Element>
void fetch_ahead(const Element* from, int64_t stride, int64_t row, int64_t rows) {
  if (row + kRowsAhead < rows) __builtin_prefetch(from + (row + kRowsAhead) * stride);
}

// One behind the other in `room`: rows of many heads lie so far apart that they would share few
// sets of the first-level cache.
template <class Element>
Rows gathered(const Element* from, int64_t stride, int64_t rows, int64_t width, float* room) {
  for (int64_t row = 0; row < rows; ++row) {
    for_lanes(width, [&](int64_t i, int64_t n) {
      fetch_ahead(from + i, stride, row, rows);
      store_upto(room + row * width + i, load_upto(from + row * stride + i, n), n);
    });
  }
  return {room, width};
}

// Where they lie, or widened into `room`.
Rows as_floats(const float* from, int64_t stride, int64_t, int64_t, float*) {
  return {from, stride};
}
Rows as_floats(const Bf16* from, int64_t stride, int64_t rows, int64_t width, float* room) {
  return gathered(from, stride, rows, width, room);
}

// rows [keys, head_dim] with a stride -> panels of kTileColumns keys, each [head_dim,
// kTileColumns].
void pack_transposed(const Rows& rows, int64_t keys, int64_t head_dim, float* panels) {
  for (int64_t j = 0; j < keys; j += kTileColumns) {
    const int64_t width = smaller_of(kTileColumns, keys - j);
    for (int64_t row = j; row < j + width; ++row) {
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        fetch_ahead(rows.values + d, rows.stride, row, keys);
      }
    }
    transpose(rows.values + j * rows.stride, rows.stride, width, head_dim, panels + j * head_dim,
              kTileColumns);
  }
}

// The keys of a chunk that some row of a tile of queries sees: [begin, end), begin at a panel's
// beginning; and how their values meet what the tile's rows have.
struct Span {
  int64_t begin, end;
  TileStart start;
};

// Up to kBlockRows queries in tiles of kTileRows.
struct TileSpans {
  int64_t rows;
  Span span[kBlockRows / kTileRows];
};

// scores = a [rows, head_dim] times the packed keys, for the keys that each tile sees. Tile by tile
// inside a panel, which stays in the first-level cache.
void score_tiles(const float* a,
                 int64_t a_row,
                 const TileSpans& tiles,
                 const float* panels,
                 int64_t head_dim,
                 float* scores,
                 int64_t scores_row) {
  int64_t end = 0;
  for (int64_t t = 0; t * kTileRows < tiles.rows; ++t) end = larger_of(end, tiles.span[t].end);
  for (int64_t j = 0; j < end; j += kTileColumns) {
    for (int64_t t = 0; t * kTileRows < tiles.rows; ++t) {
      const Span& span = tiles.span[t];
      if (j < span.begin || j >= span.end) continue;
      const int64_t row = t * kTileRows;
      const Tile tile{head_dim,
                      a + row * a_row,
                      a_row,
                      1,
                      panels + j * head_dim,
                      kTileColumns,
                      scores + row * scores_row + j,
                      scores_row};
      multiply_tile(smaller_of(kTileRows, tiles.rows - row), smaller_of(kTileColumns, span.end - j),
                    tile, TileStart::kZero);
    }
  }
}

// An array of head_dim columns in panels of kTileColumns; kTileColumns = panel where it lies as
// rows.
struct Columns {
  const float* values;
  int64_t row, panel;  // floats from one row, and from one panel, to the next
  Columns from(int64_t first) const { return {values + first * row, row, panel}; }
};

int64_t padded(int64_t head_dim) {
  return (head_dim + kTileColumns - 1) / kTileColumns * kTileColumns;
}

// rows [rows, head_dim] with a stride -> panels [rows, kTileColumns], one behind the other as in
// gathered.
template <class Element>
Columns pack_columns(
    const Element* from, int64_t stride, int64_t rows, int64_t head_dim, float* panels) {
  for (int64_t d = 0; d < head_dim; d += kTileColumns) {
    const int64_t width = smaller_of(kTileColumns, head_dim - d);
    for (int64_t row = 0; row < rows; ++row) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        fetch_ahead(from + d + i, stride, row, rows);
        store_upto(panels + d * rows + row * kTileColumns + i,
                   load_upto(from + row * stride + d + i, n), n);
      });
    }
  }
  return {panels, kTileColumns, rows * kTileColumns};
}

// c [rows, head_dim] (+)= scores [rows, keys] times b [keys, head_dim], over the keys that each
// tile sees; as score_tiles.
void value_tiles(const float* scores,
                 int64_t scores_row,
                 const TileSpans& tiles,
                 const Columns& b,
                 int64_t head_dim,
                 float* c,
                 int64_t ldc) {
  const float* panel = b.values;
  for (int64_t d = 0; d < head_dim; d += kTileColumns, panel += b.panel) {
    for (int64_t t = 0; t * kTileRows < tiles.rows; ++t) {
      const Span& span = tiles.span[t];
      if (span.begin >= span.end) continue;
      const int64_t row = t * kTileRows;
      const Tile tile{span.end - span.begin,
                      scores + row * scores_row + span.begin,
                      scores_row,
                      1,
                      panel + span.begin * b.row,
                      b.row,
                      c + row * ldc + d,
                      ldc};
      multiply_tile(smaller_of(kTileRows, tiles.rows - row), smaller_of(kTileColumns, head_dim - d),
                    tile, span.start);
    }
  }
}

// c [rows, head_dim] (+)= a [rows, k] times b [k, head_dim].
void value_tile(const float* a,
                int64_t a_row,
                int64_t a_col,
                int64_t rows,
                int64_t k,
                const Columns& b,
                int64_t head_dim,
                float* c,
                int64_t ldc,
                TileStart start) {
  const float* panel = b.values;
  for (int64_t d = 0; d < head_dim; d += kTileColumns, panel += b.panel) {
    const Tile tile{k, a, a_row, a_col, panel, b.row, c + d, ldc};
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

template <class Element>
float dot(const Element* a, const Element* b, int64_t count) {
  Lanes sum = all(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller_of(kLanes, count - i);
    sum = fma(load_upto(a + i, lanes), load_upto(b + i, lanes), sum);
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

// Scratch in floats; the widened rows are there for bfloat16 only.
struct ForwardScratch {
  int64_t panels, values, scores, rows, keys, queries, out, total;
  ForwardScratch(int64_t head_dim, graft_float_type type) {
    const bool widens = type == GRAFT_BF16;
    panels = 0;
    values = panels + kForwardKeys * head_dim;
    scores = values + kForwardKeys * padded(head_dim);
    rows = scores + kBlockRows * kForwardStride;
    keys = rows + 2 * kForwardRows;
    queries = keys + (widens ? kForwardKeys * head_dim : 0);
    out = queries + kForwardRows * head_dim;
    total = out + (widens ? kForwardRows * head_dim : 0);
  }
};

struct BackwardScratch {
  int64_t k_panels, v_panels, k_columns, q_columns, dout_columns, p, ds, keys, queries, dout, total;
  BackwardScratch(int64_t head_dim, graft_float_type type) {
    const bool widens = type == GRAFT_BF16;
    k_panels = 0;
    v_panels = k_panels + kBackwardKeys * head_dim;
    k_columns = v_panels + kBackwardKeys * head_dim;
    q_columns = k_columns + kBackwardKeys * padded(head_dim);
    dout_columns = q_columns + kBlockRows * padded(head_dim);
    p = dout_columns + kBlockRows * padded(head_dim);
    ds = p + kBlockRows * kBackwardStride;
    keys = ds + kBlockRows * kBackwardStride;
    queries = keys + (widens ? kBackwardKeys * head_dim : 0);
    dout = queries + kBlockRows * head_dim;
    total = dout + kBlockRows * head_dim;
  }
};

template <class Element>
void attention_forward_of(const AttentionHead& head,
                          int64_t q_begin,
                          int64_t q_end,
                          float* scratch) {
  const int64_t d = head.head_dim;
  const ForwardScratch place(d, head.type);
  float* const panels = scratch + place.panels;
  float* const scores = scratch + place.scores;
  float* const maximum = scratch + place.rows;
  float* const total = maximum + kForwardRows;
  const ScoreShape shape{head.scale, head.softcap};
  const Element* const k = static_cast<const Element*>(head.k);
  const Element* const v = static_cast<const Element*>(head.v);
  // Row i of the piece is token q_begin + i.
  const Rows q = gathered(static_cast<const Element*>(head.q) + q_begin * head.q_stride,
                          head.q_stride, q_end - q_begin, d, scratch + place.queries);
  Element* const result = static_cast<Element*>(head.out) + q_begin * head.out_stride;
  float* out = scratch + place.out;
  int64_t out_stride = d;
  if constexpr (sizeof(Element) == sizeof(float)) {
    out = result;
    out_stride = head.out_stride;
  }
  // Chunks begin at multiples of kForwardKeys in every document, whatever the window.
  const int64_t first_chunk = first_key(head, q_begin) / kForwardKeys * kForwardKeys;
  for (int64_t key = first_chunk; key < q_end; key += kForwardKeys) {
    const int64_t chunk_end = smaller_of(key + kForwardKeys, q_end);
    pack_transposed(
        as_floats(k + key * head.k_stride, head.k_stride, chunk_end - key, d, scratch + place.keys),
        chunk_end - key, d, panels);
    const Columns values = pack_columns(v + key * head.v_stride, head.v_stride, chunk_end - key, d,
                                        scratch + place.values);
    for (int64_t block = q_begin; block < q_end; block += kBlockRows) {
      TileSpans tiles{smaller_of(kBlockRows, q_end - block), {}};
      const int64_t block_end = block + tiles.rows;
      for (int64_t row = block; row < block_end; row += kTileRows) {
        const int64_t row_end = smaller_of(row + kTileRows, block_end);
        const int64_t first = first_key(head, row);  // of the row that looks back farthest
        if (first >= chunk_end || row_end <= key) continue;
        tiles.span[(row - block) / kTileRows] = {
            larger_of(0, first - key) / kTileColumns * kTileColumns,
            smaller_of(row_end, chunk_end) - key,
            first >= key ? TileStart::kZero : TileStart::kContinue};
      }
      score_tiles(q.values + (block - q_begin) * q.stride, q.stride, tiles, panels, d, scores,
                  kForwardStride);
      for (int64_t token = block; token < block_end; ++token) {
        const Span& span = tiles.span[(token - block) / kTileRows];
        const int64_t keys = span.end - span.begin;
        if (keys <= 0) continue;
        float* const score = scores + (token - block) * kForwardStride + span.begin;
        const int64_t first = larger_of(first_key(head, token) - key, 0) - span.begin;
        const int64_t seen = smaller_of(token + 1, chunk_end) - key - span.begin - first;
        float& top = maximum[token - q_begin];
        float& sum = total[token - q_begin];
        if (seen <= 0) {  // the chunk begins past this row of the tile, or ends before its window
          zero(score, keys);
          continue;
        }
        zero(score, first);
        shape_scores(score + first, seen, shape);
        const bool starts = first_key(head, token) >= key;
        const float largest = row_maximum(score + first, seen);
        const float new_top = starts || largest > top ? largest : top;
        const float chunk_sum = exponentials(score + first, seen, keys - first, new_top);
        if (starts) {
          sum = chunk_sum;
        } else {
          const float correction = exponential_of(top - new_top);
          sum = sum * correction + chunk_sum;
          scale_row(out + (token - q_begin) * out_stride, d, correction);
        }
        top = new_top;
      }
      value_tiles(scores, kForwardStride, tiles, values, d, out + (block - q_begin) * out_stride,
                  out_stride);
    }
  }
  for (int64_t row = 0; row < q_end - q_begin; ++row) {
    const Lanes inverse = all(1.0f / total[row]);
    for_lanes(d, [&](int64_t i, int64_t n) {
      store_upto(result + row * head.out_stride + i,
                 mul(load_upto(out + row * out_stride + i, n), inverse), n);
    });
    head.lse[(q_begin + row) * head.lse_stride] = maximum[row] + logarithm(total[row]);
  }
}

template <class Element>
void attention_backward_of(const AttentionHeadGradient& gradient, float* scratch) {
  const AttentionHead& head = gradient.forward;
  const int64_t d = head.head_dim;
  const BackwardScratch place(d, head.type);
  float* const k_panels = scratch + place.k_panels;
  float* const v_panels = scratch + place.v_panels;
  float* const p = scratch + place.p;
  float* const ds = scratch + place.ds;
  const ScoreShape shape{head.scale, head.softcap};
  const Element* const k = static_cast<const Element*>(head.k);
  const Element* const v = static_cast<const Element*>(head.v);
  const Element* const out = static_cast<const Element*>(head.out);
  const Element* const dout = static_cast<const Element*>(gradient.dout);
  for (int64_t row = 0; row < head.length; ++row) zero(gradient.dq + row * gradient.dq_stride, d);
  for (int64_t key = 0; key < head.length; key += kBackwardKeys) {
    const int64_t chunk_end = smaller_of(key + kBackwardKeys, head.length);
    const auto widened_chunk = [&](const Element* from, int64_t stride) {
      return as_floats(from + key * stride, stride, chunk_end - key, d, scratch + place.keys);
    };
    pack_transposed(widened_chunk(v, head.v_stride), chunk_end - key, d, v_panels);
    pack_transposed(widened_chunk(k, head.k_stride), chunk_end - key, d, k_panels);
    const Columns keys_of_chunk = pack_columns(k + key * head.k_stride, head.k_stride,
                                               chunk_end - key, d, scratch + place.k_columns);
    // Queries that see some key of the chunk.
    const int64_t queries_end = smaller_of(head.length, chunk_end - 1 + head.window);
    for (int64_t block = key; block < queries_end; block += kBlockRows) {
      const int64_t block_end = smaller_of(block + kBlockRows, queries_end);
      const Rows queries = gathered(static_cast<const Element*>(head.q) + block * head.q_stride,
                                    head.q_stride, block_end - block, d, scratch + place.queries);
      const Rows gradients = gathered(dout + block * head.out_stride, head.out_stride,
                                      block_end - block, d, scratch + place.dout);
      const Columns query_columns = pack_columns(queries.values, queries.stride, block_end - block,
                                                 d, scratch + place.q_columns);
      const Columns gradient_columns = pack_columns(
          gradients.values, gradients.stride, block_end - block, d, scratch + place.dout_columns);
      // Before anything else of the block: what is far away is then fetched for many rows at once.
      float delta[kBlockRows];
      for (int64_t token = block; token < block_end; ++token) {
        delta[token - block] =
            dot(dout + token * head.out_stride, out + token * head.out_stride, d);
      }
      TileSpans tiles{block_end - block, {}};
      for (int64_t row = block; row < block_end; row += kTileRows) {
        const int64_t before = larger_of(0, first_key(head, row) - key);
        tiles.span[(row - block) / kTileRows] = {
            before / kTileColumns * kTileColumns,
            smaller_of(smaller_of(row + kTileRows, block_end), chunk_end) - key,
            TileStart::kContinue};
      }
      score_tiles(queries.values, queries.stride, tiles, k_panels, d, p, kBackwardStride);
      score_tiles(gradients.values, gradients.stride, tiles, v_panels, d, ds, kBackwardStride);
      for (int64_t token = block; token < block_end; ++token) {
        float* const p_row = p + (token - block) * kBackwardStride;
        float* const ds_row = ds + (token - block) * kBackwardStride;
        const int64_t first = smaller_of(larger_of(first_key(head, token), key), chunk_end) - key;
        const int64_t seen = smaller_of(token + 1, chunk_end) - key;
        // A tile of keys that begins at or before this row may end past it.
        const int64_t until = smaller_of(seen + kPadding, chunk_end - key + kPadding);
        zero(p_row, first);
        zero(ds_row, first);
        const RowGradient here{p_row + first,
                               ds_row + first,
                               seen - first,
                               until - first,
                               head.lse[token * head.lse_stride],
                               delta[token - block]};
        if (shape.cap == 0.0f) {
          row_gradient<false>(here, shape);
        } else {
          row_gradient<true>(here, shape);
        }
      }
      value_tiles(ds, kBackwardStride, tiles, keys_of_chunk, d,
                  gradient.dq + block * gradient.dq_stride, gradient.dq_stride);
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
                   gradient_columns.from(first - block), d, gradient.dv + row * gradient.dv_stride,
                   gradient.dv_stride, start);
        value_tile(ds + offset, 1, kBackwardStride, rows, block_end - first,
                   query_columns.from(first - block), d, gradient.dk + row * gradient.dk_stride,
                   gradient.dk_stride, start);
      }
    }
  }
}

template <class Element>
void attention_decode_of(const AttentionDecode& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t d = call.head_dim, stride = call.kv_heads * d;
  const int64_t group = call.heads / call.kv_heads;
  const int64_t count = call.positions - call.first;
  float* const scores = scratch;
  float* const out = scores + call.positions + 2 * kLanes;
  float* const room = out + d;
  for (int64_t head = begin; head < end; ++head) {
    const int64_t offset = call.first * stride + head / group * d;
    const Element* const q = static_cast<const Element*>(call.q) + head * d;
    const Element* const k = static_cast<const Element*>(call.k) + offset;
    const Element* const v = static_cast<const Element*>(call.v) + offset;
    for (int64_t t = 0; t < count; ++t) scores[t] = dot(q, k + t * stride, d);
    shape_scores(scores, count, {call.scale, call.softcap});
    const float top = row_maximum(scores, count);
    const float sum = exponentials(scores, count, count, top);
    for (int64_t t = 0; t < count; t += kForwardKeys) {
      const int64_t keys = smaller_of(kForwardKeys, count - t);
      const Rows values = as_floats(v + t * stride, stride, keys, d, room);
      value_tile(scores + t, 0, 1, 1, keys, {values.values, values.stride, kTileColumns}, d, out, 0,
                 t == 0 ? TileStart::kZero : TileStart::kContinue);
    }
    const Lanes inverse = all(1.0f / sum);
    Element* const to = static_cast<Element*>(call.out) + head * d;
    for_lanes(d, [&](int64_t i, int64_t n) {
      store_upto(to + i, mul(load_upto(out + i, n), inverse), n);
    });
  }
}

}  // namespace

int64_t attention_forward_scratch(int64_t head_dim, graft_float_type type) {
  return ForwardScratch(head_dim, type).total;
}

int64_t attention_backward_scratch(int64_t head_dim, graft_float_type type) {
  return BackwardScratch(head_dim, type).total;
}

int64_t attention_decode_scratch(const AttentionDecode& call) {
  const int64_t room = call.type == GRAFT_BF16 ? kForwardKeys * call.head_dim : 0;
  return call.positions + 2 * kLanes + call.head_dim + room;
}

void attention_forward(const AttentionHead& head, int64_t q_begin, int64_t q_end, float* scratch) {
  for_element(head.type,
              [&](auto e) { attention_forward_of<decltype(e)>(head, q_begin, q_end, scratch); });
}

void attention_backward(const AttentionHeadGradient& gradient, float* scratch) {
  for_element(gradient.forward.type,
              [&](auto e) { attention_backward_of<decltype(e)>(gradient, scratch); });
}

void attention_decode(const AttentionDecode& call, int64_t begin, int64_t end, float* scratch) {
  for_element(call.type,
              [&](auto e) { attention_decode_of<decltype(e)>(call, begin, end, scratch); });
}

}  // namespace graft::kernels::GRAFT_ISA
