#include "kernels/rmsnorm.h"

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kRowPiece = 16;
constexpr int64_t kColumnPiece = 64;

struct Rows {
  int64_t rows, dim, stride;
  graft_rmsnorm_kind kind;
  graft_float_type type;
};

graft_status check_rows(const char* function, const Rows& call) {
  if (const graft_status status = check_counts(
          function,
          {{"rows", call.rows}, {"dim", call.dim, 1}, {"stride", call.stride, call.dim}})) {
    return status;
  }
  if (call.kind < GRAFT_RMSNORM_WEIGHT || call.kind > GRAFT_RMSNORM_WEIGHT_ONCE) {
    return fail(GRAFT_BAD_ARGUMENT, function, "kind is %d, expected 0, 1 or 2",
                static_cast<int>(call.kind));
  }
  return check_element(function, call.type);
}

// All forward functions; `added` is NULL for the plain ones.
graft_status forward(const char* function,
                     const NormForward& call,
                     int64_t rows,
                     graft_device device,
                     graft_stream stream) {
  if (const graft_status status =
          check_rows(function, {rows, call.dim, call.out_stride, call.kind, call.type})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          function,
          {{"x", call.x}, {"weight", call.weight}, {"out", call.out}, {"inv_rms", call.inv_rms}})) {
    return status;
  }
  if (call.out == call.x &&
      (call.added != nullptr || call.out_stride != call.dim || call.out_type != call.type)) {
    return fail(GRAFT_BAD_ARGUMENT, function, "out and x are the same array");
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.rmsnorm_forward(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * call.dim,
             [&](int64_t begin, int64_t end) { isa.rmsnorm_forward(call, begin, end); });
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_rmsnorm_forward(const void* x,
                                              const float* weight,
                                              float eps,
                                              int64_t rows,
                                              int64_t dim,
                                              void* out,
                                              float* inv_rms,
                                              graft_rmsnorm_kind kind,
                                              graft_float_type type,
                                              int64_t out_stride,
                                              graft_device device,
                                              graft_stream stream) {
  if (out_stride == 0) out_stride = dim;
  return forward("graft_rmsnorm_forward",
                 {nullptr, x, weight, eps, kind, type, type, dim, out_stride, out, inv_rms}, rows,
                 device, stream);
}

extern "C" graft_status graft_rmsnorm_forward_bf16(const float* x,
                                                   const float* weight,
                                                   float eps,
                                                   int64_t rows,
                                                   int64_t dim,
                                                   uint16_t* out,
                                                   float* inv_rms,
                                                   graft_rmsnorm_kind kind,
                                                   int64_t out_stride,
                                                   graft_device device,
                                                   graft_stream stream) {
  if (out_stride == 0) out_stride = dim;
  return forward(
      "graft_rmsnorm_forward_bf16",
      {nullptr, x, weight, eps, kind, GRAFT_F32, GRAFT_BF16, dim, out_stride, out, inv_rms}, rows,
      device, stream);
}

extern "C" graft_status graft_add_rmsnorm_forward(void* x,
                                                  const void* y,
                                                  const float* weight,
                                                  float eps,
                                                  int64_t rows,
                                                  int64_t dim,
                                                  void* out,
                                                  float* inv_rms,
                                                  graft_rmsnorm_kind kind,
                                                  graft_float_type type,
                                                  int64_t out_stride,
                                                  graft_device device,
                                                  graft_stream stream) {
  constexpr const char* kName = "graft_add_rmsnorm_forward";
  if (out_stride == 0) out_stride = dim;
  if (rows > 0) {
    if (const graft_status status = check_pointers(kName, {{"y", y}})) return status;
  }
  return forward(kName, {y, x, weight, eps, kind, type, type, dim, out_stride, out, inv_rms}, rows,
                 device, stream);
}

extern "C" graft_status graft_rmsnorm_backward(const void* dout,
                                               const void* x,
                                               const float* weight,
                                               const float* inv_rms,
                                               int64_t rows,
                                               int64_t dim,
                                               void* dx,
                                               float* dweight,
                                               graft_rmsnorm_kind kind,
                                               graft_float_type type,
                                               int64_t dout_stride,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_rmsnorm_backward";
  if (dout_stride == 0) dout_stride = dim;
  if (const graft_status status = check_rows(kName, {rows, dim, dout_stride, kind, type})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName,
          {{"dout", dout}, {"x", x}, {"weight", weight}, {"inv_rms", inv_rms}, {"dx", dx}})) {
    return status;
  }
  const NormBackward call{dout, x, weight, inv_rms, kind, type, dim, dout_stride, dx, dweight};
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
