#include "kernels/embedding.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kColumnPiece = 64;

graft_status check_ids(const char* function,
                       const int32_t* ids,
                       int64_t tokens,
                       int64_t vocab,
                       const char* name = "ids") {
  for (int64_t token = 0; token < tokens; ++token) {
    if (ids[token] < 0 || ids[token] >= vocab) {
      return fail(GRAFT_BAD_ARGUMENT, function, "%s[%lld] is %d, expected 0..%lld", name,
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
                                                const void* table_values,
                                                int64_t vocab,
                                                int64_t dim,
                                                void* out,
                                                graft_float_type type,
                                                graft_device device,
                                                graft_stream stream) {
  constexpr const char* kName = "graft_embedding_forward";
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens}, {"vocab", vocab, 1}, {"dim", dim, 1}})) {
    return status;
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"ids", ids}, {"table", table_values}, {"out", out}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    const EmbeddingRows call{ids, tokens, vocab, dim, type, table_values, nullptr, out, nullptr};
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.embedding_forward(call, stream);
    });
  }
  if (const graft_status status = check_ids(kName, ids, tokens, vocab)) return status;
  for_pieces(tokens, 32, tokens * dim, [&](int64_t begin, int64_t end) {
    const int64_t bytes = dim * size_of(type);
    for (int64_t token = begin; token < end; ++token) {
      std::memcpy(static_cast<char*>(out) + token * bytes,
                  static_cast<const char*>(table_values) + ids[token] * bytes,
                  static_cast<size_t>(bytes));
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_embedding_backward(const void* dout,
                                                 const int32_t* ids,
                                                 int64_t tokens,
                                                 int64_t vocab,
                                                 int64_t dim,
                                                 float* dtable,
                                                 graft_float_type type,
                                                 graft_device device,
                                                 graft_stream stream) {
  constexpr const char* kName = "graft_embedding_backward";
  if (const graft_status status =
          check_counts(kName, {{"tokens", tokens}, {"vocab", vocab, 1}, {"dim", dim, 1}})) {
    return status;
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"dout", dout}, {"ids", ids}, {"dtable", dtable}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    const EmbeddingRows call{ids, tokens, vocab, dim, type, nullptr, dout, nullptr, dtable};
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.embedding_backward(call, stream);
    });
  }
  if (const graft_status status = check_ids(kName, ids, tokens, vocab)) return status;
  const Table& isa = table();
  // Threads share columns, not tokens: two tokens may have one id.
  for_pieces(dim, kColumnPiece, tokens * dim, [&](int64_t begin, int64_t end) {
    for (int64_t token = 0; token < tokens; ++token) {
      const char* const from = static_cast<const char*>(dout) + token * dim * size_of(type);
      isa.addition({dtable + ids[token] * dim, from, GRAFT_F32, type}, begin, end);
    }
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_rows_scatter(const void* from,
                                           const int32_t* rows,
                                           int64_t count,
                                           int64_t tokens,
                                           int64_t dim,
                                           void* to,
                                           graft_float_type type,
                                           graft_device device,
                                           graft_stream stream) {
  constexpr const char* kName = "graft_rows_scatter";
  if (const graft_status status =
          check_counts(kName, {{"count", count}, {"tokens", tokens}, {"dim", dim, 1}})) {
    return status;
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"from", from}, {"rows", rows}, {"to", to}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.scatter_rows({from, rows, count, tokens, dim, type, to}, stream);
    });
  }
  if (const graft_status status = check_ids(kName, rows, count, tokens, "rows")) return status;
  const int64_t bytes = dim * size_of(type);
  for_pieces(count, 4, count * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(static_cast<char*>(to) + rows[i] * bytes,
                  static_cast<const char*>(from) + i * bytes, static_cast<size_t>(bytes));
    }
  });
  return GRAFT_OK;
}
