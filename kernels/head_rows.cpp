// The frozen head's loss over named rows, on any device (cross_entropy.h).
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cross_entropy.h"
#include "kernels/device.h"
#include "kernels/embedding.h"
#include "kernels/parallel.h"
#include "kernels/product.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// The chunk's arrays in the workspace, each on a cache line of its own.
struct Chunk {
  void *x, *logits, *gradient;  // the gradient of x takes the place of x
};

size_t lay_out(const graft_head_rows& head, void* memory, Chunk* chunk) {
  char* const begin = static_cast<char*>(memory);
  size_t used = 0;
  const auto take = [&](int64_t columns, graft_float_type type) {
    void* const place = begin == nullptr ? nullptr : begin + used;
    used += static_cast<size_t>((head.chunk_rows * columns * size_of(type) + 63) / 64 * 64);
    return place;
  };
  chunk->x = take(head.dim, head.type);
  chunk->logits = take(head.vocab, head.logits_type);
  // Logits of another type than their gradient are not replaced by it.
  chunk->gradient = head.logits_type == head.type ? chunk->logits : take(head.vocab, head.type);
  return used;
}

graft_status check_sizes(const char* function, const graft_head_rows& head) {
  if (const graft_status status = check_counts(function, {{"count", head.count},
                                                          {"tokens", head.tokens},
                                                          {"dim", head.dim, 1},
                                                          {"vocab", head.vocab, 1},
                                                          {"chunk_rows", head.chunk_rows, 1}})) {
    return status;
  }
  if (const graft_status status = check_element(function, head.type)) return status;
  if (head.logits_type != GRAFT_F32 && head.logits_type != head.type) {
    return fail(GRAFT_BAD_ARGUMENT, function,
                "logits_type is %d, expected 0 (float32) or the type %d",
                static_cast<int>(head.logits_type), static_cast<int>(head.type));
  }
  if (!(head.softcap >= 0.0f && std::isfinite(head.softcap))) {
    return fail(GRAFT_BAD_ARGUMENT, function, "softcap is %g, expected a finite number from 0",
                static_cast<double>(head.softcap));
  }
  return GRAFT_OK;
}

graft_status check_rows(const char* function, const graft_head_rows& head) {
  for (int64_t i = 0; i < head.count; ++i) {
    if (head.rows[i] < 0 || head.rows[i] >= head.tokens) {
      return fail(GRAFT_BAD_ARGUMENT, function, "rows[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(i), head.rows[i], static_cast<long long>(head.tokens - 1));
    }
    if (head.labels[i] < 0 || head.labels[i] >= head.vocab) {
      return fail(GRAFT_BAD_ARGUMENT, function, "labels[%lld] is %d, expected 0..%lld",
                  static_cast<long long>(i), head.labels[i],
                  static_cast<long long>(head.vocab - 1));
    }
  }
  return GRAFT_OK;
}

// What a device has a kernel for and the processor a loop.
graft_status add_sums(const LossSums& call,
                      const char* function,
                      graft_device device,
                      graft_stream stream) {
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.loss_sums(call, stream);
    });
  }
  constexpr int64_t kLanes = 256;
  double lane[3][kLanes] = {};
  for (int64_t i = 0; i < call.count; ++i) {
    const double weight = call.weight != nullptr ? static_cast<double>(call.weight[i]) : 1.0;
    lane[0][i % kLanes] += weight * static_cast<double>(call.row_loss[i]);
    lane[1][i % kLanes] += weight;
    lane[2][i % kLanes] += call.correct[i];
  }
  for (int j = 0; j < 3; ++j) {
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) lane[j][i] += lane[j][i + width];
    }
    call.sums[j] += lane[j][0];
  }
  return GRAFT_OK;
}

graft_status cross_entropy_of(const CrossEntropyRows& call,
                              int64_t rows,
                              const char* function,
                              graft_device device,
                              graft_stream stream) {
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.cross_entropy(call, rows, stream);
    });
  }
  const Table& isa = table();
  for_pieces(rows, 4, 4 * rows * call.vocab,
             [&](int64_t begin, int64_t end) { isa.cross_entropy(call, begin, end); });
  return GRAFT_OK;
}

// A product whose A and B are rows of `type`.
graft_product product_of(const graft_head_rows& head, int64_t rows) {
  graft_product p{};
  p.m = rows;
  p.alpha = 1.0f;
  p.type = head.type;
  p.b = head.w;
  p.ldb = head.dim;
  return p;
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" size_t graft_head_rows_workspace_bytes(const graft_head_rows* head) {
  constexpr const char* kName = "graft_head_rows_workspace_bytes";
  if (check_pointers(kName, {{"head", head}}) != GRAFT_OK) return 0;
  if (check_sizes(kName, *head) != GRAFT_OK) return 0;
  Chunk chunk;
  return lay_out(*head, nullptr, &chunk);
}

extern "C" graft_status graft_head_rows_loss(const graft_head_rows* head,
                                             float* row_loss,
                                             uint8_t* row_correct,
                                             void* dx,
                                             double* sums,
                                             void* workspace,
                                             size_t workspace_bytes,
                                             graft_device device,
                                             graft_stream stream) {
  constexpr const char* kName = "graft_head_rows_loss";
  if (const graft_status status = check_pointers(kName, {{"head", head}})) return status;
  const graft_head_rows& h = *head;
  if (const graft_status status = check_sizes(kName, h)) return status;
  if (h.count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"x", h.x},
                                                         {"w", h.w},
                                                         {"rows", h.rows},
                                                         {"labels", h.labels},
                                                         {"row_loss", row_loss},
                                                         {"row_correct", row_correct},
                                                         {"workspace", workspace}})) {
    return status;
  }
  Chunk chunk;
  const size_t needed = lay_out(h, workspace, &chunk);
  if (workspace_bytes < needed) {
    return fail(GRAFT_BAD_SHAPE, kName, "the workspace has %zu bytes, expected %zu",
                workspace_bytes, needed);
  }
  if (device == GRAFT_CPU) {
    if (const graft_status status = check_rows(kName, h)) return status;
  }
  for (int64_t first = 0; first < h.count; first += h.chunk_rows) {
    const int64_t rows = std::min(h.chunk_rows, h.count - first);
    if (const graft_status status = graft_embedding_forward(
            h.rows + first, rows, h.x, h.tokens, h.dim, chunk.x, h.type, device, stream)) {
      return status;
    }
    graft_product logits = product_of(h, rows);
    logits.tb = GRAFT_T;
    logits.n = h.vocab;
    logits.k = h.dim;
    logits.a = chunk.x;
    logits.lda = h.dim;
    logits.c = chunk.logits;
    logits.ldc = h.vocab;
    logits.c_type = h.logits_type;
    if (const graft_status status = graft_multiply(&logits, device, stream)) return status;
    const CrossEntropyRows loss{chunk.logits,
                                chunk.gradient,
                                h.logits_type,
                                h.type,
                                h.labels + first,
                                h.weight != nullptr ? h.weight + first : nullptr,
                                h.vocab,
                                h.scale,
                                h.softcap,
                                row_loss + first,
                                row_correct + first,
                                dx != nullptr};
    if (const graft_status status = cross_entropy_of(loss, rows, kName, device, stream)) {
      return status;
    }
    if (dx == nullptr) continue;
    graft_product gradient = product_of(h, rows);
    gradient.n = h.dim;
    gradient.k = h.vocab;
    gradient.a = chunk.gradient;
    gradient.lda = h.vocab;
    gradient.c = chunk.x;
    gradient.ldc = h.dim;
    gradient.c_type = h.type;
    if (const graft_status status = graft_multiply(&gradient, device, stream)) return status;
    if (const graft_status status = graft_rows_scatter(chunk.x, h.rows + first, rows, h.tokens,
                                                       h.dim, dx, h.type, device, stream)) {
      return status;
    }
  }
  if (sums == nullptr) return GRAFT_OK;
  return add_sums({row_loss, h.weight, row_correct, h.count, sums}, kName, device, stream);
}
