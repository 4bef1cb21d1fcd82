#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/packing.h"
#include "tests/data/text/golden.h"

namespace graft::data {
namespace {

std::vector<int64_t> random_lengths(int64_t count, int64_t longest, uint64_t seed) {
  const Philox random(seed, 7);
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) {
    lengths.push_back(static_cast<int64_t>(
        random.below(static_cast<uint64_t>(i), static_cast<uint64_t>(longest) + 1)));
  }
  return lengths;
}

std::vector<int64_t> documents_of(const std::vector<PackedRow>& rows) {
  std::vector<int64_t> documents;
  for (const PackedRow& row : rows) {
    documents.insert(documents.end(), row.documents.begin(), row.documents.end());
  }
  return documents;
}

}  // namespace

TEST_CASE("packing: every document is in one row, whole, and no row is too long", "[data][pack]") {
  const int64_t sequence_len = GENERATE(1, 7, 64, 2048);
  const int64_t count = GENERATE(0, 1, 997);
  const auto lengths = random_lengths(count, sequence_len, 3);
  const auto rows = pack(lengths, {.sequence_len = sequence_len, .seed = 5, .epoch = 2});
  for (const PackedRow& row : rows) {
    int64_t sum = 0;
    for (const int64_t document : row.documents) sum += lengths.at(static_cast<size_t>(document));
    CHECK(sum == row.tokens);
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
  const std::vector<int64_t> lengths = {3, 5, 6, 3, 4, 5, 3};
  const auto rows = pack(lengths, {.sequence_len = 10, .seed = 1, .epoch = 0});
  std::vector<int64_t> sums;
  for (const PackedRow& row : rows) sums.push_back(row.tokens);
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

TEST_CASE("packing: the keyed permutation is a bijection", "[data][pack]") {
  const int64_t count = GENERATE(0, 1, 2, 1000);
  auto order = keyed_permutation(count, 42, 3);
  std::sort(order.begin(), order.end());
  std::vector<int64_t> identity(static_cast<size_t>(count));
  std::iota(identity.begin(), identity.end(), int64_t{0});
  CHECK(order == identity);
}

TEST_CASE("packing: a document longer than the row is refused by number", "[data][pack]") {
  const std::vector<int64_t> lengths = {3, 11};
  CHECK_THROWS_WITH(pack(lengths, {.sequence_len = 10}), Catch::Contains("document 1"));
  CHECK_THROWS_AS(pack(lengths, {.sequence_len = 0}), Error);
}

}  // namespace graft::data
