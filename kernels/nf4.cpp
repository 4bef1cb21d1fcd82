#include "kernels/nf4.h"

#include <atomic>
#include <bit>
#include <cmath>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/float16.h"
#include "kernels/nf4_tables.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

// Elements of one piece of work: a multiple of every block size.
constexpr int64_t kPiece = 65536;
// Lanes of the mean's first sum (nf4.h documents the order).
constexpr int64_t kMeanLanes = 256;

graft_status check_block_size(const char* function, int block_size) {
  if (block_size < 32 || block_size > 4096 ||
      !std::has_single_bit(static_cast<unsigned>(block_size))) {
    return fail(GRAFT_BAD_SHAPE, function, "block_size is %d, expected a power of two in 32..4096",
                block_size);
  }
  return GRAFT_OK;
}

graft_status check_type(const char* function, graft_quant4_type type) {
  if (type == GRAFT_NF4 || type == GRAFT_FP4) return GRAFT_OK;
  return fail(GRAFT_BAD_ARGUMENT, function, "type is %d, expected 0 (nf4) or 1 (fp4)",
              static_cast<int>(type));
}

graft_status check_weight(const char* function, const graft_nf4_weight* weight, const void* out) {
  if (const graft_status status = check_pointers(function, {{"weight", weight}})) return status;
  if (const graft_status status = check_type(function, weight->type)) return status;
  if (const graft_status status = check_counts(function, {{"count", weight->count}})) return status;
  if (const graft_status status = check_block_size(function, weight->block_size)) return status;
  if (weight->count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(function, {{"packed", weight->packed}, {"out", out}})) {
    return status;
  }
  if ((weight->absmax != nullptr) == (weight->absmax8 != nullptr)) {
    return fail(GRAFT_BAD_ARGUMENT, function, "%s of absmax and absmax8 given, expected one",
                weight->absmax != nullptr ? "both" : "neither");
  }
  if (weight->absmax8 != nullptr) {
    return check_pointers(function, {{"nested_absmax", weight->nested_absmax}});
  }
  return GRAFT_OK;
}

float mean_of(const float* x, int64_t count) {
  double lane[kMeanLanes] = {};
  for (int64_t i = 0; i < count; ++i) lane[i % kMeanLanes] += static_cast<double>(x[i]);
  for (int64_t width = kMeanLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return static_cast<float>(lane[0] / static_cast<double>(count));
}

// The index of the map's value nearest to x: how many midpoints x exceeds. Eight steps without a
// branch, as the path through the map is as good as random.
uint8_t nearest_in_map(float x) {
  int index = 0;
  for (int step = 128; step > 0; step /= 2) {
    index += x > kDynamicMidpoints.value[index + step - 1] ? step : 0;
  }
  return static_cast<uint8_t>(index);
}

void compress_block(
    const float* absmax, int64_t count, float offset, uint8_t* codes, float* nested_absmax) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(absmax[i] - offset));
  *nested_absmax = largest;
  const float inverse = 1.0f / (largest > kNf4SmallestAbsmax ? largest : kNf4SmallestAbsmax);
  for (int64_t i = 0; i < count; ++i) codes[i] = nearest_in_map((absmax[i] - offset) * inverse);
}

template <class Type>
using DecodeFunction = void (*)(const graft_nf4_weight&, int64_t, int64_t, Type*, Stores);

// Results that a last-level cache would not keep until they are read: half of a large one.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

template <class Type>
void decode_cpu(const graft_nf4_weight& weight, Type* out, DecodeFunction<Type> decode) {
  const int64_t bytes = weight.count * static_cast<int64_t>(sizeof(Type));
  const Stores stores = bytes < kStreamedBytes ? Stores::kCached : Stores::kStreamed;
  for_pieces(weight.count, kPiece, weight.count,
             [&](int64_t begin, int64_t end) { decode(weight, begin, end, out + begin, stores); });
}

}  // namespace
}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" const float* graft_nf4_codebook(void) {
  return kNf4Code;
}
extern "C" const float* graft_quant4_codebook(graft_quant4_type type) {
  return type == GRAFT_NF4 ? kNf4Code : type == GRAFT_FP4 ? kFp4Code : nullptr;
}
extern "C" const float* graft_dynamic_map_signed(void) {
  return kDynamicMapSigned;
}

extern "C" int64_t graft_nf4_packed_bytes(int64_t count) {
  return count < 1 ? 0 : count / 2 + count % 2;
}

extern "C" int64_t graft_nf4_block_count(int64_t count, int block_size) {
  return count < 1 || block_size < 1 ? 0 : count / block_size + (count % block_size != 0);
}

extern "C" graft_status graft_quant4_quantize(graft_quant4_type type,
                                              graft_float_type weight_type,
                                              const void* weight,
                                              int64_t count,
                                              int block_size,
                                              uint8_t* packed,
                                              float* absmax,
                                              graft_device device,
                                              graft_stream stream) {
  constexpr const char* kName = "graft_quant4_quantize";
  if (const graft_status status = check_type(kName, type)) return status;
  if (weight_type != GRAFT_F32 && weight_type != GRAFT_BF16 && weight_type != GRAFT_F16) {
    return fail(GRAFT_BAD_ARGUMENT, kName, "weight_type is %d, expected 0..2",
                static_cast<int>(weight_type));
  }
  if (const graft_status status = check_counts(kName, {{"count", count}})) return status;
  if (const graft_status status = check_block_size(kName, block_size)) return status;
  if (count > 0) {
    if (const graft_status status =
            check_pointers(kName, {{"weight", weight}, {"packed", packed}, {"absmax", absmax}})) {
      return status;
    }
  }
  if (device != GRAFT_CPU) {
    const DeviceTable* functions = nullptr;
    if (const graft_status status = device_table(kName, device, &functions)) return status;
    if (count == 0) return GRAFT_OK;
    return functions->quant4_quantize(type, weight_type, weight, count, block_size, packed, absmax,
                                      stream);
  }
  const int64_t element = weight_type == GRAFT_F32 ? 4 : 2;
  const uint8_t* const bytes = static_cast<const uint8_t*>(weight);
  const WeightTable& isa = *table().weights;
  std::atomic<bool> finite{true};
  for_pieces(count, kPiece, 4 * count, [&](int64_t begin, int64_t end) {
    const Quant4Input input{bytes + begin * element, end - begin, block_size, weight_type, type};
    if (!isa.quant4_quantize(input, packed + begin / 2, absmax + begin / block_size)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (finite.load()) return GRAFT_OK;
  float value = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    widen(bytes + i * element, weight_type, 1, &value);
    if (!std::isfinite(value)) {
      return fail(GRAFT_NOT_FINITE, kName, "weight[%lld] is %g, expected a finite value",
                  static_cast<long long>(i), static_cast<double>(value));
    }
  }
  return fail(GRAFT_NOT_FINITE, kName, "a weight changed while it was read");
}

extern "C" graft_status graft_nf4_quantize(const float* weight,
                                           int64_t count,
                                           int block_size,
                                           uint8_t* packed,
                                           float* absmax,
                                           graft_device device,
                                           graft_stream stream) {
  return graft_quant4_quantize(GRAFT_NF4, GRAFT_F32, weight, count, block_size, packed, absmax,
                               device, stream);
}

extern "C" graft_status graft_nf4_compress_absmax(const float* absmax,
                                                  int64_t blocks,
                                                  uint8_t* absmax8,
                                                  float* nested_absmax,
                                                  float* offset,
                                                  graft_device device,
                                                  graft_stream stream) {
  constexpr const char* kName = "graft_nf4_compress_absmax";
  if (const graft_status status = check_counts(kName, {{"blocks", blocks, 1}})) return status;
  if (const graft_status status = check_pointers(kName, {{"absmax", absmax},
                                                         {"absmax8", absmax8},
                                                         {"nested_absmax", nested_absmax},
                                                         {"offset", offset}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    const DeviceTable* functions = nullptr;
    if (const graft_status status = device_table(kName, device, &functions)) return status;
    return functions->nf4_compress_absmax(absmax, blocks, absmax8, nested_absmax, offset, stream);
  }
  for (int64_t i = 0; i < blocks; ++i) {
    if (!std::isfinite(absmax[i])) {
      return fail(GRAFT_NOT_FINITE, kName, "absmax[%lld] is %g, expected a finite value",
                  static_cast<long long>(i), static_cast<double>(absmax[i]));
    }
  }
  const float mean = mean_of(absmax, blocks);
  *offset = mean;
  for_pieces(blocks, GRAFT_NF4_NESTED_BLOCK, 16 * blocks, [&](int64_t begin, int64_t end) {
    compress_block(absmax + begin, end - begin, mean, absmax8 + begin,
                   nested_absmax + begin / GRAFT_NF4_NESTED_BLOCK);
  });
  return GRAFT_OK;
}

extern "C" graft_status graft_nf4_decode(const graft_nf4_weight* weight,
                                         float* out,
                                         graft_device device,
                                         graft_stream stream) {
  constexpr const char* kName = "graft_nf4_decode";
  if (const graft_status status = check_weight(kName, weight, out)) return status;
  if (device != GRAFT_CPU) {
    const DeviceTable* functions = nullptr;
    if (const graft_status status = device_table(kName, device, &functions)) return status;
    if (weight->count == 0) return GRAFT_OK;
    return functions->nf4_decode_f32(*weight, out, stream);
  }
  decode_cpu<float>(*weight, out, table().weights->quant4_decode_f32);
  return GRAFT_OK;
}

extern "C" graft_status graft_nf4_decode_bf16(const graft_nf4_weight* weight,
                                              uint16_t* out,
                                              graft_device device,
                                              graft_stream stream) {
  constexpr const char* kName = "graft_nf4_decode_bf16";
  if (const graft_status status = check_weight(kName, weight, out)) return status;
  if (device != GRAFT_CPU) {
    const DeviceTable* functions = nullptr;
    if (const graft_status status = device_table(kName, device, &functions)) return status;
    if (weight->count == 0) return GRAFT_OK;
    return functions->nf4_decode_bf16(*weight, out, stream);
  }
  decode_cpu<uint16_t>(*weight, out, table().weights->quant4_decode_bf16);
  return GRAFT_OK;
}

extern "C" graft_status graft_nf4_decode_f16(const graft_nf4_weight* weight,
                                             uint16_t* out,
                                             graft_device device,
                                             graft_stream stream) {
  constexpr const char* kName = "graft_nf4_decode_f16";
  if (const graft_status status = check_weight(kName, weight, out)) return status;
  if (device != GRAFT_CPU) {
    const DeviceTable* functions = nullptr;
    if (const graft_status status = device_table(kName, device, &functions)) return status;
    if (weight->count == 0) return GRAFT_OK;
    return functions->nf4_decode_f16(*weight, out, stream);
  }
  decode_cpu<uint16_t>(*weight, out, table().weights->quant4_decode_f16);
  return GRAFT_OK;
}
