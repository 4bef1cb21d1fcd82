#include "kernels/moe.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kMostExperts = 1024;
constexpr int64_t kTokenPiece = 16;
// An exponential costs about as much as this many additions.
constexpr int64_t kExponentialWork = 4;
// Lanes of a row's sum (rmsnorm.h).
constexpr int64_t kLanes = 128;

graft_status check_shape(const char* function, const graft_moe_shape* shape, int64_t dim = 1) {
  if (const graft_status status = check_pointers(function, {{"shape", shape}})) return status;
  if (const graft_status status = check_counts(function, {{"tokens", shape->tokens},
                                                          {"experts", shape->experts, 1},
                                                          {"top", shape->top, 1},
                                                          {"dim", dim, 1}})) {
    return status;
  }
  if (shape->experts > kMostExperts || shape->top > shape->experts) {
    return fail(GRAFT_BAD_SHAPE, function,
                "top is %lld of %lld experts, expected top <= experts <= %lld",
                static_cast<long long>(shape->top), static_cast<long long>(shape->experts),
                static_cast<long long>(kMostExperts));
  }
  if (shape->tokens > INT32_MAX / shape->top) {
    return fail(GRAFT_BAD_SHAPE, function, "%lld tokens of %lld choices are not below 2^31",
                static_cast<long long>(shape->tokens), static_cast<long long>(shape->top));
  }
  if (shape->renormalise != 0 && shape->renormalise != 1) {
    return fail(GRAFT_BAD_ARGUMENT, function, "renormalise is %d, expected 0 or 1",
                shape->renormalise);
  }
  return GRAFT_OK;
}

void route_token(const Table& isa, const MoeRoute& call, int64_t token) {
  const int64_t experts = call.shape.experts, top = call.shape.top;
  const float* const logits = call.logits + token * experts;
  float* const p = call.probabilities + token * experts;
  int32_t* const expert = call.expert + token * top;
  float* const weight = call.weight + token * top;
  float largest = logits[0];
  for (int64_t e = 1; e < experts; ++e) largest = logits[e] > largest ? logits[e] : largest;
  for (int64_t e = 0; e < experts; ++e) p[e] = logits[e] - largest;
  isa.exponential(p, experts, p);
  float sum = 0.0f;
  for (int64_t e = 0; e < experts; ++e) sum += p[e];
  for (int64_t e = 0; e < experts; ++e) p[e] /= sum;
  float chosen_sum = 0.0f;
  for (int64_t j = 0; j < top; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      const bool taken = std::find(expert, expert + j, e) != expert + j;
      if (!taken && (best < 0 || p[e] > p[best])) best = e;
    }
    expert[j] = static_cast<int32_t>(best);
    weight[j] = p[best];
    chosen_sum += p[best];
  }
  if (call.shape.renormalise != 0) {
    for (int64_t j = 0; j < top; ++j) weight[j] /= chosen_sum;
  }
}

// Weights w_j = p_j / s, s the sum of the chosen p (or 1): dp_j = (dw_j - [renormalise] sum_i dw_i
// w_i) / s, and softmax backwards: dl_e = p_e (dp_e - sum_j dp_j p_j).
void route_token_backward(const MoeRouteBackward& call, int64_t token) {
  const int64_t experts = call.shape.experts, top = call.shape.top;
  const float* const p = call.probabilities + token * experts;
  const int32_t* const expert = call.expert + token * top;
  const float* const weight = call.weight + token * top;
  const float* const dweight = call.dweight + token * top;
  float* const dlogits = call.dlogits + token * experts;
  float mean = 0.0f, sum = 1.0f;
  if (call.shape.renormalise != 0) {
    sum = 0.0f;
    for (int64_t j = 0; j < top; ++j) {
      mean += dweight[j] * weight[j];
      sum += p[expert[j]];
    }
  }
  float drift = 0.0f;
  for (int64_t j = 0; j < top; ++j) drift += (dweight[j] - mean) / sum * p[expert[j]];
  for (int64_t e = 0; e < experts; ++e) dlogits[e] = p[e] * (0.0f - drift);
  for (int64_t j = 0; j < top; ++j) {
    const float slope = (dweight[j] - mean) / sum;
    dlogits[expert[j]] = p[expert[j]] * (slope - drift);
  }
}

// The sum of a row's products in the 128 lanes that rmsnorm.h defines.
float row_dot(const float* a, const float* b, int64_t dim) {
  float lane[kLanes] = {};
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t width = std::min(kLanes, dim - i);
    for (int64_t j = 0; j < width; ++j) lane[j] += a[i + j] * b[i + j];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return lane[0];
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_moe_route(const graft_moe_shape* shape,
                                        const float* logits,
                                        float* probabilities,
                                        int32_t* expert,
                                        float* weight,
                                        graft_device device,
                                        graft_stream stream) {
  constexpr const char* kName = "graft_moe_route";
  if (const graft_status status = check_shape(kName, shape)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"logits", logits},
                                                         {"probabilities", probabilities},
                                                         {"expert", expert},
                                                         {"weight", weight}})) {
    return status;
  }
  const MoeRoute call{*shape, logits, probabilities, expert, weight};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_route(call, stream);
    });
  }
  const Table& isa = table();
  for_pieces(shape->tokens, kTokenPiece,
             shape->tokens * shape->experts * (kExponentialWork + shape->top),
             [&](int64_t begin, int64_t end) {
               for (int64_t token = begin; token < end; ++token) route_token(isa, call, token);
             });
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_route_backward(const graft_moe_shape* shape,
                                                 const float* probabilities,
                                                 const int32_t* expert,
                                                 const float* weight,
                                                 const float* dweight,
                                                 float* dlogits,
                                                 graft_device device,
                                                 graft_stream stream) {
  constexpr const char* kName = "graft_moe_route_backward";
  if (const graft_status status = check_shape(kName, shape)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"probabilities", probabilities},
                                                         {"expert", expert},
                                                         {"weight", weight},
                                                         {"dweight", dweight},
                                                         {"dlogits", dlogits}})) {
    return status;
  }
  const MoeRouteBackward call{*shape, probabilities, expert, weight, dweight, dlogits};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_route_backward(call, stream);
    });
  }
  for_pieces(shape->tokens, kTokenPiece, shape->tokens * shape->experts,
             [&](int64_t begin, int64_t end) {
               for (int64_t token = begin; token < end; ++token) route_token_backward(call, token);
             });
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_sort(const graft_moe_shape* shape,
                                       const int32_t* expert,
                                       int32_t* offsets,
                                       int32_t* row_pair,
                                       int32_t* pair_row,
                                       graft_device device,
                                       graft_stream stream) {
  constexpr const char* kName = "graft_moe_sort";
  if (const graft_status status = check_shape(kName, shape)) return status;
  if (const graft_status status = check_pointers(kName, {{"offsets", offsets}})) return status;
  const int64_t pairs = shape->tokens * shape->top;
  if (pairs > 0) {
    if (const graft_status status = check_pointers(
            kName, {{"expert", expert}, {"row_pair", row_pair}, {"pair_row", pair_row}})) {
      return status;
    }
  }
  if (device != GRAFT_CPU) {
    const MoeSort call{*shape, expert, offsets, row_pair, pair_row};
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_sort(call, stream);
    });
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (expert[pair] < 0 || expert[pair] >= shape->experts) {
      return fail(GRAFT_BAD_ARGUMENT, kName, "expert[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(pair), expert[pair],
                  static_cast<long long>(shape->experts - 1));
    }
  }
  std::fill_n(offsets, shape->experts + 1, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) ++offsets[expert[pair] + 1];
  for (int64_t e = 0; e < shape->experts; ++e) offsets[e + 1] += offsets[e];
  int32_t next[kMostExperts];
  std::copy_n(offsets, shape->experts, next);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int32_t row = next[expert[pair]]++;
    row_pair[row] = static_cast<int32_t>(pair);
    pair_row[pair] = row;
  }
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_gather(const graft_moe_shape* shape,
                                         const float* x,
                                         const int32_t* row_pair,
                                         int64_t dim,
                                         float* rows,
                                         graft_device device,
                                         graft_stream stream) {
  constexpr const char* kName = "graft_moe_gather";
  if (const graft_status status = check_shape(kName, shape, dim)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"x", x}, {"row_pair", row_pair}, {"rows", rows}})) {
    return status;
  }
  const MoeMove call{*shape, x, row_pair, nullptr, dim, rows};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_gather(call, stream);
    });
  }
  const int64_t count = shape->tokens * shape->top;
  for_pieces(count, kTokenPiece, count * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::copy_n(x + row_pair[row] / shape->top * dim, dim, rows + row * dim);
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_combine(const graft_moe_shape* shape,
                                          const float* rows,
                                          const int32_t* pair_row,
                                          int64_t dim,
                                          float* y,
                                          graft_device device,
                                          graft_stream stream) {
  constexpr const char* kName = "graft_moe_combine";
  if (const graft_status status = check_shape(kName, shape, dim)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"rows", rows}, {"pair_row", pair_row}, {"y", y}})) {
    return status;
  }
  const MoeMove call{*shape, rows, pair_row, nullptr, dim, y};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_combine(call, stream);
    });
  }
  const Table& isa = table();
  const int64_t top = shape->top;
  for_pieces(shape->tokens, kTokenPiece, shape->tokens * top * dim,
             [&](int64_t begin, int64_t end) {
               for (int64_t token = begin; token < end; ++token) {
                 const int32_t* const place = pair_row + token * top;
                 float* const to = y + token * dim;
                 std::copy_n(rows + place[0] * dim, dim, to);
                 for (int64_t j = 1; j < top; ++j)
                   isa.addition({to, rows + place[j] * dim, GRAFT_F32, GRAFT_F32}, 0, dim);
               }
             });
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_weigh(const graft_moe_shape* shape,
                                        const float* rows,
                                        const int32_t* row_pair,
                                        const float* weight,
                                        int64_t dim,
                                        float* out,
                                        graft_device device,
                                        graft_stream stream) {
  constexpr const char* kName = "graft_moe_weigh";
  if (const graft_status status = check_shape(kName, shape, dim)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"rows", rows}, {"row_pair", row_pair}, {"weight", weight}, {"out", out}})) {
    return status;
  }
  const MoeMove call{*shape, rows, row_pair, weight, dim, out};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_weigh(call, stream);
    });
  }
  const int64_t count = shape->tokens * shape->top;
  for_pieces(count, kTokenPiece, count * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = weight[row_pair[row]];
      const float* const from = rows + row * dim;
      float* const to = out + row * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = from[i] * factor;
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_moe_weigh_backward(const graft_moe_shape* shape,
                                                 const float* dout,
                                                 const float* rows,
                                                 const int32_t* row_pair,
                                                 const float* weight,
                                                 int64_t dim,
                                                 float* drows,
                                                 float* dweight,
                                                 graft_device device,
                                                 graft_stream stream) {
  constexpr const char* kName = "graft_moe_weigh_backward";
  if (const graft_status status = check_shape(kName, shape, dim)) return status;
  if (shape->tokens == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"dout", dout},
                                                         {"rows", rows},
                                                         {"row_pair", row_pair},
                                                         {"weight", weight},
                                                         {"drows", drows},
                                                         {"dweight", dweight}})) {
    return status;
  }
  const MoeWeighBackward call{*shape, dout, rows, row_pair, weight, dim, drows, dweight};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.moe_weigh_backward(call, stream);
    });
  }
  const int64_t count = shape->tokens * shape->top;
  for_pieces(count, kTokenPiece, 2 * count * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = weight[row_pair[row]];
      const float* const from = dout + row * dim;
      dweight[row_pair[row]] = row_dot(from, rows + row * dim, dim);
      float* const to = drows + row * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = from[i] * factor;
    }
  });
  return GRAFT_OK;
}
