#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kColumnPiece = 64;

graft_status check_ids(const char* function, const int32_t* ids, int64_t tokens, int64_t vocab) {
  for (int64_t token = 0; token < tokens; ++token) {
    if (ids[token] < 0 || ids[token] >= vocab) {
      return fail(GRAFT_BAD_ARGUMENT, function, "ids[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(token), ids[token], static_cast<long long>(vocab - 1));
    }
  }
  return GRAFT_OK;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_embedding_forward(const int32_t* ids,
                                                int64_t tokens,
                                                const float* table_values,
                                                int64_t vocab,
                                                int64_t dim,
                                                float* out,
                                                graft_device device,
                                                graft_stream stream) {
  constexpr const char* kName = "graft_embedding_forward";
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens}, {"vocab", vocab, 1}, {"dim", dim, 1}})) {
    return status;
  }
  if (tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"ids", ids}, {"table", table_values}, {"out", out}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.embedding_forward(ids, tokens, table_values, vocab, dim, out, stream);
    });
  }
  if (const graft_status status = check_ids(kName, ids, tokens, vocab)) return status;
  for_pieces(tokens, 32, tokens * dim, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float* row = table_values + ids[token] * dim;
      std::copy(row, row + dim, out + token * dim);
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_embedding_backward(const float* dout,
                                                 const int32_t* ids,
                                                 int64_t tokens,
                                                 int64_t vocab,
                                                 int64_t dim,
                                                 float* dtable,
                                                 graft_device device,
                                                 graft_stream stream) {
  constexpr const char* kName = "graft_embedding_backward";
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens}, {"vocab", vocab, 1}, {"dim", dim, 1}})) {
    return status;
  }
  if (tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"dout", dout}, {"ids", ids}, {"dtable", dtable}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.embedding_backward(dout, ids, tokens, vocab, dim, dtable, stream);
    });
  }
  if (const graft_status status = check_ids(kName, ids, tokens, vocab)) return status;
  const Table& isa = table();
  // Threads share columns, not tokens: two tokens may have one id.
  for_pieces(dim, kColumnPiece, tokens * dim, [&](int64_t begin, int64_t end) {
    for (int64_t token = 0; token < tokens; ++token) {
      isa.add(dtable + ids[token] * dim + begin, dout + token * dim + begin, end - begin);
    }
  });
  return GRAFT_OK;
}
