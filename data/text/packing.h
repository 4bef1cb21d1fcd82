// Documents into rows of at most `sequence_len` tokens, at load time: the store holds documents, so
// length and seed change without tokenizing again.
#pragma once

#include <cstdint>
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

// Best-fit decreasing: the longest document first, each into the fullest row that still takes it.
// A pure function of its arguments. Every document is in exactly one row, whole; those of length 0
// are in none. The number of rows is the same in every epoch; which documents of equal length share
// a row and the order of the rows are keyed by (seed, epoch). O(n log n).
// Errors: kData when a document is longer than sequence_len or negative; kUsage when
// sequence_len < 1.
std::vector<PackedRow> pack(std::span<const int64_t> lengths, const PackOptions& options);

// The numbers 0..count-1 in an order that depends on (seed, stream) only. Fisher-Yates on Philox.
std::vector<int64_t> keyed_permutation(int64_t count, uint64_t seed, uint64_t stream);

}  // namespace graft::data
