#include "kernels/lora.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/float16.h"
#include "kernels/operators.h"
#include "kernels/parallel.h"

namespace graft::kernels {
namespace {

// Rows of an array and the stride between them.
struct Rows {
  const void* values;
  int64_t stride;
};

Rows from(const Rows& rows, int64_t row, int64_t column, graft_float_type type) {
  if (rows.values == nullptr) return rows;
  const char* const begin = static_cast<const char*>(rows.values);
  return {begin + (row * rows.stride + column) * size_of(type), rows.stride};
}

graft_status check_layer(const char* function, const graft_lora* layer, int64_t tokens) {
  if (const graft_status status = check_pointers(function, {{"layer", layer}})) return status;
  if (layer->layout != GRAFT_LORA_EXTENDED && layer->layout != GRAFT_LORA_SEPARATE) {
    return fail(GRAFT_BAD_ARGUMENT, function, "layout is %d, expected 0 or 1",
                static_cast<int>(layer->layout));
  }
  return check_counts(function, {{"tokens", tokens},
                                 {"in_features", layer->in_features, 1},
                                 {"out_features", layer->out_features, 1},
                                 {"rank", layer->rank}});
}

bool is_extended(const graft_lora& layer) {
  return layer.layout == GRAFT_LORA_EXTENDED;
}

// The low-rank array beside `wide`: behind its rows, or apart.
Rows low_rank(const graft_lora& layer, const Rows& wide, const Rows& apart) {
  return is_extended(layer) ? from(wide, 0, layer.in_features, layer.type) : apart;
}

// The width that x, dx and W's rows must have.
int64_t width_of(const graft_lora& layer) {
  return layer.in_features + (is_extended(layer) ? layer.rank : 0);
}

graft_status check_width(const char* function,
                         const graft_lora& layer,
                         const char* name,
                         const Rows& rows,
                         const Rows& apart) {
  if (const graft_status status = check_counts(function, {{name, rows.stride, width_of(layer)}})) {
    return status;
  }
  if (is_extended(layer) && apart.values != nullptr) {
    return fail(GRAFT_BAD_ARGUMENT, function,
                "the extended layout has u and du behind x and dx, expected NULL for them");
  }
  return GRAFT_OK;
}

struct Operand {
  Rows rows;
  graft_transpose transpose = GRAFT_N;
};

graft_product product(const graft_lora& layer,
                      int64_t m,
                      int64_t n,
                      int64_t k,
                      const Operand& a,
                      const Operand& b,
                      const Rows& c) {
  graft_product p{};
  p.ta = a.transpose;
  p.tb = b.transpose;
  p.m = m;
  p.n = n;
  p.k = k;
  p.alpha = 1.0f;
  p.a = a.rows.values;
  p.lda = a.rows.stride;
  p.b = b.rows.values;
  p.ldb = b.rows.stride;
  p.c = const_cast<void*>(c.values);  // an output where it comes from
  p.ldc = c.stride;
  p.type = layer.type;
  p.c_type = layer.type;
  return p;
}

constexpr int64_t kRowPiece = 16;

graft_status check_pairs(const char* function, const graft_lora_pair* pairs, int64_t count) {
  if (const graft_status status = check_counts(function, {{"count", count, 1}})) return status;
  if (count > GRAFT_LORA_PAIRS) {
    return fail(GRAFT_BAD_SHAPE, function, "count is %lld, expected at most %d",
                static_cast<long long>(count), GRAFT_LORA_PAIRS);
  }
  if (const graft_status status = check_pointers(function, {{"pairs", pairs}})) return status;
  for (int64_t i = 0; i < count; ++i) {
    const graft_lora_pair& pair = pairs[i];
    if (const graft_status status =
            check_counts(function, {{"out_features", pair.out_features}, {"rank", pair.rank}})) {
      return status;
    }
    if (pair.rank == 0) continue;
    if (const graft_status status = check_pointers(function, {{"a", pair.a}, {"b", pair.b}})) {
      return status;
    }
  }
  return GRAFT_OK;
}

// Row `row` of s B's blocks: zeros, and those of the pair that has the row.
void place_b_row(const LoraPairs& call, int64_t row) {
  uint16_t* const to = call.to + row * call.to_stride + call.in;
  std::fill_n(to, call.rank, uint16_t{0});
  int64_t column = 0;
  for (int64_t i = 0; i < call.count; ++i) {
    const graft_lora_pair& pair = call.pair[i];
    if (row >= 0 && row < pair.out_features) {
      for (int64_t k = 0; k < pair.rank; ++k) {
        to[column + k] = to_bf16_or_nan(pair.b[row * pair.rank + k] * pair.scale);
      }
    }
    row -= pair.out_features;
    column += pair.rank;
  }
}

// Row `row` of all A's, one behind the other.
void place_a_row(const LoraPairs& call, int64_t row) {
  uint16_t* const to = call.to + (call.out + row) * call.to_stride;
  const graft_lora_pair* pair = call.pair;
  for (; row >= pair->rank; ++pair) row -= pair->rank;
  const float* const from = pair->a + row * call.in;
  for (int64_t i = 0; i < call.in; ++i) to[i] = to_bf16_or_nan(from[i]);
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_lora_forward(const graft_lora* layer,
                                           int64_t tokens,
                                           void* x,
                                           int64_t x_stride,
                                           void* u,
                                           int64_t u_stride,
                                           void* y,
                                           int64_t y_stride,
                                           graft_device device,
                                           graft_stream stream) {
  constexpr const char* kName = "graft_lora_forward";
  if (const graft_status status = check_layer(kName, layer, tokens)) return status;
  const graft_lora& l = *layer;
  const Rows x_rows{x, x_stride}, y_rows{y, y_stride}, w{l.w, l.w_stride}, apart{u, u_stride};
  if (const graft_status status = check_width(kName, l, "x_stride", x_rows, apart)) return status;
  if (const graft_status status = check_counts(kName, {{"w_stride", l.w_stride, width_of(l)}})) {
    return status;
  }
  const Rows u_rows = low_rank(l, x_rows, apart);
  if (l.rank > 0) {
    const graft_product low = product(l, tokens, l.rank, l.in_features, {x_rows},
                                      {{l.a, l.in_features}, GRAFT_T}, u_rows);
    if (const graft_status status = graft_multiply(&low, device, stream)) return status;
  }
  const graft_product base =
      product(l, tokens, l.out_features, width_of(l), {x_rows}, {w, GRAFT_T}, y_rows);
  if (const graft_status status = graft_multiply(&base, device, stream)) return status;
  if (is_extended(l) || l.rank == 0) return GRAFT_OK;
  graft_product high =
      product(l, tokens, l.out_features, l.rank, {u_rows}, {{l.b, l.rank}, GRAFT_T}, y_rows);
  high.alpha = l.scale;
  high.beta = 1.0f;
  return graft_multiply(&high, device, stream);
}

extern "C" graft_status graft_lora_backward(const graft_lora* layer,
                                            int64_t tokens,
                                            const void* dy,
                                            int64_t dy_stride,
                                            void* dx,
                                            int64_t dx_stride,
                                            void* du,
                                            int64_t du_stride,
                                            graft_device device,
                                            graft_stream stream) {
  constexpr const char* kName = "graft_lora_backward";
  if (const graft_status status = check_layer(kName, layer, tokens)) return status;
  const graft_lora& l = *layer;
  const Rows dy_rows{dy, dy_stride}, dx_rows{dx, dx_stride}, w{l.w, l.w_stride};
  const Rows apart{du, du_stride};
  const bool wants_dx = dx != nullptr;
  if (wants_dx || is_extended(l)) {
    if (const graft_status status = check_width(kName, l, "dx_stride", dx_rows, apart)) {
      return status;
    }
    const graft_product base =
        product(l, tokens, width_of(l), l.out_features, {dy_rows}, {w}, dx_rows);
    if (const graft_status status = graft_multiply(&base, device, stream)) return status;
  }
  if (l.rank == 0) return GRAFT_OK;
  const Rows du_rows = low_rank(l, dx_rows, apart);
  if (!is_extended(l)) {
    graft_product low =
        product(l, tokens, l.rank, l.out_features, {dy_rows}, {{l.b, l.rank}}, du_rows);
    low.alpha = l.scale;
    if (const graft_status status = graft_multiply(&low, device, stream)) return status;
  }
  if (!wants_dx) return GRAFT_OK;
  graft_product high =
      product(l, tokens, l.in_features, l.rank, {du_rows}, {{l.a, l.in_features}}, dx_rows);
  high.beta = 1.0f;
  return graft_multiply(&high, device, stream);
}

extern "C" graft_status graft_lora_gradients(const graft_lora* layer,
                                             int64_t tokens,
                                             const void* x,
                                             int64_t x_stride,
                                             const void* u,
                                             int64_t u_stride,
                                             const void* dy,
                                             int64_t dy_stride,
                                             const void* du,
                                             int64_t du_stride,
                                             float* da,
                                             float* db,
                                             graft_device device,
                                             graft_stream stream) {
  constexpr const char* kName = "graft_lora_gradients";
  if (const graft_status status = check_layer(kName, layer, tokens)) return status;
  const graft_lora& l = *layer;
  if (l.rank == 0) return GRAFT_OK;
  const Rows x_rows{x, x_stride}, dy_rows{dy, dy_stride};
  // du lies behind the rows of dx, which the extended layout gives in the place of du.
  const Rows u_rows = low_rank(l, x_rows, {u, u_stride});
  const Rows du_rows = low_rank(l, {du, du_stride}, {du, du_stride});
  for (int64_t first = 0; first < tokens; first += GRAFT_LORA_TOKENS) {
    const int64_t count = std::min<int64_t>(GRAFT_LORA_TOKENS, tokens - first);
    const auto part = [&](const Rows& rows) { return from(rows, first, 0, l.type); };
    graft_product a = product(l, l.rank, l.in_features, count, {part(du_rows), GRAFT_T},
                              {part(x_rows)}, {da, l.in_features});
    graft_product b = product(l, l.out_features, l.rank, count, {part(dy_rows), GRAFT_T},
                              {part(u_rows)}, {db, l.rank});
    b.alpha = l.scale;
    for (graft_product* sum : {&a, &b}) {
      sum->beta = 1.0f;
      sum->c_type = GRAFT_F32;
      if (const graft_status status = graft_multiply(sum, device, stream)) return status;
    }
  }
  return GRAFT_OK;
}

extern "C" graft_status graft_lora_place_pairs(const graft_lora_pair* pairs,
                                               int64_t count,
                                               int64_t in_features,
                                               uint16_t* to,
                                               int64_t to_stride,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_lora_place_pairs";
  if (const graft_status status = check_pairs(kName, pairs, count)) return status;
  LoraPairs call{};
  call.count = count;
  call.in = in_features;
  call.to = to;
  call.to_stride = to_stride;
  for (int64_t i = 0; i < count; ++i) {
    call.pair[i] = pairs[i];
    call.out += pairs[i].out_features;
    call.rank += pairs[i].rank;
  }
  if (const graft_status status = check_counts(
          kName,
          {{"in_features", in_features, 1}, {"to_stride", to_stride, in_features + call.rank}})) {
    return status;
  }
  if (call.rank == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"to", to}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.place_pairs(call, stream);
    });
  }
  for_pieces(call.out, kRowPiece, call.out * call.rank, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) place_b_row(call, row);
  });
  for_pieces(call.rank, 1, call.rank * call.in, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) place_a_row(call, row);
  });
  return GRAFT_OK;
}
