// RMSNorm, rotary embedding, gated units, soft caps and cross entropy on a range of rows.
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

// The largest of x, NaN left out; -inf for none.
float row_maximum(const float* x, int64_t count) {
  Lanes best = all(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) best = larger(load(x + i), best);
  float top = largest_lane(best);
  for (; i < count; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// A sum over a row in the 128 lanes that rmsnorm.h defines: eight vectors side by side.
struct RowSum {
  static constexpr int64_t kVectors = 8;
  Lanes part[kVectors] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f),
                          all(0.0f), all(0.0f), all(0.0f), all(0.0f)};

  // part = body(first element, lanes, part) for each vector of the row.
  template <class Body>
  void run(int64_t count, const Body& body) {
    int64_t i = 0;
    for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) part[v] = body(i + v * kLanes, kLanes, part[v]);
    }
    for (int64_t v = 0; i < count; ++v, i += kLanes) {
      part[v] = body(i, smaller_of(kLanes, count - i), part[v]);
    }
  }
  float total() const {
    const Lanes low = add(add(part[0], part[4]), add(part[2], part[6]));
    const Lanes high = add(add(part[1], part[5]), add(part[3], part[7]));
    return sum_lanes(add(low, high));
  }
};

GRAFT_LANES_INLINE Lanes factor_of(graft_rmsnorm_kind kind, const float* weight, int64_t lanes) {
  const Lanes value = load_upto(weight, lanes);
  return kind == GRAFT_RMSNORM_WEIGHT ? value : add(all(1.0f), value);
}

// An activation and, for the backward pass, its slope.
struct Activation {
  Lanes value, slope;
};

template <Gate kGate>
GRAFT_LANES_INLINE Activation activate(Lanes g) {
  if constexpr (kGate == Gate::kSilu) {
    const Lanes s = sigmoid(g);
    return {mul(g, s), mul(s, fma(g, sub(all(1.0f), s), all(1.0f)))};
  }
  // gelu(g) = g * sigmoid(w), w = 2 sqrt(2 / pi) (g + 0.044715 g^3). Past +-16 the sigmoid is 0 or
  // 1, and cubes that overflow would make a NaN of 0 * inf.
  constexpr float kLinear = 1.5957691216f, kCubic = 0.0713548163f;  // 2 sqrt(2/pi) (1, 0.044715)
  const Lanes bounded = smaller(all(16.0f), larger(all(-16.0f), g));
  const Lanes square = mul(bounded, bounded);
  const Lanes s = sigmoid(mul(bounded, fma(square, all(kCubic), all(kLinear))));
  const Lanes slope = fma(square, all(3.0f * kCubic), all(kLinear));
  const Lanes bend = mul(mul(s, sub(all(1.0f), s)), mul(bounded, slope));
  return {mul(g, s), add(s, bend)};
}

template <Gate kGate>
void gate_forward_of(const GateForward& call, int64_t begin, int64_t end) {
  for_lanes(end - begin, [&](int64_t i, int64_t n) {
    const int64_t at = begin + i;
    const Lanes value = activate<kGate>(load_upto(call.gate + at, n)).value;
    store_upto(call.out + at, mul(value, load_upto(call.up + at, n)), n);
  });
}

template <Gate kGate>
void gate_backward_of(const GateBackward& call, int64_t begin, int64_t end) {
  for_lanes(end - begin, [&](int64_t i, int64_t n) {
    const int64_t at = begin + i;
    const Lanes up = load_upto(call.up + at, n), d = load_upto(call.dout + at, n);
    const Activation a = activate<kGate>(load_upto(call.gate + at, n));
    store_upto(call.dgate + at, mul(mul(d, up), a.slope), n);
    store_upto(call.dup + at, mul(d, a.value), n);
  });
}

}  // namespace

void rmsnorm_forward(const NormForward& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const from = call.x + row * call.dim;
    float* const to = call.out + row * call.dim;
    RowSum sum;
    sum.run(call.dim, [&](int64_t i, int64_t n, Lanes before) {
      const Lanes value = load_upto(from + i, n);
      return fma(value, value, before);
    });
    const float mean = sum.total() / static_cast<float>(call.dim);
    const float inverse = 1.0f / sqrtf(mean + call.eps);
    call.inv_rms[row] = inverse;
    for_lanes(call.dim, [&](int64_t i, int64_t n) {
      const Lanes normal = mul(load_upto(from + i, n), all(inverse));
      store_upto(to + i, mul(normal, factor_of(call.kind, call.weight + i, n)), n);
    });
  }
}

void rmsnorm_backward(const NormBackward& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const g = call.dout + row * call.dim;
    const float* const from = call.x + row * call.dim;
    float* const to = call.dx + row * call.dim;
    const float inverse = call.inv_rms[row];
    RowSum sum;
    sum.run(call.dim, [&](int64_t i, int64_t n, Lanes before) {
      const Lanes weighted = mul(load_upto(g + i, n), factor_of(call.kind, call.weight + i, n));
      return fma(weighted, load_upto(from + i, n), before);
    });
    // mean(g * xhat) * inverse, the factor of xhat = x * inverse, gives the factor of x.
    const float mean = sum.total() * inverse / static_cast<float>(call.dim);
    const float factor = mean * inverse;
    for_lanes(call.dim, [&](int64_t i, int64_t n) {
      const Lanes weighted = mul(load_upto(g + i, n), factor_of(call.kind, call.weight + i, n));
      const Lanes centred = sub(weighted, mul(load_upto(from + i, n), all(factor)));
      store_upto(to + i, fma(centred, all(inverse), load_upto(to + i, n)), n);
    });
  }
}

void rmsnorm_weight_gradient(const NormBackward& call, int64_t rows, int64_t begin, int64_t end) {
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
          const int64_t at = row * call.dim + i + v * kLanes;
          const Lanes normal = mul(load_upto(call.x + at, lanes[v]), all(call.inv_rms[row]));
          sum[v] = fma(load_upto(call.dout + at, lanes[v]), normal, sum[v]);
        }
      }
      for (int64_t v = 0; v < kVectors; ++v) {
        float* const to = call.dweight + i + v * kLanes;
        store_upto(to, add(load_upto(to, lanes[v]), sum[v]), lanes[v]);
      }
    }
  }
}

void rope_apply(const RopeTurn& call, int64_t begin, int64_t end) {
  const int64_t half = call.rotary_dim / 2;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < call.heads; ++head) {
      float* const low = call.x + token * call.row_stride + head * call.head_dim;
      float* const high = low + half;
      for_lanes(half, [&](int64_t i, int64_t n) {
        const Lanes c = load_upto(call.cos + token * half + i, n);
        const Lanes s = mul(load_upto(call.sin + token * half + i, n), all(call.sign));
        const Lanes a = load_upto(low + i, n), b = load_upto(high + i, n);
        store_upto(low + i, sub(mul(a, c), mul(b, s)), n);
        store_upto(high + i, add(mul(b, c), mul(a, s)), n);
      });
    }
  }
}

void gate_forward(const GateForward& call, int64_t begin, int64_t end) {
  if (call.gate_kind == Gate::kSilu) {
    gate_forward_of<Gate::kSilu>(call, begin, end);
  } else {
    gate_forward_of<Gate::kGeluTanh>(call, begin, end);
  }
}

void gate_backward(const GateBackward& call, int64_t begin, int64_t end) {
  if (call.gate_kind == Gate::kSilu) {
    gate_backward_of<Gate::kSilu>(call, begin, end);
  } else {
    gate_backward_of<Gate::kGeluTanh>(call, begin, end);
  }
}

void softcap_forward(float* x, float cap, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const Lanes t = hyperbolic_tangent(div(load_upto(x + i, n), all(cap)));
    store_upto(x + i, mul(t, all(cap)), n);
  });
}

void softcap_backward(const float* y, float cap, int64_t count, float* dx) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const Lanes t = div(load_upto(y + i, n), all(cap));
    const Lanes slope = mul(sub(all(1.0f), t), add(all(1.0f), t));
    store_upto(dx + i, mul(load_upto(dx + i, n), slope), n);
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
