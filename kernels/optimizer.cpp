#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/map8.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace {

// Elements of one partial sum (optimizer.h documents it) and of one piece of work.
constexpr int64_t kTile = GRAFT_SQUARES_TILE;
// Tiles whose sums wait on the stack before they are added in order.
constexpr int64_t kTileGroup = 64;

using namespace graft::kernels;

graft_status check_options(const char* function, const graft_adamw* options) {
  if (const graft_status status = check_pointers(function, {{"options", options}})) return status;
  const auto is_beta = [](float beta) { return beta >= 0.0f && beta < 1.0f; };
  if (options->step >= 1 && is_beta(options->beta1) && is_beta(options->beta2) &&
      options->eps >= 0.0f) {
    return GRAFT_OK;
  }
  return fail(
      GRAFT_BAD_ARGUMENT, function,
      "step %lld, beta1 %g, beta2 %g, eps %g; expected step >= 1, betas in [0, 1), eps >= 0",
      static_cast<long long>(options->step), static_cast<double>(options->beta1),
      static_cast<double>(options->beta2), static_cast<double>(options->eps));
}

AdamFactors factors_of(const graft_adamw& options) {
  const double lr = static_cast<double>(options.lr);
  const double beta1 = static_cast<double>(options.beta1);
  const double beta2 = static_cast<double>(options.beta2);
  const double step = static_cast<double>(options.step);
  AdamFactors factors;
  factors.grad_scale = options.grad_scale;
  factors.decay = static_cast<float>(1.0 - lr * static_cast<double>(options.weight_decay));
  factors.beta1 = options.beta1;
  factors.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  factors.beta2 = options.beta2;
  factors.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  factors.step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, step)));
  factors.bias2_root = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, step)));
  factors.eps = options.eps;
  return factors;
}

graft_status check_tensor(const char* function, const graft_adamw_tensor& tensor) {
  if (const graft_status status = check_counts(function, {{"count", tensor.count}})) return status;
  if (tensor.count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"param", tensor.param}, {"grad", tensor.grad}})) {
    return status;
  }
  if ((tensor.m != nullptr) == (tensor.m8 != nullptr)) {
    return fail(GRAFT_BAD_ARGUMENT, function, "%s of m and m8 given, expected one",
                tensor.m != nullptr ? "both" : "neither");
  }
  if (tensor.m != nullptr) return check_pointers(function, {{"v", tensor.v}});
  if (const graft_status status = check_counts(
          function, {{"count of a tensor with 8-bit state", tensor.count, GRAFT_ADAMW8_LEAST}})) {
    return status;
  }
  return check_pointers(
      function, {{"v8", tensor.v8}, {"m_absmax", tensor.m_absmax}, {"v_absmax", tensor.v_absmax}});
}

graft_status check_second_map(const char* function, graft_map8 map) {
  if (map == GRAFT_MAP_LOG2 || map == GRAFT_MAP_DYNAMIC_UNSIGNED) return GRAFT_OK;
  return fail(GRAFT_BAD_ARGUMENT, function, "a map of second moments is %d, expected %d or %d",
              static_cast<int>(map), static_cast<int>(GRAFT_MAP_DYNAMIC_UNSIGNED),
              static_cast<int>(GRAFT_MAP_LOG2));
}

// Elements [begin, end) of a tensor; begin is a multiple of the state's block.
void update(const graft_adamw_tensor& tensor,
            int64_t begin,
            int64_t end,
            const AdamFactors& factors,
            const Map8& v_map) {
  float* const param = tensor.param + begin;
  const float* const grad = tensor.grad + begin;
  if (tensor.m != nullptr) {
    table().adamw(param, grad, tensor.m + begin, tensor.v + begin, end - begin, factors);
    return;
  }
  const int64_t block = begin / GRAFT_ADAMW8_BLOCK;
  const Adam8Run run{param,
                     grad,
                     tensor.m8 + begin,
                     tensor.v8 + begin,
                     tensor.m_absmax + block,
                     tensor.v_absmax + block,
                     end - begin};
  table().weights->adamw8(run, factors, *map8(GRAFT_MAP_DYNAMIC_SIGNED), v_map);
}

}  // namespace

extern "C" graft_status graft_adamw_step(float* param,
                                         const float* grad,
                                         float* m,
                                         float* v,
                                         int64_t count,
                                         const graft_adamw* options) {
  constexpr const char* kName = "graft_adamw_step";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_options(kName, options)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"param", param}, {"grad", grad}, {"m", m}, {"v", v}})) {
    return status;
  }
  const AdamFactors factors = factors_of(*options);
  const Table& isa = table();
  for_pieces(count, kTile, 4 * count, [&](int64_t begin, int64_t end) {
    isa.adamw(param + begin, grad + begin, m + begin, v + begin, end - begin, factors);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_adamw_step_all(const graft_adamw_tensor* tensors,
                                             int64_t tensor_count,
                                             const graft_adamw* options,
                                             graft_map8 v_map) {
  constexpr const char* kName = "graft_adamw_step_all";
  if (const graft_status status = check_counts(kName, {{"tensor_count", tensor_count}})) {
    return status;
  }
  if (const graft_status status = check_options(kName, options)) return status;
  if (const graft_status status = check_second_map(kName, v_map)) return status;
  if (tensor_count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"tensors", tensors}})) return status;
  int64_t pieces = 0, elements = 0;
  for (int64_t t = 0; t < tensor_count; ++t) {
    if (const graft_status status = check_tensor(kName, tensors[t])) return status;
    pieces += (tensors[t].count + kTile - 1) / kTile;
    elements += tensors[t].count;
  }
  const AdamFactors factors = factors_of(*options);
  const Map8& second = *map8(v_map);
  // Each thread takes a run of the pieces of all tensors in order.
  const auto run = [&](int64_t thread, int64_t threads) {
    const int64_t from = pieces * thread / threads, to = pieces * (thread + 1) / threads;
    int64_t before = 0;  // pieces of the tensors before
    for (int64_t t = 0; t < tensor_count && before < to; ++t) {
      const int64_t count = tensors[t].count, own = (count + kTile - 1) / kTile;
      const int64_t first = from > before ? from - before : 0;
      const int64_t last = to - before < own ? to - before : own;
      for (int64_t piece = first; piece < last; ++piece) {
        const int64_t begin = piece * kTile;
        update(tensors[t], begin, begin + kTile < count ? begin + kTile : count, factors, second);
      }
      before += own;
    }
  };
  if (pieces == 1 || 4 * elements <= kParallelWork || omp_get_max_threads() == 1) {
    run(0, 1);
    return GRAFT_OK;
  }
#pragma omp parallel
  run(omp_get_thread_num(), omp_get_num_threads());
  return GRAFT_OK;
}

extern "C" graft_status graft_adamw8_convert(graft_map8 from,
                                             graft_map8 to,
                                             int64_t count,
                                             uint8_t* v8) {
  constexpr const char* kName = "graft_adamw8_convert";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_second_map(kName, from)) return status;
  if (const graft_status status = check_second_map(kName, to)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"v8", v8}})) return status;
  const Map8& before = *map8(from);
  // Every value of a map has one nearest code in the other, whatever its block's absmax.
  uint8_t code_of[256];
  float scale = 1.0f;
  for (int i = 0; i < 256; ++i) {
    // One value at a time: a block of its own would make each the largest.
    const float pair[2] = {1.0f, before.value[i]};
    uint8_t codes[2];
    if (!table().weights->quant8_quantize(*map8(to), pair, 2, GRAFT_ADAMW8_BLOCK, codes, &scale)) {
      return fail(GRAFT_NOT_FINITE, kName, "value %d of the map is not finite", i);
    }
    code_of[i] = before.value[i] > 0.0f && codes[1] == 0 ? uint8_t{1} : codes[1];
  }
  for (int64_t i = 0; i < count; ++i) v8[i] = code_of[v8[i]];
  return GRAFT_OK;
}

extern "C" graft_status graft_sum_squares(const float* x, int64_t count, double* out) {
  constexpr const char* kName = "graft_sum_squares";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_pointers(kName, {{"out", out}})) return status;
  *out = 0.0;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  const Table& isa = table();
  for (int64_t first = 0; first < count; first += kTileGroup * kTile) {
    const int64_t group = count - first < kTileGroup * kTile ? count - first : kTileGroup * kTile;
    double sums[kTileGroup];
    for_pieces(group, kTile, group, [&](int64_t begin, int64_t end) {
      sums[begin / kTile] = isa.sum_squares(x + first + begin, end - begin);
    });
    for (int64_t tile = 0; tile * kTile < group; ++tile) *out += sums[tile];
  }
  return GRAFT_OK;
}

extern "C" graft_status graft_count_not_finite(const float* x, int64_t count, int64_t* out) {
  constexpr const char* kName = "graft_count_not_finite";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_pointers(kName, {{"out", out}})) return status;
  *out = 0;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  const Table& isa = table();
  int64_t found = 0;
  const int64_t pieces = (count + kTile - 1) / kTile;
#pragma omp parallel for schedule(static) reduction(+ : found) if (count > kParallelWork)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kTile;
    found += isa.count_not_finite(x + begin, count - begin < kTile ? count - begin : kTile);
  }
  *out = found;
  return GRAFT_OK;
}
