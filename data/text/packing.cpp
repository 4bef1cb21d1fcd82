#include "data/text/packing.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/hash.h"

namespace graft::data {
namespace {

// Streams of the seed's random numbers; an epoch takes two.
constexpr uint64_t kTieStream = 0;
constexpr uint64_t kRowStream = 1;

void check(std::span<const int64_t> lengths, const PackOptions& options) {
  if (options.sequence_len < 1) {
    fail(ExitCode::kUsage,
         "sequence_len must be at least 1, got " + std::to_string(options.sequence_len));
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > options.sequence_len) {
      fail(ExitCode::kData,
           "a document must have 0.." + std::to_string(options.sequence_len) + " tokens, got " +
               std::to_string(lengths[i]),
           "document " + std::to_string(i),
           "raise sequence_len, or tokenize with over_long drop or truncate_right");
    }
  }
}

}  // namespace

std::vector<int64_t> keyed_permutation(int64_t count, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(std::max<int64_t>(count, 0)));
  std::iota(order.begin(), order.end(), int64_t{0});
  const Philox random(seed, stream);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(i, i)]);
  }
  return order;
}

std::vector<PackedRow> pack(std::span<const int64_t> lengths, const PackOptions& options) {
  check(lengths, options);
  const auto epoch = static_cast<uint64_t>(options.epoch);
  const auto count = static_cast<int64_t>(lengths.size());
  // Shuffled first, then sorted stably: the order of equal lengths is keyed.
  std::vector<int64_t> order = keyed_permutation(count, options.seed, epoch * 2 + kTieStream);
  std::erase_if(order, [&](int64_t i) { return lengths[static_cast<size_t>(i)] == 0; });
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });

  std::vector<PackedRow> rows;
  std::map<int64_t, std::vector<size_t>> rows_by_room;
  for (const int64_t document : order) {
    const int64_t length = lengths[static_cast<size_t>(document)];
    const auto fullest = rows_by_room.lower_bound(length);
    size_t row = rows.size();
    if (fullest == rows_by_room.end()) {
      rows.emplace_back();
    } else {
      row = fullest->second.back();
      fullest->second.pop_back();
      if (fullest->second.empty()) rows_by_room.erase(fullest);
    }
    rows[row].documents.push_back(document);
    rows[row].tokens += length;
    const int64_t room = options.sequence_len - rows[row].tokens;
    if (room > 0) rows_by_room[room].push_back(row);
  }

  std::vector<PackedRow> shuffled;
  shuffled.reserve(rows.size());
  for (const int64_t row :
       keyed_permutation(static_cast<int64_t>(rows.size()), options.seed, epoch * 2 + kRowStream)) {
    shuffled.push_back(std::move(rows[static_cast<size_t>(row)]));
  }
  return shuffled;
}

}  // namespace graft::data
