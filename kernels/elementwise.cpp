#include "kernels/elementwise.h"

#include "kernels/check.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace {

constexpr int64_t kPiece = 16384;

}  // namespace

using namespace graft::kernels;

extern "C" graft_status graft_add(float* x, const float* y, int64_t count) {
  constexpr const char* kName = "graft_add";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}, {"y", y}})) return status;
  const Table& isa = table();
  for_pieces(count, kPiece, count,
             [&](int64_t begin, int64_t end) { isa.add(x + begin, y + begin, end - begin); });
  return GRAFT_OK;
}

extern "C" graft_status graft_scale(float* x, float s, int64_t count) {
  constexpr const char* kName = "graft_scale";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", x}})) return status;
  const Table& isa = table();
  for_pieces(count, kPiece, count,
             [&](int64_t begin, int64_t end) { isa.scale(x + begin, s, end - begin); });
  return GRAFT_OK;
}

extern "C" graft_status graft_dropout_mask_apply(float* x,
                                                 int64_t rows,
                                                 int64_t dim,
                                                 const int64_t* row_index,
                                                 uint64_t seed,
                                                 uint64_t stream,
                                                 float p) {
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
  const Table& isa = table();
  for_pieces(rows, 16, 4 * rows * dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      isa.dropout_row(x + row * dim, dim, row_index[row], seed, stream, threshold, keep_scale);
    }
  });
  return GRAFT_OK;
}
