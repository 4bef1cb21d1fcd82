// Documents into rows of at most `sequence_len` tokens, at load time: the store holds documents, so
// length and seed change without tokenizing again. Four bytes a document are held for each array:
// a store of millions of documents packs in some tens of megabytes.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace graft::data {

struct PackOptions {
  int64_t sequence_len = 0;
  uint64_t seed = 0;
  int64_t epoch = 0;
};

struct PackedRow {
  std::vector<int64_t> documents;  // indices into `lengths`
  int64_t tokens = 0;              // sum of their lengths, <= sequence_len
};

class PackedRows {
 public:
  int64_t size() const { return static_cast<int64_t>(begins_.size()) - 1; }
  // row: 0..size()-1.
  std::span<const uint32_t> documents(int64_t row) const {
    const auto i = static_cast<size_t>(row);
    return std::span(documents_).subspan(begins_[i], begins_[i + 1] - begins_[i]);
  }

 private:
  friend PackedRows pack(std::span<const uint32_t> lengths, const PackOptions& options);
  std::vector<uint32_t> documents_;
  std::vector<uint32_t> begins_ = {0};
};

// Best-fit decreasing: the longest document first, each into the fullest row that still takes it.
// A pure function of its arguments. Every document is in exactly one row, whole; those of length 0
// are in none. The number of rows is the same in every epoch; which documents of equal length share
// a row and the order of the rows are keyed by (seed, epoch). O(n log n).
// Errors: kData when a document is longer than sequence_len or there are 2^32 or more of them;
// kUsage when sequence_len < 1.
PackedRows pack(std::span<const uint32_t> lengths, const PackOptions& options);

// How many rows pack() makes of so many documents of each length {length: count}; O(lengths^2).
// Errors: as pack().
int64_t packed_row_count(const std::map<int64_t, int64_t>& documents_by_length,
                         int64_t sequence_len);

// The numbers 0..count-1 in an order that depends on (seed, stream) only. Fisher-Yates on Philox.
// count: 0..2^32-1.
std::vector<uint32_t> keyed_permutation(int64_t count, uint64_t seed, uint64_t stream);

}  // namespace graft::data
