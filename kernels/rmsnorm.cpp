#include "kernels/rmsnorm.h"

#include "kernels/check.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace {

constexpr int64_t kRowPiece = 16;
constexpr int64_t kColumnPiece = 64;

}  // namespace

using namespace graft::kernels;

extern "C" graft_status graft_rmsnorm_forward(const float* x,
                                              const float* weight,
                                              float eps,
                                              int64_t rows,
                                              int64_t dim,
                                              float* out,
                                              float* inv_rms) {
  constexpr const char* kName = "graft_rmsnorm_forward";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"x", x}, {"weight", weight}, {"out", out}, {"inv_rms", inv_rms}})) {
    return status;
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * dim, [&](int64_t begin, int64_t end) {
    isa.rmsnorm_forward(x + begin * dim, weight, eps, end - begin, dim, out + begin * dim,
                        inv_rms + begin);
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
                                               float* dweight) {
  constexpr const char* kName = "graft_rmsnorm_backward";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"dim", dim, 1}})) {
    return status;
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName,
          {{"dout", dout}, {"x", x}, {"weight", weight}, {"inv_rms", inv_rms}, {"dx", dx}})) {
    return status;
  }
  const Table& isa = table();
  for_pieces(rows, kRowPiece, rows * dim, [&](int64_t begin, int64_t end) {
    isa.rmsnorm_backward(dout + begin * dim, x + begin * dim, weight, inv_rms + begin, end - begin,
                         dim, dx + begin * dim);
  });
  if (dweight != nullptr) {
    for_pieces(dim, kColumnPiece, rows * dim, [&](int64_t begin, int64_t end) {
      isa.rmsnorm_weight_gradient(dout, x, inv_rms, rows, dim, begin, end, dweight);
    });
  }
  return GRAFT_OK;
}
