#include "kernels/dora.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"

namespace graft::kernels {
namespace {

constexpr int64_t kRowPiece = 16;
constexpr int64_t kColumnPiece = 64;
// Rows of one partial sum (dora.h).
constexpr int64_t kRowTile = 64;

// Rows [begin, end) of columns [0, count), summed one after another: sum += dy h; dh = gain dy.
void add_tile(const float* dy,
              const float* h,
              const float* gain,
              int64_t rows,
              int64_t dim,
              int64_t count,
              float* dh,
              float* sum) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const float d = dy[row * dim + i];
      sum[i] += d * h[row * dim + i];
      dh[row * dim + i] = gain[i] * d;
    }
  }
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_gain_forward(const float* h,
                                           const float* gain,
                                           int64_t rows,
                                           int64_t dim,
                                           int adds,
                                           float* y,
                                           graft_device device,
                                           graft_stream stream) {
  constexpr const char* kName = "graft_gain_forward";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"h", h}, {"gain", gain}, {"y", y}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.gain_forward(h, gain, rows, dim, adds, y, stream);
    });
  }
  for_pieces(rows, kRowPiece, rows * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const from = h + row * dim;
      float* const to = y + row * dim;
      if (adds != 0) {
        for (int64_t i = 0; i < dim; ++i) to[i] += gain[i] * from[i];
      } else {
        for (int64_t i = 0; i < dim; ++i) to[i] = gain[i] * from[i];
      }
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_gain_backward(const float* dy,
                                            const float* h,
                                            const float* gain,
                                            const float* inverse_norm,
                                            int64_t rows,
                                            int64_t dim,
                                            float* dh,
                                            float* dmagnitude,
                                            graft_device device,
                                            graft_stream stream) {
  constexpr const char* kName = "graft_gain_backward";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"dy", dy},
                                                         {"h", h},
                                                         {"gain", gain},
                                                         {"inverse_norm", inverse_norm},
                                                         {"dh", dh},
                                                         {"dmagnitude", dmagnitude}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.gain_backward(dy, h, gain, inverse_norm, rows, dim, dh, dmagnitude, stream);
    });
  }
  for_pieces(dim, kColumnPiece, rows * dim, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    float total[kColumnPiece] = {};
    for (int64_t tile = 0; tile < rows; tile += kRowTile) {
      float sum[kColumnPiece] = {};
      const int64_t at = tile * dim + begin;
      add_tile(dy + at, h + at, gain + begin, std::min(kRowTile, rows - tile), dim, count, dh + at,
               sum);
      for (int64_t i = 0; i < count; ++i) total[i] += sum[i];
    }
    for (int64_t i = 0; i < count; ++i) {
      dmagnitude[begin + i] += inverse_norm[begin + i] * total[i];
    }
  });
  return GRAFT_OK;
}
