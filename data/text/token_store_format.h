// What the writer and the reader of the token store agree on.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/json.h"

namespace graft::data {

constexpr std::string_view kStoreFormat = "graft-token-store";
constexpr int64_t kStoreVersion = 2;
constexpr int64_t kStoreAlignment = 4096;               // a page: the arrays are mapped
constexpr int64_t kStoreBlockBytes = int64_t{1} << 20;  // one XXH3 each
constexpr int64_t kWeightCount = 256;
constexpr int kFileShift = 40;  // source = file << 40 | row

struct StoreArray {
  std::string_view name;
  std::string_view dtype;  // as NumPy names it
  int64_t item_bytes;
};
enum StoreArrayIndex {
  kTokens,
  kLoss,
  kRole,
  kDocOffsets,
  kSource,
  kWeights,
  kSegment,  // only in a store with preference pairs
  kStoreArrayCount
};
constexpr std::array<StoreArray, kStoreArrayCount> kStoreArrays = {{
    {"tokens", "int32", 4},
    {"loss", "uint8", 1},
    {"role", "uint8", 1},
    {"doc_offsets", "uint64", 8},
    {"source", "uint64", 8},
    {"weights", "float32", 4},
    {"segment", "uint8", 1},
}};

}  // namespace graft::data
