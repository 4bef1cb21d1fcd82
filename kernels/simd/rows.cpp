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
  return kind == GRAFT_RMSNORM_ONE_PLUS_WEIGHT ? add(all(1.0f), value) : value;
}

// An activation and, for the backward pass, its slope.
struct Activation {
  Lanes value, slope;
};

template <graft_gate kGate>
GRAFT_LANES_INLINE Activation activate(Lanes g) {
  if constexpr (kGate == GRAFT_SILU) {
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

template <graft_gate kGate, class Element>
void gate_forward_row(const GateForward& call, int64_t row, int64_t begin, int64_t end) {
  const int64_t in = row * call.gate_stride, out = row * call.out_stride;
  const Element* const gate = static_cast<const Element*>(call.gate) + in;
  const Element* const up = static_cast<const Element*>(call.up) + in;
  Element* const to = static_cast<Element*>(call.out) + out;
  for_lanes(end - begin, [&](int64_t i, int64_t n) {
    const int64_t at = begin + i;
    const Lanes value = activate<kGate>(load_upto(gate + at, n)).value;
    store_upto(to + at, mul(value, load_upto(up + at, n)), n);
  });
}

template <graft_gate kGate, class Element>
void gate_backward_row(const GateBackward& call, int64_t row, int64_t begin, int64_t end) {
  const int64_t in = row * call.gate_stride;
  const Element* const gate = static_cast<const Element*>(call.gate) + in;
  const Element* const up = static_cast<const Element*>(call.up) + in;
  const Element* const dout = static_cast<const Element*>(call.dout) + row * call.dout_stride;
  Element* const dgate = static_cast<Element*>(call.dgate) + in;
  Element* const dup = static_cast<Element*>(call.dup) + in;
  for_lanes(end - begin, [&](int64_t i, int64_t n) {
    const int64_t at = begin + i;
    const Lanes u = load_upto(up + at, n), d = load_upto(dout + at, n);
    const Activation a = activate<kGate>(load_upto(gate + at, n));
    store_upto(dgate + at, mul(mul(d, u), a.slope), n);
    store_upto(dup + at, mul(d, a.value), n);
  });
}

// row(index, first column, end) for the pieces of rows that elements [begin, end) of a [rows, dim]
// array are.
template <class Row>
void for_row_pieces(int64_t dim, int64_t begin, int64_t end, const Row& row) {
  for (int64_t i = begin; i < end;) {
    const int64_t index = i / dim, column = i % dim;
    const int64_t stop = smaller_of(dim, column + end - i);
    row(index, column, stop);
    i += stop - column;
  }
}

template <class Element, class Out>
void rmsnorm_forward_of(const NormForward& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Element* const from = static_cast<const Element*>(call.x) + row * call.dim;
    Out* const to = static_cast<Out*>(call.out) + row * call.out_stride;
    if (call.added != nullptr) {
      const Element* const added = static_cast<const Element*>(call.added) + row * call.dim;
      Element* const sums = const_cast<Element*>(from);
      for_lanes(call.dim, [&](int64_t i, int64_t n) {
        store_upto(sums + i, add(load_upto(from + i, n), load_upto(added + i, n)), n);
      });
    }
    RowSum sum;
    sum.run(call.dim, [&](int64_t i, int64_t n, Lanes before) {
      const Lanes value = load_upto(from + i, n);
      return fma(value, value, before);
    });
    const float mean = sum.total() / static_cast<float>(call.dim);
    const float inverse = 1.0f / sqrtf(mean + call.eps);
    call.inv_rms[row] = inverse;
    const bool rounds_twice = call.kind == GRAFT_RMSNORM_WEIGHT;
    for_lanes(call.dim, [&](int64_t i, int64_t n) {
      Lanes normal = mul(load_upto(from + i, n), all(inverse));
      if (rounds_twice) normal = rounded_to<Element>(normal);
      store_upto(to + i, mul(normal, factor_of(call.kind, call.weight + i, n)), n);
    });
  }
}

template <class Element>
void rmsnorm_backward_of(const NormBackward& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Element* const g = static_cast<const Element*>(call.dout) + row * call.dout_stride;
    const Element* const from = static_cast<const Element*>(call.x) + row * call.dim;
    Element* const to = static_cast<Element*>(call.dx) + row * call.dim;
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

template <class Element>
void rmsnorm_weight_gradient_of(const NormBackward& call,
                                int64_t rows,
                                int64_t begin,
                                int64_t end) {
  // Four vectors of a row at a time: whole cache lines of the rows, and independent sums.
  constexpr int64_t kVectors = 4;
  const Element* const x = static_cast<const Element*>(call.x);
  const Element* const dout = static_cast<const Element*>(call.dout);
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
          const int64_t column = i + v * kLanes;
          const Lanes normal =
              mul(load_upto(x + row * call.dim + column, lanes[v]), all(call.inv_rms[row]));
          sum[v] = fma(load_upto(dout + row * call.dout_stride + column, lanes[v]), normal, sum[v]);
        }
      }
      for (int64_t v = 0; v < kVectors; ++v) {
        float* const to = call.dweight + i + v * kLanes;
        store_upto(to, add(load_upto(to, lanes[v]), sum[v]), lanes[v]);
      }
    }
  }
}

template <class Element>
void rope_apply_of(const RopeTurn& call, int64_t begin, int64_t end) {
  const int64_t half = call.rotary_dim / 2;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < call.heads; ++head) {
      Element* const low =
          static_cast<Element*>(call.x) + token * call.row_stride + head * call.head_dim;
      Element* const high = low + half;
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

GRAFT_LANES_INLINE Lanes capped(Lanes x, float cap) {
  return mul(hyperbolic_tangent(div(x, all(cap))), all(cap));
}
// The slope of the cap at what it gave.
GRAFT_LANES_INLINE Lanes cap_slope(Lanes y, float cap) {
  const Lanes t = div(y, all(cap));
  return mul(sub(all(1.0f), t), add(all(1.0f), t));
}

// The largest of a row's logits, NaN left out, -inf for none.
template <class Logit>
float largest_logit(int64_t count, const Logit& logit) {
  Lanes best = all(-INFINITY);
  for_lanes(count, [&](int64_t i, int64_t n) {
    // Lanes past the end are -inf.
    float last[kLanes];
    Lanes x = logit(i, n);
    if (n < kLanes) {
      store(last, all(-INFINITY));
      store_first(last, x, n);
      x = load(last);
    }
    best = larger(x, best);
  });
  return largest_lane(best);
}

template <class Element, class Gradient, bool kCapped>
void cross_entropy_row(const CrossEntropyRows& call, int64_t row) {
  const Element* const logits = static_cast<const Element*>(call.logits) + row * call.vocab;
  Gradient* const gradients = static_cast<Gradient*>(call.gradient) + row * call.vocab;
  const int64_t vocab = call.vocab, label = call.labels[row];
  const auto logit = [&](int64_t i, int64_t n) {
    const Lanes x = load_upto(logits + i, n);
    return kCapped ? capped(x, call.softcap) : x;
  };
  const float top = largest_logit(vocab, logit);
  float one[kLanes];
  store(one, logit(label, 1));
  const float label_logit = one[0];
  if (call.row_correct != nullptr) {
    // The first of the largest: nothing before the label may be as large.
    call.row_correct[row] = label_logit == top && !(largest_logit(label, logit) == top);
  }
  double total = 0.0;
  for (int64_t tile = 0; tile < vocab; tile += kSumTile) {
    Lanes sum = all(0.0f);
    for_lanes(smaller_of(kSumTile, vocab - tile), [&](int64_t i, int64_t n) {
      Lanes e = exponential(sub(logit(tile + i, n), all(top)));
      if (n < kLanes) {  // nothing for the lanes past the end
        float last[kLanes];
        store(last, all(0.0f));
        store_first(last, e, n);
        e = load(last);
      }
      sum = add(sum, e);
    });
    total += static_cast<double>(sum_lanes(sum));
  }
  call.row_loss[row] = static_cast<float>(
      log(total) + (static_cast<double>(top) - static_cast<double>(label_logit)));
  if (!call.with_gradient) return;
  const float scale = (call.weight != nullptr ? call.weight[row] : 1.0f) * call.scale;
  const float factor = static_cast<float>(static_cast<double>(scale) / total);
  for_lanes(vocab, [&](int64_t i, int64_t n) {
    const Lanes y = logit(i, n);
    Lanes gradient = mul(exponential(sub(y, all(top))), all(factor));
    if (label >= i && label < i + n) {
      store(one, gradient);
      one[label - i] -= scale;
      gradient = load(one);
    }
    if (kCapped) gradient = mul(gradient, cap_slope(y, call.softcap));
    store_upto(gradients + i, gradient, n);
  });
}

}  // namespace

void rmsnorm_forward(const NormForward& call, int64_t begin, int64_t end) {
  if (call.type == GRAFT_BF16) return rmsnorm_forward_of<Bf16, Bf16>(call, begin, end);
  for_element(call.out_type,
              [&](auto out) { rmsnorm_forward_of<float, decltype(out)>(call, begin, end); });
}

void rmsnorm_backward(const NormBackward& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto e) { rmsnorm_backward_of<decltype(e)>(call, begin, end); });
}

void rmsnorm_weight_gradient(const NormBackward& call, int64_t rows, int64_t begin, int64_t end) {
  for_element(call.type,
              [&](auto e) { rmsnorm_weight_gradient_of<decltype(e)>(call, rows, begin, end); });
}

void rope_apply(const RopeTurn& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto e) { rope_apply_of<decltype(e)>(call, begin, end); });
}

void gate_forward(const GateForward& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto e) {
    using Element = decltype(e);
    for_row_pieces(call.dim, begin, end, [&](int64_t row, int64_t from, int64_t to) {
      if (call.gate_kind == GRAFT_SILU) {
        gate_forward_row<GRAFT_SILU, Element>(call, row, from, to);
      } else {
        gate_forward_row<GRAFT_GELU_TANH, Element>(call, row, from, to);
      }
    });
  });
}

void gate_backward(const GateBackward& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto e) {
    using Element = decltype(e);
    for_row_pieces(call.dim, begin, end, [&](int64_t row, int64_t from, int64_t to) {
      if (call.gate_kind == GRAFT_SILU) {
        gate_backward_row<GRAFT_SILU, Element>(call, row, from, to);
      } else {
        gate_backward_row<GRAFT_GELU_TANH, Element>(call, row, from, to);
      }
    });
  });
}

void softcap_forward(void* x, graft_float_type type, float cap, int64_t begin, int64_t end) {
  for_element(type, [&](auto e) {
    decltype(e)* const values = static_cast<decltype(e)*>(x) + begin;
    for_lanes(end - begin, [&](int64_t i, int64_t n) {
      store_upto(values + i, capped(load_upto(values + i, n), cap), n);
    });
  });
}

void softcap_backward(
    const void* y, void* dx, graft_float_type type, float cap, int64_t begin, int64_t end) {
  for_element(type, [&](auto e) {
    const decltype(e)* const values = static_cast<const decltype(e)*>(y) + begin;
    decltype(e)* const gradients = static_cast<decltype(e)*>(dx) + begin;
    for_lanes(end - begin, [&](int64_t i, int64_t n) {
      const Lanes slope = cap_slope(load_upto(values + i, n), cap);
      store_upto(gradients + i, mul(load_upto(gradients + i, n), slope), n);
    });
  });
}

void cross_entropy(const CrossEntropyRows& call, int64_t begin, int64_t end) {
  for_element(call.type, [&](auto logit) {
    for_element(call.gradient_type, [&](auto gradient) {
      using Element = decltype(logit);
      using Gradient = decltype(gradient);
      for (int64_t row = begin; row < end; ++row) {
        if (call.softcap > 0.0f) {
          cross_entropy_row<Element, Gradient, true>(call, row);
        } else {
          cross_entropy_row<Element, Gradient, false>(call, row);
        }
      }
    });
  });
}

}  // namespace graft::kernels::GRAFT_ISA
