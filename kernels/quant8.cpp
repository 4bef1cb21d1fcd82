#include "kernels/quant8.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/map8.h"
#include "kernels/nf4_tables.h"
#include "kernels/parallel.h"
#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

constexpr int64_t kPiece = 65536;  // a multiple of every block size

// A map with the storage of its buckets.
struct BuiltMap {
  Map8 map;
  std::vector<uint32_t> entries;
};

float value_with_bits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// How many midpoints x exceeds.
uint32_t code_below(const float* values, float x) {
  uint32_t code = 0;
  for (uint32_t step = 128; step > 0; step /= 2) {
    const float midpoint = (values[code + step - 1] + values[code + step]) * 0.5f;
    code += x > midpoint ? step : 0;
  }
  return code;
}

// A bucket holds the magnitudes that share their upper 16 bits: a 128th of an octave, less than the
// distance of two midpoints of any map (0.0070 of the top decade's end, 0.0039 the bucket's width).
uint32_t bucket_entry(const float* values, uint32_t key, bool negative) {
  const uint32_t begin = key << 16, last = begin | 0xffffu;
  const float sign = negative ? -1.0f : 1.0f;
  const uint32_t code = code_below(values, sign * value_with_bits(begin));
  if (code_below(values, sign * value_with_bits(last)) == code) return 0xffffu << 8 | code;
  if (!negative) {
    const float midpoint = (values[code] + values[code + 1]) * 0.5f;
    return (std::bit_cast<uint32_t>(midpoint) & 0xffffu) << 8 | code;
  }
  // x <= midpoint takes the lower code: the magnitude reaches the midpoint's.
  const float midpoint = (values[code - 1] + values[code]) * 0.5f;
  return ((std::bit_cast<uint32_t>(midpoint) & 0xffffu) - 1u) << 8 | code;
}

// Runs of the signed dynamic map: zero with the first decade's one value, the six other decades of
// 2^r values, and 1.
Map8Runs runs_of(const float* values) {
  constexpr double kPlaces = 65536.0;  // from one code to the next
  const float* const magnitudes = values + 127;
  Map8Runs runs{};
  for (int r = 0; r < 8; ++r) {
    const int first = r == 0 ? 0 : 1 << r, last = r == 7 ? first : (2 << r) - 1;
    const double low = static_cast<double>(magnitudes[first]);
    const double high = static_cast<double>(magnitudes[last]);
    const double scale = first == last ? 0.0 : (last - first) / (high - low);
    runs.above[r] = r == 0 ? -1.0f : (magnitudes[first - 1] + magnitudes[first]) * 0.5f;
    runs.scale[r] = static_cast<float>(kPlaces * scale);
    runs.offset[r] = static_cast<float>(kPlaces * (first + 0.5 - scale * low));
    runs.last[r] = static_cast<float>(kPlaces * (last + 0.25));
  }
  return runs;
}

BuiltMap build(const float* values, float least, Map8Rule rule, const Map8Runs* runs = nullptr) {
  BuiltMap built;
  built.map.rule = rule;
  built.map.runs = runs;
  for (int i = 0; i < 256; ++i) built.map.value[i] = values[i];
  built.map.least = std::bit_cast<uint32_t>(least);
  built.map.first_key = built.map.least >> 16;
  built.map.keys = (0x3f800000u >> 16) - built.map.first_key + 1;
  for (const bool negative : {false, true}) {
    for (uint32_t key = 0; key < built.map.keys; ++key) {
      built.entries.push_back(bucket_entry(values, built.map.first_key + key, negative));
    }
  }
  built.map.entry = built.entries.data();
  return built;
}

std::vector<float> log2_values() {
  std::vector<float> values(256, 1.0f);
  values[0] = 0.0f;
  for (int i = 1; i < 255; ++i) {
    values[static_cast<size_t>(i)] = static_cast<float>(std::exp2(-40.0 * (254 - i) / 253.0));
  }
  return values;
}

graft_status check(
    const char* function, graft_map8 map, int64_t count, int block_size, const Map8** found) {
  *found = map8(map);
  if (*found == nullptr) {
    return fail(GRAFT_BAD_ARGUMENT, function, "map is %d, expected 0..2", static_cast<int>(map));
  }
  if (block_size < 32 || block_size > 4096 ||
      !std::has_single_bit(static_cast<unsigned>(block_size))) {
    return fail(GRAFT_BAD_SHAPE, function, "block_size is %d, expected a power of two in 32..4096",
                block_size);
  }
  return check_counts(function, {{"count", count}});
}

}  // namespace

const Map8* map8(graft_map8 map) {
  // Below half of the least value all magnitudes have the code of zero.
  if (map == GRAFT_MAP_DYNAMIC_SIGNED) {
    static const Map8Runs runs = runs_of(kDynamicMapSigned);
    static const BuiltMap built = build(kDynamicMapSigned, 0x1p-23f, Map8Rule::kRuns, &runs);
    return &built.map;
  }
  if (map == GRAFT_MAP_DYNAMIC_UNSIGNED) {
    static const BuiltMap built = build(kDynamicMapUnsigned, 0x1p-23f, Map8Rule::kBuckets);
    return &built.map;
  }
  if (map == GRAFT_MAP_LOG2) {
    static const BuiltMap built = build(log2_values().data(), 0x1p-42f, Map8Rule::kRatio);
    return &built.map;
  }
  return nullptr;
}

}  // namespace graft::kernels

using namespace graft::kernels;

extern "C" const float* graft_map8_values(graft_map8 map) {
  const Map8* const found = map8(map);
  return found != nullptr ? found->value : nullptr;
}

extern "C" graft_status graft_quant8_quantize(
    graft_map8 map, const float* x, int64_t count, int block_size, uint8_t* codes, float* absmax) {
  constexpr const char* kName = "graft_quant8_quantize";
  const Map8* values = nullptr;
  if (const graft_status status = check(kName, map, count, block_size, &values)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"x", x}, {"codes", codes}, {"absmax", absmax}})) {
    return status;
  }
  const WeightTable& isa = *table().weights;
  std::atomic<bool> finite{true};
  for_pieces(count, kPiece, 4 * count, [&](int64_t begin, int64_t end) {
    if (!isa.quant8_quantize(*values, x + begin, end - begin, block_size, codes + begin,
                             absmax + begin / block_size)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (finite.load()) return GRAFT_OK;
  int64_t first = 0;
  while (first < count && std::isfinite(x[first])) ++first;
  return fail(GRAFT_NOT_FINITE, kName, "x[%lld] is not finite, expected a finite value",
              static_cast<long long>(first));
}

extern "C" graft_status graft_quant8_decode(graft_map8 map,
                                            const uint8_t* codes,
                                            const float* absmax,
                                            int64_t count,
                                            int block_size,
                                            float* out) {
  constexpr const char* kName = "graft_quant8_decode";
  const Map8* values = nullptr;
  if (const graft_status status = check(kName, map, count, block_size, &values)) return status;
  if (count == 0) return GRAFT_OK;
  if (const graft_status status =
          check_pointers(kName, {{"codes", codes}, {"absmax", absmax}, {"out", out}})) {
    return status;
  }
  const WeightTable& isa = *table().weights;
  for_pieces(count, kPiece, count, [&](int64_t begin, int64_t end) {
    isa.quant8_decode(*values, codes + begin, absmax + begin / block_size, end - begin, block_size,
                      out + begin);
  });
  return GRAFT_OK;
}
