#include "kernels/elementwise.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kPiece = 16384;
// One hyperbolic tangent costs about as much as this many additions.
constexpr int64_t kTanhWork = 6;

graft_status check_cap(const char* function, float cap, int64_t count, graft_float_type type) {
  if (const graft_status status = check_counts(function, {{"count", count}})) return status;
  if (const graft_status status = check_element(function, type)) return status;
  if (!(cap > 0.0f && std::isfinite(cap))) {
    return fail(GRAFT_BAD_ARGUMENT, function, "cap is %g, expected a finite number above 0",
                static_cast<double>(cap));
  }
  return GRAFT_OK;
}

graft_status add(const char* function,
                 const Addition& call,
                 int64_t count,
                 graft_device device,
                 graft_stream stream) {
  if (const graft_status status = check_counts(function, {{"count", count}})) return status;
  if (const graft_status status = check_element(function, call.x_type)) return status;
  if (const graft_status status = check_element(function, call.y_type)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(function, {{"x", call.x}, {"y", call.y}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.addition(call, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, count,
             [&](int64_t begin, int64_t end) { isa.addition(call, begin, end); });
  return GRAFT_OK;
}

graft_status convert(const char* function,
                     const Conversion& call,
                     int64_t rows,
                     graft_device device,
                     graft_stream stream) {
  if (const graft_status status = check_element(function, call.from_type)) return status;
  if (const graft_status status = check_element(function, call.to_type)) return status;
  if (const graft_status status =
          check_counts(function, {{"rows", rows},
                                  {"columns", call.columns},
                                  {"from_stride", call.from_stride, call.columns},
                                  {"to_stride", call.to_stride, call.columns}})) {
    return status;
  }
  if (rows == 0 || call.columns == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"from", call.from}, {"to", call.to}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.conversion(call, rows, stream);
    });
  }
  // Long rows are cut: a piece is some rows, or a part of one.
  const Table& isa = table();
  const int64_t parts = (call.columns + kPiece - 1) / kPiece;
  const int64_t rows_of_piece = parts > 1 ? 1 : std::max<int64_t>(1, kPiece / call.columns);
  for_pieces(rows * parts, rows_of_piece, rows * call.columns, [&](int64_t begin, int64_t end) {
    if (parts == 1) return isa.conversion(call, begin, end);
    Conversion part = call;
    const int64_t row = begin / parts, column = begin % parts * kPiece;
    part.from = static_cast<const char*>(call.from) +
                (row * call.from_stride + column) * size_of(call.from_type);
    part.to = static_cast<char*>(call.to) + (row * call.to_stride + column) * size_of(call.to_type);
    part.columns = std::min(kPiece, call.columns - column);
    isa.conversion(part, 0, 1);
  });
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_add(void* x,
                                  const void* y,
                                  int64_t count,
                                  graft_float_type type,
                                  graft_device device,
                                  graft_stream stream) {
  return add("graft_add", {x, y, type, type}, count, device, stream);
}

extern "C" graft_status graft_accumulate(void* x,
                                         graft_float_type x_type,
                                         const void* y,
                                         graft_float_type y_type,
                                         int64_t count,
                                         graft_device device,
                                         graft_stream stream) {
  return add("graft_accumulate", {x, y, x_type, y_type}, count, device, stream);
}

extern "C" graft_status graft_scale(void* x,
                                    float s,
                                    int64_t count,
                                    graft_float_type type,
                                    graft_device device,
                                    graft_stream stream) {
  constexpr const char* kName = "graft_scale";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  return convert(kName, {x, x, type, type, count, count, count, s}, 1, device, stream);
}

extern "C" graft_status graft_convert(const void* from,
                                      graft_float_type from_type,
                                      int64_t from_stride,
                                      void* to,
                                      graft_float_type to_type,
                                      int64_t to_stride,
                                      int64_t rows,
                                      int64_t columns,
                                      float scale,
                                      graft_device device,
                                      graft_stream stream) {
  return convert("graft_convert",
                 {from, to, from_type, to_type, columns, from_stride, to_stride, scale}, rows,
                 device, stream);
}

extern "C" graft_status graft_softcap_forward(void* x,
                                              float cap,
                                              int64_t count,
                                              graft_float_type type,
                                              graft_device device,
                                              graft_stream stream) {
  constexpr const char* kName = "graft_softcap_forward";
  if (const graft_status status = check_cap(kName, cap, count, type)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.softcap_forward(x, type, cap, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, kTanhWork * count,
             [&](int64_t begin, int64_t end) { isa.softcap_forward(x, type, cap, begin, end); });
  return GRAFT_OK;
}

extern "C" graft_status graft_softcap_backward(const void* y,
                                               float cap,
                                               int64_t count,
                                               void* dx,
                                               graft_float_type type,
                                               graft_device device,
                                               graft_stream stream) {
  constexpr const char* kName = "graft_softcap_backward";
  if (const graft_status status = check_cap(kName, cap, count, type)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"y", y}, {"dx", dx}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.softcap_backward(y, dx, type, cap, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, 2 * count, [&](int64_t begin, int64_t end) {
    isa.softcap_backward(y, dx, type, cap, begin, end);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_dropout_mask_apply(void* x,
                                                 int64_t rows,
                                                 int64_t dim,
                                                 const int64_t* row_index,
                                                 uint64_t seed,
                                                 uint64_t stream,
                                                 float p,
                                                 graft_float_type type,
                                                 graft_device device,
                                                 graft_stream device_stream) {
  constexpr const char* kName = "graft_dropout_mask_apply";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim}})) {
    return status;
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (!(p >= 0.0f && p < 1.0f)) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "p is %g, expected 0 <= p < 1", static_cast<double>(p));
  }
  if (rows == 0 || dim == 0 || p == 0.0f) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}, {"row_index", row_index}})) {
    return status;
  }
  // p has 24 bits, so p * 2^32 is a whole number for p >= 2^-8 and rounds down below.
  const uint32_t threshold = static_cast<uint32_t>(static_cast<double>(p) * 4294967296.0);
  const float keep_scale = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
  const DropoutRows call{x, type, dim, row_index, seed, stream, threshold, keep_scale};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.dropout(call, rows, device_stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, 16, 4 * rows * dim,
             [&](int64_t begin, int64_t end) { isa.dropout(call, begin, end); });
  return GRAFT_OK;
}
