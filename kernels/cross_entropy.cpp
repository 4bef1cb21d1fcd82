#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/gemm.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// Parts of the workspace for one chunk; every array begins on a cache line.
struct HeadChunk {
  float *x, *logits, *loss, *weight;
  int32_t* labels;
  int64_t* rows;  // of the tokens
  uint8_t* correct;
};

int64_t line(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// The chunk's arrays in `memory`, and their size; `memory` may be NULL.
int64_t lay_out(char* memory, int64_t dim, int64_t vocab, int64_t rows, HeadChunk* chunk) {
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using Value = std::remove_reference_t<decltype(*pointer)>;
    if (memory != nullptr) pointer = reinterpret_cast<Value*>(memory + used);
    used += line(count * static_cast<int64_t>(sizeof(Value)));
  };
  take(chunk->x, rows * dim);  // the gradient takes its place
  take(chunk->logits, rows * vocab);
  take(chunk->loss, rows);
  take(chunk->weight, rows);
  take(chunk->labels, rows);
  take(chunk->rows, rows);
  take(chunk->correct, rows);
  return used;
}

graft_status check_head(const char* function, const graft_head& head, const void* result) {
  if (const graft_status status = check_counts(function, {{"tokens", head.tokens},
                                                          {"dim", head.dim, 1},
                                                          {"vocab", head.vocab, 1},
                                                          {"chunk_rows", head.chunk_rows, 1}})) {
    return status;
  }
  if (const graft_status status = check_pointers(function, {{"result", result}})) return status;
  if (head.tokens == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"x", head.x}, {"w", head.w}, {"labels", head.labels}})) {
    return status;
  }
  for (int64_t t = 0; t < head.tokens; ++t) {
    const int32_t label = head.labels[t];
    if (label != GRAFT_IGNORED && (label < 0 || label >= head.vocab)) {
      return fail(GRAFT_BAD_ARGUMENT, function, "labels[%lld] is %d, expected 0..%lld or %d",
                  static_cast<long long>(t), label, static_cast<long long>(head.vocab - 1),
                  GRAFT_IGNORED);
    }
  }
  return GRAFT_OK;
}

// Loss and gradient of the chunk's `rows` compact rows.
graft_status chunk_loss(const graft_head& head, const HeadChunk& chunk, int64_t rows, bool dx) {
  if (const graft_status status =
          graft_gemm_f32(GRAFT_N, GRAFT_T, rows, head.vocab, head.dim, 1.0f, chunk.x, head.dim,
                         head.w, head.dim, 0.0f, chunk.logits, head.vocab)) {
    return status;
  }
  if (const graft_status status = graft_cross_entropy(
          chunk.logits, chunk.labels, chunk.weight, rows, head.vocab, head.scale, chunk.loss,
          chunk.correct, dx ? GRAFT_CE_WITH_GRADIENT : GRAFT_CE_LOSS_ONLY)) {
    return status;
  }
  if (!dx) return GRAFT_OK;
  return graft_gemm_f32(GRAFT_N, GRAFT_N, rows, head.dim, head.vocab, 1.0f, chunk.logits,
                        head.vocab, head.w, head.dim, 0.0f, chunk.x, head.dim);
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_cross_entropy(void* logits,
                                            const int32_t* labels,
                                            const float* weight,
                                            int64_t rows,
                                            int64_t vocab,
                                            float scale,
                                            float* row_loss,
                                            uint8_t* row_correct,
                                            graft_ce_mode mode,
                                            graft_float_type type,
                                            float softcap,
                                            graft_device device,
                                            graft_stream stream) {
  constexpr const char* kName = "graft_cross_entropy";
  if (const graft_status status = check_counts(kName, {{"rows", rows}, {"vocab", vocab, 1}})) {
    return status;
  }
  if (mode != GRAFT_CE_LOSS_ONLY && mode != GRAFT_CE_WITH_GRADIENT) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "mode is %d, expected 0 or 1", static_cast<int>(mode));
  }
  if (const graft_status status = check_element(kName, type)) return status;
  if (!(softcap >= 0.0f && std::isfinite(softcap))) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "softcap is %g, expected a finite number from 0",
                static_cast<double>(softcap));
  }
  if (rows == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"logits", logits}, {"labels", labels}, {"row_loss", row_loss}})) {
    return status;
  }
  const CrossEntropyRows call{logits,  logits,   type,        type,
                              labels,  weight,   vocab,       scale,
                              softcap, row_loss, row_correct, mode == GRAFT_CE_WITH_GRADIENT};
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.cross_entropy(call, rows, stream);
    });
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (labels[row] < 0 || labels[row] >= vocab) {
      return fail(GRAFT_BAD_ARGUMENT, kName, "labels[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(row), labels[row], static_cast<long long>(vocab - 1));
    }
  }
  const Table& isa = table();
  // An exponential costs about as much as four additions.
  for_pieces(rows, 4, 4 * rows * vocab,
             [&](int64_t begin, int64_t end) { isa.cross_entropy(call, begin, end); });
  return GRAFT_OK;
}

extern "C" size_t graft_head_workspace_bytes(int64_t dim, int64_t vocab, int64_t chunk_rows) {
  if (dim < 1 || vocab < 1 || chunk_rows < 1) return 0;
  HeadChunk chunk;
  return static_cast<size_t>(lay_out(nullptr, dim, vocab, chunk_rows, &chunk));
}

extern "C" graft_status graft_head_loss(const graft_head* head,
                                        float* row_loss,
                                        float* dx,
                                        graft_head_result* result,
                                        void* workspace,
                                        size_t workspace_bytes) {
  constexpr const char* kName = "graft_head_loss";
  if (const graft_status status = check_pointers(kName, {{"head", head}})) return status;
  if (const graft_status status = check_head(kName, *head, result)) return status;
  *result = {};
  if (head->tokens == 0) return GRAFT_OK;
  const size_t needed = graft_head_workspace_bytes(head->dim, head->vocab, head->chunk_rows);
  if (workspace_bytes < needed) {
    return fail(GRAFT_BAD_SHAPE, kName, "the workspace has %zu bytes, expected %zu",
                workspace_bytes, needed);
  }
  if (const graft_status status = check_pointers(kName, {{"workspace", workspace}})) return status;
  HeadChunk chunk;
  lay_out(static_cast<char*>(workspace), head->dim, head->vocab, head->chunk_rows, &chunk);
  const int64_t dim = head->dim;
  for (int64_t token = 0; token < head->tokens;) {
    int64_t rows = 0;
    for (; token < head->tokens && rows < head->chunk_rows; ++token) {
      if (head->labels[token] == GRAFT_IGNORED) {
        if (row_loss != nullptr) row_loss[token] = 0.0f;
        if (dx != nullptr) std::fill_n(dx + token * dim, dim, 0.0f);
        continue;
      }
      std::copy_n(head->x + token * dim, dim, chunk.x + rows * dim);
      chunk.labels[rows] = head->labels[token];
      chunk.weight[rows] = head->weight != nullptr ? head->weight[token] : 1.0f;
      chunk.rows[rows] = token;
      ++rows;
    }
    if (const graft_status status = chunk_loss(*head, chunk, rows, dx != nullptr)) return status;
    for (int64_t row = 0; row < rows; ++row) {
      const double weight = static_cast<double>(chunk.weight[row]);
      result->loss_sum += weight * static_cast<double>(chunk.loss[row]);
      result->weight_sum += weight;
      result->correct += chunk.correct[row];
      if (row_loss != nullptr) row_loss[chunk.rows[row]] = chunk.loss[row];
      if (dx != nullptr) std::copy_n(chunk.x + row * dim, dim, dx + chunk.rows[row] * dim);
    }
    result->trained += rows;
  }
  return GRAFT_OK;
}
