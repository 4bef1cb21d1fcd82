#include "kernels/swiglu.h"

#include "kernels/check.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace {

// 16 KiB per array: pieces of several arrays stay in the first-level cache.
constexpr int64_t kPiece = 4096;
// One sigmoid costs about as much as this many additions.
constexpr int64_t kSigmoidWork = 4;

}  // namespace

using namespace graft::kernels;

extern "C" graft_status graft_swiglu_forward(const float* gate,
                                             const float* up,
                                             int64_t count,
                                             float* out) {
  constexpr const char* kName = "graft_swiglu_forward";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"gate", gate}, {"up", up}, {"out", out}})) {
    return status;
  }
  const Table& isa = table();
  for_pieces(count, kPiece, kSigmoidWork * count, [&](int64_t begin, int64_t end) {
    isa.swiglu_forward(gate + begin, up + begin, end - begin, out + begin);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_swiglu_backward(const float* dout,
                                              const float* gate,
                                              const float* up,
                                              int64_t count,
                                              float* dgate,
                                              float* dup) {
  constexpr const char* kName = "graft_swiglu_backward";
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(
          kName, {{"dout", dout}, {"gate", gate}, {"up", up}, {"dgate", dgate}, {"dup", dup}})) {
    return status;
  }
  if (dgate == dup) return fail(GRAFT_BAD_ARGUMENT, kName, "dgate and dup are the same array");
  const Table& isa = table();
  for_pieces(count, kPiece, kSigmoidWork * count, [&](int64_t begin, int64_t end) {
    isa.swiglu_backward(dout + begin, gate + begin, up + begin, end - begin, dgate + begin,
                        dup + begin);
  });
  return GRAFT_OK;
}
