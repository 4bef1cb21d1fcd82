#include "kernels/adamw_parts.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/elementwise.h"

namespace graft::kernels {
namespace {

// Elements of one partial sum (optimizer.h).
constexpr int64_t kTile = GRAFT_SQUARES_TILE;

int64_t tile_count(const graft_adamw_part* parts, int64_t part_count) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < part_count; ++i) tiles += (parts[i].count + kTile - 1) / kTile;
  return tiles;
}

graft_status check_copy(const char* function, const graft_adamw_part& part) {
  if (part.copy == nullptr) return GRAFT_OK;
  if (const graft_status status = check_element(function, part.copy_type)) return status;
  if (const graft_status status =
          check_counts(function, {{"copy_columns", part.copy_columns, 1},
                                  {"copy_stride", part.copy_stride, part.copy_columns}})) {
    return status;
  }
  if (part.count % part.copy_columns == 0) return GRAFT_OK;
  return fail(GRAFT_BAD_SHAPE, function, "count is %lld, expected whole rows of %lld",
              static_cast<long long>(part.count), static_cast<long long>(part.copy_columns));
}

graft_status check_parts(const char* function, const graft_adamw_part* parts, int64_t part_count) {
  if (const graft_status status = check_counts(function, {{"part_count", part_count}})) {
    return status;
  }
  if (part_count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(function, {{"parts", parts}})) return status;
  for (int64_t i = 0; i < part_count; ++i) {
    if (const graft_status status = check_counts(function, {{"count", parts[i].count}})) {
      return status;
    }
    if (parts[i].count == 0) continue;
    if (const graft_status status = check_pointers(function, {{"param", parts[i].param},
                                                              {"grad", parts[i].grad},
                                                              {"m", parts[i].m},
                                                              {"v", parts[i].v}})) {
      return status;
    }
    if (const graft_status status = check_copy(function, parts[i])) return status;
  }
  return GRAFT_OK;
}

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

AdamTensors device_call(const graft_adamw_part* parts,
                        int64_t part_count,
                        const graft_adamw& options,
                        float max_norm,
                        float* result,
                        void* workspace) {
  const double beta1 = static_cast<double>(options.beta1);
  const double beta2 = static_cast<double>(options.beta2);
  const double step = static_cast<double>(options.step);
  AdamTensors call{};
  call.parts = parts;
  call.count = part_count;
  call.beta1 = options.beta1;
  call.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  call.beta2 = options.beta2;
  call.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  call.bias1 = 1.0 - std::pow(beta1, step);
  call.bias2_root = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, step)));
  call.eps = options.eps;
  call.grad_scale = options.grad_scale;
  call.max_norm = max_norm;
  call.result = result;
  call.squares = static_cast<double*>(workspace);
  return call;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" size_t graft_adamw_parts_workspace_bytes(const graft_adamw_part* parts,
                                                    int64_t part_count) {
  if (check_parts("graft_adamw_parts_workspace_bytes", parts, part_count) != GRAFT_OK) return 0;
  return static_cast<size_t>(tile_count(parts, part_count)) * sizeof(double);
}

extern "C" graft_status graft_adamw_parts_step(const graft_adamw_part* parts,
                                               int64_t part_count,
                                               const graft_adamw* options,
                                               float max_norm,
                                               float* result,
                                               void* workspace,
                                               size_t workspace_bytes,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_adamw_parts_step";
  if (const graft_status status = check_parts(kName, parts, part_count)) return status;
  if (const graft_status status = check_options(kName, options)) return status;
  if (const graft_status status = check_pointers(kName, {{"result", result}})) return status;
  const int64_t tiles = tile_count(parts, part_count);
  const size_t needed = static_cast<size_t>(tiles) * sizeof(double);
  if (workspace_bytes < needed || (needed > 0 && workspace == nullptr)) {
    return fail(GRAFT_BAD_SHAPE, kName, "workspace has %zu bytes, expected %zu", workspace_bytes,
                needed);
  }
  if (device != GRAFT_CPU) {
    const AdamTensors call = device_call(parts, part_count, *options, max_norm, result, workspace);
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.adamw_parts(call, stream);
    });
  }
  double sum = 0.0, *squares = static_cast<double*>(workspace);
  for (int64_t i = 0; i < part_count; ++i) {
    for (int64_t begin = 0; begin < parts[i].count; begin += kTile) {
      const int64_t left = parts[i].count - begin;
      if (const graft_status status =
              graft_sum_squares(parts[i].grad + begin, left < kTile ? left : kTile, squares)) {
        return status;
      }
      sum += *squares++;
    }
  }
  const double scale = static_cast<double>(options->grad_scale);
  const double norm = std::fabs(scale) * std::sqrt(sum), most = static_cast<double>(max_norm);
  const double factor = most > 0.0 && norm > most ? scale * (most / norm) : scale;
  result[0] = static_cast<float>(norm);
  result[1] = std::isfinite(norm) ? static_cast<float>(factor) : 0.0f;
  if (!std::isfinite(norm)) return GRAFT_OK;
  graft_adamw own = *options;
  own.grad_scale = result[1];
  for (int64_t i = 0; i < part_count; ++i) {
    own.lr = parts[i].lr;
    own.weight_decay = parts[i].weight_decay;
    if (const graft_status status = graft_adamw_step(parts[i].param, parts[i].grad, parts[i].m,
                                                     parts[i].v, parts[i].count, &own)) {
      return status;
    }
    if (parts[i].copy == nullptr || parts[i].count == 0) continue;
    if (const graft_status status = graft_convert(
            parts[i].param, GRAFT_F32, parts[i].copy_columns, parts[i].copy, parts[i].copy_type,
            parts[i].copy_stride, parts[i].count / parts[i].copy_columns, parts[i].copy_columns,
            parts[i].copy_scale)) {
      return status;
    }
  }
  return GRAFT_OK;
}
