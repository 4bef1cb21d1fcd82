#include "kernels/elementwise.h"

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

graft_status check_cap(const char* function, float cap, int64_t count) {
  if (const graft_status status = check_counts(function, {{"count", count}})) return status;
  if (!(cap > 0.0f && std::isfinite(cap))) {
    return fail(GRAFT_BAD_ARGUMENT, function, "cap is %g, expected a finite number above 0",
                static_cast<double>(cap));
  }
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_add(
    float* x, const float* y, int64_t count, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_add";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}, {"y", y}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.add(x, y, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, count,
             [&](int64_t begin, int64_t end) { isa.add(x + begin, y + begin, end - begin); });
  return GRAFT_OK;
}

extern "C" graft_status graft_scale(
    float* x, float s, int64_t count, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_scale";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.scale(x, s, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, count,
             [&](int64_t begin, int64_t end) { isa.scale(x + begin, s, end - begin); });
  return GRAFT_OK;
}

extern "C" graft_status graft_softcap_forward(
    float* x, float cap, int64_t count, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_forward";
  if (const graft_status status = check_cap(kName, cap, count)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.softcap_forward(x, cap, count, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, kTanhWork * count,
             [&](int64_t begin, int64_t end) { isa.softcap_forward(x + begin, cap, end - begin); });
  return GRAFT_OK;
}

extern "C" graft_status graft_softcap_backward(
    const float* y, float cap, int64_t count, float* dx, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_softcap_backward";
  if (const graft_status status = check_cap(kName, cap, count)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"y", y}, {"dx", dx}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.softcap_backward(y, cap, count, dx, stream);
    });
  }
  const Table& isa = table();
  for_pieces(count, kPiece, 2 * count, [&](int64_t begin, int64_t end) {
    isa.softcap_backward(y + begin, cap, end - begin, dx + begin);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_dropout_mask_apply(float* x,
                                                 int64_t rows,
                                                 int64_t dim,
                                                 const int64_t* row_index,
                                                 uint64_t seed,
                                                 uint64_t stream,
                                                 float p,
                                                 graft_device device,
                                                 graft_stream device_stream) {
  constexpr const char* kName = "graft_dropout_mask_apply";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim}})) {
    return status;
  }
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
  const DropoutRows call{x, dim, row_index, seed, stream, threshold, keep_scale};
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
