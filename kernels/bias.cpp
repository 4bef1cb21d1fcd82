#include "kernels/bias.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kRowPiece = 16;
constexpr int64_t kColumnPiece = 64;
// Rows of one partial sum (bias.h).
constexpr int64_t kRowTile = 64;

void add(const Table& isa, float* x, const float* y, int64_t count) {
  isa.addition({x, y, GRAFT_F32, GRAFT_F32}, 0, count);
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_bias_add(float* y,
                                       const float* bias,
                                       int64_t rows,
                                       int64_t dim,
                                       graft_device device,
                                       graft_stream stream) {
  constexpr const char* kName = "graft_bias_add";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"y", y}, {"bias", bias}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.bias_add(y, bias, rows, dim, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) add(isa, y + row * dim, bias, dim);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_bias_backward(const float* dy,
                                            int64_t rows,
                                            int64_t dim,
                                            float* dbias,
                                            graft_device device,
                                            graft_stream stream) {
  constexpr const char* kName = "graft_bias_backward";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"dy", dy}, {"dbias", dbias}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.bias_backward(dy, rows, dim, dbias, stream);
    });
  }
  const Table& isa = table();
  for_pieces(dim, kColumnPiece, rows * dim, [&](int64_t begin, int64_t end) {
    float sum[kColumnPiece];
    for (int64_t tile = 0; tile < rows; tile += kRowTile) {
      std::fill_n(sum, kColumnPiece, 0.0f);
      for (int64_t row = tile; row < std::min(tile + kRowTile, rows); ++row) {
        add(isa, sum, dy + row * dim + begin, end - begin);
      }
      add(isa, dbias + begin, sum, end - begin);
    }
  });
  return GRAFT_OK;
}
