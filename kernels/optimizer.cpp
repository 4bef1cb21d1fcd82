#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace {

// Elements of one partial sum (optimizer.h documents it) and of one piece of work.
constexpr int64_t kTile = 16384;
// Tiles whose sums wait on the stack before they are added in order.
constexpr int64_t kTileGroup = 64;

}  // namespace

using namespace graft::kernels;

extern "C" graft_status graft_adamw_step(float* param,
                                         const float* grad,
                                         float* m,
                                         float* v,
                                         int64_t count,
                                         const graft_adamw* options) {
  constexpr const char* kName = "graft_adamw_step";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_pointers(kName, {{"options", options}})) return status;
  const auto is_beta = [](float beta) { return beta >= 0.0f && beta < 1.0f; };
  if (options->step < 1 || !is_beta(options->beta1) || !is_beta(options->beta2) ||
      !(options->eps >= 0.0f)) {
    return fail(GRAFT_BAD_ARGUMENT, kName,
                "step %lld, beta1 %g, beta2 %g, eps %g; expected step >= 1, betas in [0, 1), eps "
                ">= 0",
                static_cast<long long>(options->step), static_cast<double>(options->beta1),
                static_cast<double>(options->beta2), static_cast<double>(options->eps));
  }
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"param", param}, {"grad", grad}, {"m", m}, {"v", v}})) {
    return status;
  }
  const double lr = static_cast<double>(options->lr);
  const double beta1 = static_cast<double>(options->beta1);
  const double beta2 = static_cast<double>(options->beta2);
  const double step = static_cast<double>(options->step);
  AdamFactors factors;
  factors.grad_scale = options->grad_scale;
  factors.decay = static_cast<float>(1.0 - lr * static_cast<double>(options->weight_decay));
  factors.beta1 = options->beta1;
  factors.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  factors.beta2 = options->beta2;
  factors.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  factors.step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, step)));
  factors.bias2_root = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, step)));
  factors.eps = options->eps;
  const Table& isa = table();
  for_pieces(count, kTile, 4 * count, [&](int64_t begin, int64_t end) {
    isa.adamw(param + begin, grad + begin, m + begin, v + begin, end - begin, factors);
  });
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
