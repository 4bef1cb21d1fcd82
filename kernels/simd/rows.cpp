// RMSNorm, rotary embedding, SwiGLU and cross entropy on a range of rows.
#include <math.h>

#include "kernels/simd/functions.h"
#include "kernels/simd/vector.h"

namespace graft::kernels::GRAFT_ISA {
namespace {

// Rows of one partial sum of a gradient over rows (rmsnorm.h documents it).
constexpr int64_t kRowTile = 64;
// Logits of one partial sum of exponentials (cross_entropy.h documents it).
constexpr int64_t kSumTile = 512;

int64_t smaller_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// 1 / (1 + exp(-x)).
GRAFT_LANES_INLINE Lanes sigmoid(Lanes x) {
  return div(all(1.0f), add(all(1.0f), exponential(sub(all(0.0f), x))));
}

// The largest of x, NaN left out; -inf for none.
float row_maximum(const float* x, int64_t count) {
  Lanes best = all(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) best = larger(load(x + i), best);
  float top = largest_lane(best);
  for (; i < count; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

}  // namespace

void rmsnorm_forward(const float* x,
                     const float* weight,
                     float eps,
                     int64_t rows,
                     int64_t dim,
                     float* out,
                     float* inv_rms) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* const from = x + row * dim;
    float* const to = out + row * dim;
    Lanes sum = all(0.0f);
    for_lanes(dim, [&](int64_t i, int64_t n) {
      const Lanes value = load_upto(from + i, n);
      sum = fma(value, value, sum);
    });
    const float mean = sum_lanes(sum) / static_cast<float>(dim);
    const float inverse = 1.0f / sqrtf(mean + eps);
    inv_rms[row] = inverse;
    for_lanes(dim, [&](int64_t i, int64_t n) {
      const Lanes normal = mul(load_upto(from + i, n), all(inverse));
      store_upto(to + i, mul(normal, load_upto(weight + i, n)), n);
    });
  }
}

void rmsnorm_backward(const float* dout,
                      const float* x,
                      const float* weight,
                      const float* inv_rms,
                      int64_t rows,
                      int64_t dim,
                      float* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* const g = dout + row * dim;
    const float* const from = x + row * dim;
    float* const to = dx + row * dim;
    const float inverse = inv_rms[row];
    Lanes sum = all(0.0f);
    for_lanes(dim, [&](int64_t i, int64_t n) {
      const Lanes weighted = mul(load_upto(g + i, n), load_upto(weight + i, n));
      sum = fma(weighted, load_upto(from + i, n), sum);
    });
    // mean(g * xhat) * inverse, the factor of xhat = x * inverse, gives the factor of x.
    const float mean = sum_lanes(sum) * inverse / static_cast<float>(dim);
    const float factor = mean * inverse;
    for_lanes(dim, [&](int64_t i, int64_t n) {
      const Lanes weighted = mul(load_upto(g + i, n), load_upto(weight + i, n));
      const Lanes centred = sub(weighted, mul(load_upto(from + i, n), all(factor)));
      store_upto(to + i, fma(centred, all(inverse), load_upto(to + i, n)), n);
    });
  }
}

void rmsnorm_weight_gradient(const float* dout,
                             const float* x,
                             const float* inv_rms,
                             int64_t rows,
                             int64_t dim,
                             int64_t begin,
                             int64_t end,
                             float* dweight) {
  // Four vectors of a row at a time: whole cache lines of the rows, and independent sums.
  constexpr int64_t kVectors = 4;
  for (int64_t tile = 0; tile < rows; tile += kRowTile) {
    const int64_t tile_end = smaller_of(tile + kRowTile, rows);
    for (int64_t i = begin; i < end; i += kVectors * kLanes) {
      int64_t lanes[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t left = end - i - v * kLanes;
        lanes[v] = left < 0 ? 0 : smaller_of(kLanes, left);
      }
      Lanes sum[kVectors] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
      for (int64_t row = tile; row < tile_end; ++row) {
        for (int64_t v = 0; v < kVectors; ++v) {
          const int64_t at = row * dim + i + v * kLanes;
          const Lanes normal = mul(load_upto(x + at, lanes[v]), all(inv_rms[row]));
          sum[v] = fma(load_upto(dout + at, lanes[v]), normal, sum[v]);
        }
      }
      for (int64_t v = 0; v < kVectors; ++v) {
        float* const to = dweight + i + v * kLanes;
        store_upto(to, add(load_upto(to, lanes[v]), sum[v]), lanes[v]);
      }
    }
  }
}

void rope_apply(float* x,
                int64_t tokens,
                int64_t heads,
                int64_t head_dim,
                int64_t row_stride,
                const float* cos,
                const float* sin,
                float sign) {
  const int64_t half = head_dim / 2;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t head = 0; head < heads; ++head) {
      float* const low = x + token * row_stride + head * head_dim;
      float* const high = low + half;
      for_lanes(half, [&](int64_t i, int64_t n) {
        const Lanes c = load_upto(cos + token * half + i, n);
        const Lanes s = mul(load_upto(sin + token * half + i, n), all(sign));
        const Lanes a = load_upto(low + i, n), b = load_upto(high + i, n);
        store_upto(low + i, sub(mul(a, c), mul(b, s)), n);
        store_upto(high + i, add(mul(b, c), mul(a, s)), n);
      });
    }
  }
}

void swiglu_forward(const float* gate, const float* up, int64_t count, float* out) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const Lanes g = load_upto(gate + i, n);
    store_upto(out + i, mul(mul(g, sigmoid(g)), load_upto(up + i, n)), n);
  });
}

void swiglu_backward(const float* dout,
                     const float* gate,
                     const float* up,
                     int64_t count,
                     float* dgate,
                     float* dup) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const Lanes g = load_upto(gate + i, n), u = load_upto(up + i, n), d = load_upto(dout + i, n);
    const Lanes s = sigmoid(g);
    const Lanes slope = mul(s, fma(g, sub(all(1.0f), s), all(1.0f)));
    store_upto(dgate + i, mul(mul(d, u), slope), n);
    store_upto(dup + i, mul(d, mul(g, s)), n);
  });
}

void cross_entropy_row(float* logits,
                       int32_t label,
                       int64_t vocab,
                       const float* gradient_scale,
                       float* loss,
                       uint8_t* correct) {
  const float top = row_maximum(logits, vocab);
  if (correct != nullptr) {
    // The first of the largest: nothing before the label may be as large.
    *correct = logits[label] == top && !(row_maximum(logits, label) == top);
  }
  const float label_logit = logits[label];
  double total = 0.0;
  for (int64_t tile = 0; tile < vocab; tile += kSumTile) {
    const int64_t count = smaller_of(kSumTile, vocab - tile);
    float* const x = logits + tile;
    Lanes sum = all(0.0f);
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      const Lanes e = exponential(sub(load(x + j), all(top)));
      sum = add(sum, e);
      if (gradient_scale != nullptr) store(x + j, e);
    }
    if (j < count) {
      // Lanes past the end are -inf: their exponential is exactly 0.
      float last[kLanes];
      store(last, all(-INFINITY));
      store_first(last, load_first(x + j, count - j), count - j);
      const Lanes e = exponential(sub(load(last), all(top)));
      sum = add(sum, e);
      if (gradient_scale != nullptr) store_first(x + j, e, count - j);
    }
    total += static_cast<double>(sum_lanes(sum));
  }
  *loss = static_cast<float>(log(total) + (static_cast<double>(top) - label_logit));
  if (gradient_scale == nullptr) return;
  const float factor = static_cast<float>(static_cast<double>(*gradient_scale) / total);
  for_lanes(vocab, [&](int64_t j, int64_t n) {
    store_upto(logits + j, mul(load_upto(logits + j, n), all(factor)), n);
  });
  logits[label] -= *gradient_scale;
}

}  // namespace graft::kernels::GRAFT_ISA
