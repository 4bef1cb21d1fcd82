#include "kernels/decode_rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/decode_targets.h"
#include "kernels/device.h"
#include "kernels/parallel.h"

namespace graft::kernels {
namespace {

size_t size_of(DecodedType type) {
  return type == DecodedType::kF32 ? 4 : 2;
}

graft_status decode_piece(const graft_nf4_weight& piece, DecodedType type, void* out) {
  if (type == DecodedType::kF32) {
    return graft_nf4_decode(&piece, static_cast<float*>(out), GRAFT_CPU, nullptr);
  }
  uint16_t* const out16 = static_cast<uint16_t*>(out);
  return type == DecodedType::kBf16 ? graft_nf4_decode_bf16(&piece, out16, GRAFT_CPU, nullptr)
                                    : graft_nf4_decode_f16(&piece, out16, GRAFT_CPU, nullptr);
}

// Elements [begin, end) of a target through a contiguous piece, begin a multiple of what one nested
// absmax covers.
graft_status decode_range(const graft_decode_target& target,
                          DecodedType type,
                          int64_t begin,
                          int64_t end,
                          void* scratch) {
  const size_t size = size_of(type);
  graft_nf4_weight piece = target.weight;
  const int64_t block = begin / piece.block_size;
  piece.packed += begin / 2;
  if (piece.absmax != nullptr) piece.absmax += block;
  if (piece.absmax8 != nullptr) {
    piece.absmax8 += block;
    piece.nested_absmax += block / GRAFT_NF4_NESTED_BLOCK;
  }
  piece.count = end - begin;
  if (const graft_status status = decode_piece(piece, type, scratch)) return status;
  const char* from = static_cast<const char*>(scratch);
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / target.columns, column = i % target.columns;
    const int64_t run = std::min(target.columns - column, end - i);
    const size_t bytes = static_cast<size_t>(run) * size;
    std::memcpy(static_cast<char*>(target.out) +
                    static_cast<size_t>(row * target.row_stride + column) * size,
                from, bytes);
    from += bytes;
    i += run;
  }
  return GRAFT_OK;
}

graft_status decode_rows(const char* function,
                         const DecodeRows& call,
                         graft_device device,
                         graft_stream stream) {
  if (const graft_status status = check_decode_targets(function, call.targets, call.count)) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(function, device, [&](const DeviceTable& functions) {
      return functions.decode_rows(call, stream);
    });
  }
  for (int64_t i = 0; i < call.count; ++i) {
    const graft_decode_target& target = call.targets[i];
    const int64_t unit = static_cast<int64_t>(target.weight.block_size) * GRAFT_NF4_NESTED_BLOCK;
    for_pieces(target.weight.count, unit, target.weight.count, [&](int64_t begin, int64_t end) {
      // Arguments were checked: a piece cannot be refused.
      static_cast<void>(decode_range(target, call.type, begin, end, thread_scratch(unit)));
    });
    if (target.tail == nullptr) continue;
    const size_t size = size_of(call.type), bytes = static_cast<size_t>(target.tail_columns) * size;
    for (int64_t row = 0; row < target.weight.count / target.columns; ++row) {
      std::memcpy(static_cast<char*>(target.out) +
                      static_cast<size_t>(row * target.row_stride + target.columns) * size,
                  static_cast<const char*>(target.tail) + static_cast<size_t>(row) * bytes, bytes);
    }
  }
  return GRAFT_OK;
}

}  // namespace

graft_status check_decode_targets(const char* function,
                                  const graft_decode_target* targets,
                                  int64_t target_count) {
  if (const graft_status status = check_counts(function, {{"target_count", target_count}})) {
    return status;
  }
  if (target_count > GRAFT_DECODE_TARGETS) {
    return fail(GRAFT_BAD_SHAPE, function, "target_count is %lld, expected at most %d",
                static_cast<long long>(target_count), GRAFT_DECODE_TARGETS);
  }
  if (target_count == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(function, {{"targets", targets}})) return status;
  for (int64_t i = 0; i < target_count; ++i) {
    const graft_decode_target& t = targets[i];
    const graft_nf4_weight& w = t.weight;
    if (w.type != GRAFT_NF4 && w.type != GRAFT_FP4) {
      return fail(GRAFT_BAD_ARGUMENT, function,
                  "targets[%lld].weight.type is %d, expected nf4 (0) or fp4 (1)",
                  static_cast<long long>(i), static_cast<int>(w.type));
    }
    if (const graft_status status = check_counts(function, {{"count", w.count},
                                                            {"columns", t.columns, 1},
                                                            {"tail_columns", t.tail_columns},
                                                            {"block_size", w.block_size, 32}})) {
      return status;
    }
    const int64_t width = t.columns + (t.tail != nullptr ? t.tail_columns : 0);
    if (const graft_status status = check_counts(function, {{"row_stride", t.row_stride, width}})) {
      return status;
    }
    if (w.count % t.columns != 0 || (w.block_size & (w.block_size - 1)) != 0 ||
        w.block_size > 4096) {
      return fail(
          GRAFT_BAD_SHAPE, function,
          "target %lld has %lld weights, %lld columns and blocks of %d; expected whole rows "
          "and a power of two in 32..4096",
          static_cast<long long>(i), static_cast<long long>(w.count),
          static_cast<long long>(t.columns), w.block_size);
    }
    if (w.count == 0) continue;
    if (const graft_status status =
            check_pointers(function, {{"packed", w.packed}, {"out", t.out}})) {
      return status;
    }
    if ((w.absmax == nullptr) == (w.absmax8 == nullptr || w.nested_absmax == nullptr)) {
      return fail(GRAFT_BAD_ARGUMENT, function,
                  "target %lld: expected either absmax or absmax8 with nested_absmax",
                  static_cast<long long>(i));
    }
  }
  return GRAFT_OK;
}

}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" graft_status graft_nf4_decode_rows(const graft_decode_target* targets,
                                              int64_t target_count,
                                              graft_device device,
                                              graft_stream stream) {
  return decode_rows("graft_nf4_decode_rows", {targets, target_count, DecodedType::kF32}, device,
                     stream);
}

extern "C" graft_status graft_nf4_decode_rows_bf16(const graft_decode_target* targets,
                                                   int64_t target_count,
                                                   graft_device device,
                                                   graft_stream stream) {
  return decode_rows("graft_nf4_decode_rows_bf16", {targets, target_count, DecodedType::kBf16},
                     device, stream);
}

extern "C" graft_status graft_nf4_decode_rows_f16(const graft_decode_target* targets,
                                                  int64_t target_count,
                                                  graft_device device,
                                                  graft_stream stream) {
  return decode_rows("graft_nf4_decode_rows_f16", {targets, target_count, DecodedType::kF16},
                     device, stream);
}
