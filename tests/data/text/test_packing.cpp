#include <algorithm>
#include <map>
#include <numeric>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/packing.h"
#include "tests/data/text/golden.h"

namespace graft::data {
namespace {

std::vector<uint32_t> random_lengths(int64_t count, int64_t longest, uint64_t seed) {
  const Philox random(seed, 7);
  std::vector<uint32_t> lengths;
  for (int64_t i = 0; i < count; ++i) {
    lengths.push_back(static_cast<uint32_t>(
        random.below(static_cast<uint64_t>(i), static_cast<uint64_t>(longest) + 1)));
  }
  return lengths;
}

std::vector<int64_t> documents_of(const PackedRows& rows) {
  std::vector<int64_t> documents;
  for (int64_t row = 0; row < rows.size(); ++row) {
    documents.insert(documents.end(), rows.documents(row).begin(), rows.documents(row).end());
  }
  return documents;
}

std::vector<int64_t> sums_of(const PackedRows& rows, const std::vector<uint32_t>& lengths) {
  std::vector<int64_t> sums;
  for (int64_t row = 0; row < rows.size(); ++row) {
    int64_t& sum = sums.emplace_back();
    for (const uint32_t document : rows.documents(row)) sum += lengths.at(document);
  }
  return sums;
}

}  // namespace

TEST_CASE("packing: every document is in one row, whole, and no row is too long", "[data][pack]") {
  const int64_t sequence_len = GENERATE(1, 7, 64, 2048);
  const int64_t count = GENERATE(0, 1, 997);
  const auto lengths = random_lengths(count, sequence_len, 3);
  const auto rows = pack(lengths, {.sequence_len = sequence_len, .seed = 5, .epoch = 2});
  for (const int64_t sum : sums_of(rows, lengths)) {
    CHECK(sum <= sequence_len);
    CHECK(sum > 0);
  }
  auto documents = documents_of(rows);
  std::sort(documents.begin(), documents.end());
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < count; ++i) {
    if (lengths[static_cast<size_t>(i)] > 0) expected.push_back(i);
  }
  CHECK(documents == expected);
}

TEST_CASE("packing: best fit puts 6+4, 5+5, 3+3+3 into rows of 10", "[data][pack]") {
  // Longest first: 6 | 5 | 5->joins 5 | 4->joins 6 | 3, 3, 3 -> a row of their own.
  const std::vector<uint32_t> lengths = {3, 5, 6, 3, 4, 5, 3};
  auto sums = sums_of(pack(lengths, {.sequence_len = 10, .seed = 1, .epoch = 0}), lengths);
  std::sort(sums.begin(), sums.end());
  CHECK(sums == std::vector<int64_t>{9, 10, 10});
}

TEST_CASE("packing: a pure function of its arguments that changes with seed and epoch",
          "[data][pack]") {
  const auto lengths = random_lengths(500, 100, 11);
  const auto rows = [&](uint64_t seed, int64_t epoch) {
    return documents_of(pack(lengths, {.sequence_len = 256, .seed = seed, .epoch = epoch}));
  };
  CHECK(rows(1, 0) == rows(1, 0));
  CHECK(rows(1, 0) != rows(1, 1));
  CHECK(rows(1, 0) != rows(2, 0));
  const auto count = [&](int64_t epoch) {
    return pack(lengths, {.sequence_len = 256, .seed = 1, .epoch = epoch}).size();
  };
  CHECK(count(0) == count(9));
}

TEST_CASE("packing: the number of rows follows from how many documents have each length",
          "[data][pack]") {
  const int64_t sequence_len = GENERATE(1, 2, 13, 100, 2048);
  const int64_t longest = GENERATE(1, 3, 50, 2048);
  const auto lengths = random_lengths(700, std::min(longest, sequence_len), 17);
  std::map<int64_t, int64_t> by_length;
  for (const uint32_t length : lengths) ++by_length[length];
  CHECK(packed_row_count(by_length, sequence_len) ==
        pack(lengths, {.sequence_len = sequence_len, .seed = 1, .epoch = 0}).size());
  CHECK_THROWS_AS(packed_row_count({{sequence_len + 1, 1}}, sequence_len), Error);
}

TEST_CASE("packing: the keyed permutation is a bijection", "[data][pack]") {
  const int64_t count = GENERATE(0, 1, 2, 1000);
  auto order = keyed_permutation(count, 42, 3);
  std::sort(order.begin(), order.end());
  std::vector<uint32_t> identity(static_cast<size_t>(count));
  std::iota(identity.begin(), identity.end(), uint32_t{0});
  CHECK(order == identity);
}

TEST_CASE("packing: a document longer than the row is refused by number", "[data][pack]") {
  const std::vector<uint32_t> lengths = {3, 11};
  CHECK_THROWS_WITH(pack(lengths, {.sequence_len = 10}), Catch::Contains("document 1"));
  CHECK_THROWS_AS(pack(lengths, {.sequence_len = 0}), Error);
}

}  // namespace graft::data
