#include "data/text/packing.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/hash.h"

namespace graft::data {
namespace {

// Streams of the seed's random numbers; an epoch takes two.
constexpr uint64_t kTieStream = 0;
constexpr uint64_t kRowStream = 1;

void check_sequence_len(int64_t sequence_len) {
  if (sequence_len >= 1) return;
  fail(ExitCode::kUsage, "sequence_len must be at least 1, got " + std::to_string(sequence_len));
}

void check_length(int64_t length, int64_t sequence_len, const std::string& where) {
  if (length >= 0 && length <= sequence_len) return;
  fail(ExitCode::kData,
       "a document must have 0.." + std::to_string(sequence_len) + " tokens, got " +
           std::to_string(length),
       where, "raise sequence_len, or tokenize with over_long drop or truncate_right");
}

// The documents that have tokens, the longest first; those of one length in the order of `order`.
std::vector<uint32_t> longest_first(const std::vector<uint32_t>& order,
                                    std::span<const uint32_t> lengths) {
  const uint32_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  // Where the documents of each length begin; index longest - length.
  std::vector<uint32_t> places(size_t{longest} + 1, 0);
  for (const uint32_t length : lengths) {
    if (length > 0) ++places[longest - length];
  }
  uint32_t begin = 0;
  for (uint32_t& place : places) begin += std::exchange(place, begin);
  std::vector<uint32_t> sorted(begin);
  for (const uint32_t document : order) {
    const uint32_t length = lengths[document];
    if (length > 0) sorted[places[longest - length]++] = document;
  }
  return sorted;
}

}  // namespace

std::vector<uint32_t> keyed_permutation(int64_t count, uint64_t seed, uint64_t stream) {
  std::vector<uint32_t> order(static_cast<size_t>(std::max<int64_t>(count, 0)));
  std::iota(order.begin(), order.end(), uint32_t{0});
  const Philox random(seed, stream);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(i, i)]);
  }
  return order;
}

PackedRows pack(std::span<const uint32_t> lengths, const PackOptions& options) {
  check_sequence_len(options.sequence_len);
  if (lengths.size() >= UINT32_MAX) {
    fail(ExitCode::kData, "an epoch must have fewer than 2^32 documents");
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] > options.sequence_len) {
      check_length(lengths[i], options.sequence_len, "document " + std::to_string(i));
    }
  }
  const auto epoch = static_cast<uint64_t>(options.epoch);
  const auto count = static_cast<int64_t>(lengths.size());
  // Shuffled first, then sorted stably: the order of equal lengths is keyed.
  std::vector<uint32_t> sorted =
      longest_first(keyed_permutation(count, options.seed, epoch * 2 + kTieStream), lengths);

  std::vector<uint32_t> row_of(sorted.size());  // of each document of `sorted`
  std::vector<uint32_t> sizes;                  // documents of each row
  std::map<int64_t, std::vector<uint32_t>> rows_by_room;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const int64_t length = lengths[sorted[i]];
    const auto fullest = rows_by_room.lower_bound(length);
    auto row = static_cast<uint32_t>(sizes.size());
    int64_t room = options.sequence_len;
    if (fullest == rows_by_room.end()) {
      sizes.push_back(0);
    } else {
      row = fullest->second.back();
      room = fullest->first;
      fullest->second.pop_back();
      if (fullest->second.empty()) rows_by_room.erase(fullest);
    }
    row_of[i] = row;
    ++sizes[row];
    if (room > length) rows_by_room[room - length].push_back(row);
  }

  PackedRows rows;
  rows.begins_.assign(1, 0);
  std::vector<uint32_t> places(sizes.size());  // where the next document of each row goes
  for (const uint32_t row : keyed_permutation(static_cast<int64_t>(sizes.size()), options.seed,
                                              epoch * 2 + kRowStream)) {
    places[row] = rows.begins_.back();
    rows.begins_.push_back(rows.begins_.back() + sizes[row]);
  }
  rows.documents_.resize(sorted.size());
  for (size_t i = 0; i < sorted.size(); ++i) rows.documents_[places[row_of[i]]++] = sorted[i];
  return rows;
}

int64_t packed_row_count(const std::map<int64_t, int64_t>& documents_by_length,
                         int64_t sequence_len) {
  check_sequence_len(sequence_len);
  std::map<int64_t, int64_t> rows_by_room;
  int64_t rows = 0;
  for (auto group = documents_by_length.rbegin(); group != documents_by_length.rend(); ++group) {
    const int64_t length = group->first;
    check_length(length, sequence_len, "");
    int64_t left = length > 0 ? group->second : 0;
    // The fullest row stays the fullest until it has no room left for another of them.
    const auto fill = [&](int64_t room, int64_t count) {
      const int64_t each = room / length;
      const int64_t whole = std::min(count, left / each);
      if (whole > 0) rows_by_room[room - each * length] += whole;
      left -= whole * each;
      if (whole == count || left == 0) return whole;
      rows_by_room[room - left * length] += 1;
      left = 0;
      return whole + 1;
    };
    while (left > 0) {
      const auto fullest = rows_by_room.lower_bound(length);
      if (fullest == rows_by_room.end()) {
        rows += fill(sequence_len, INT64_MAX);
        continue;
      }
      const auto [room, count] = *fullest;
      rows_by_room.erase(fullest);
      const int64_t used = fill(room, count);
      if (used < count) rows_by_room[room] += count - used;
    }
  }
  return rows;
}

}  // namespace graft::data
