#include "kernels/rmsnorm.h"

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kRowPiece = 16;
constexpr int64_t kColumnPiece = 64;

graft_status check_rows(const char* function, int64_t rows, int64_t dim, graft_rmsnorm_kind kind) {
  if (const graft_status status = check_counts(function, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (kind != GRAFT_RMSNORM_WEIGHT && kind != GRAFT_RMSNORM_ONE_PLUS_WEIGHT) {
    return fail(GRAFT_BAD_ARGUMENT, function, "kind is %d, expected 0 or 1",
                static_cast<int>(kind));
  }
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_rmsnorm_forward(const float* x,
                                              const float* weight,
                                              float eps,
                                              int64_t rows,
                                              int64_t dim,
                                              float* out,
                                              float* inv_rms,
                                              graft_rmsnorm_kind kind,
                                              graft_device device,
                                              graft_stream stream) {
  constexpr const char* kName = "graft_rmsnorm_forward";
  if (const graft_status status = check_rows(kName, rows, dim, kind)) return status;
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"x", x}, {"weight", weight}, {"out", out}, {"inv_rms", inv_rms}})) {
    return status;
  }
  const NormForward call{nullptr, x, weight, eps, kind, dim, out, inv_rms};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.rmsnorm_forward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * dim,
             [&](int64_t begin, int64_t end) { isa.rmsnorm_forward(call, begin, end); });
  return GRAFT_OK;
}

extern "C" graft_status graft_add_rmsnorm_forward(float* x,
                                                  const float* y,
                                                  const float* weight,
                                                  float eps,
                                                  int64_t rows,
                                                  int64_t dim,
                                                  float* out,
                                                  float* inv_rms,
                                                  graft_rmsnorm_kind kind,
                                                  graft_device device,
                                                  graft_stream stream) {
  constexpr const char* kName = "graft_add_rmsnorm_forward";
  if (const graft_status status = check_rows(kName, rows, dim, kind)) return status;
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"x", x}, {"y", y}, {"weight", weight}, {"out", out}, {"inv_rms", inv_rms}})) {
    return status;
  }
  if (out == x) return fail(GRAFT_BAD_ARGUMENT, kName, "out and x are the same array");
  const NormForward call{y, x, weight, eps, kind, dim, out, inv_rms};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.rmsnorm_forward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, 2 * rows * dim, [&](int64_t begin, int64_t end) {
    isa.add(x + begin * dim, y + begin * dim, (end - begin) * dim);
    isa.rmsnorm_forward(call, begin, end);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_rmsnorm_backward(const float* dout,
                                               const float* x,
                                               const float* weight,
                                               const float* inv_rms,
                                               int64_t rows,
                                               int64_t dim,
                                               float* dx,
                                               float* dweight,
                                               graft_rmsnorm_kind kind,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_rmsnorm_backward";
  if (const graft_status status = check_rows(kName, rows, dim, kind)) return status;
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName,
          {{"dout", dout}, {"x", x}, {"weight", weight}, {"inv_rms", inv_rms}, {"dx", dx}})) {
    return status;
  }
  const NormBackward call{dout, x, weight, inv_rms, kind, dim, dx, dweight};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.rmsnorm_backward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * dim,
             [&](int64_t begin, int64_t end) { isa.rmsnorm_backward(call, begin, end); });
  if (dweight != nullptr) {
    for_pieces(dim, kColumnPiece, rows * dim, [&](int64_t begin, int64_t end) {
      isa.rmsnorm_weight_gradient(call, rows, begin, end);
    });
  }
  return GRAFT_OK;
}
