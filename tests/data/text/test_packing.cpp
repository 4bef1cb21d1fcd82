#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "data/text/packing.h"
#include "data/text/tokenizer.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

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

// Tokens of each record of a shared data set, the members of a record joined by line ends.
std::vector<uint32_t> lengths_of(const std::string& path, const Tokenizer& tokenizer) {
  std::vector<uint32_t> lengths;
  const Json rows = read_json_file(path);
  for (const Json& row : rows.as_array()) {
    std::string text;
    for (const auto& [key, value] : row.as_object()) {
      if (value.is_string()) text += value.as_string() + "\n";
    }
    lengths.push_back(static_cast<uint32_t>(tokenizer.encode_ids(text).size()));
  }
  return lengths;
}

// Prints how near the rows come to the fewest that are possible, and checks what best fit promises:
// a row is opened only when no other has room for the document, so all but one row of the packing
// have less room than the document that opened the last row is long.
void check_efficiency(const std::string& name,
                      std::vector<uint32_t> lengths,
                      int64_t sequence_len) {
  std::erase_if(lengths, [&](uint32_t length) { return length > sequence_len; });
  const PackedRows rows = pack(lengths, {.sequence_len = sequence_len, .seed = 1, .epoch = 0});
  const int64_t sum = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const int64_t by_sum = (sum + sequence_len - 1) / sequence_len;
  const int64_t alone = std::count_if(lengths.begin(), lengths.end(), [&](uint32_t length) {
    return int64_t{length} * 2 > sequence_len;
  });
  const int64_t fewest = std::max(by_sum, alone);
  const std::vector<int64_t> sums = sums_of(rows, lengths);
  int64_t opened_last = 0;  // the longest document of the row that was opened last is the shortest
  for (int64_t row = 0; row < rows.size(); ++row) {
    uint32_t longest = 0;
    for (const uint32_t document : rows.documents(row)) {
      longest = std::max(longest, lengths[document]);
    }
    opened_last = row == 0 ? longest : std::min<int64_t>(opened_last, longest);
  }
  const auto with_room = std::count_if(sums.begin(), sums.end(), [&](int64_t tokens) {
    return sequence_len - tokens >= opened_last;
  });
  CAPTURE(name, sequence_len);
  CHECK(with_room <= 1);
  CHECK(rows.size() >= fewest);
  std::printf(
      "packing: %-18s T %4lld: %6zu documents, %5lld rows, ceil(sum / T) %5lld, longer than "
      "T/2 %4lld: %.3f %% filled, %.3f %% over the lower bound\n",
      name.c_str(), static_cast<long long>(sequence_len), lengths.size(),
      static_cast<long long>(rows.size()), static_cast<long long>(by_sum),
      static_cast<long long>(alone),
      100.0 * static_cast<double>(sum) / static_cast<double>(rows.size() * sequence_len),
      100.0 * static_cast<double>(rows.size() - fewest) / static_cast<double>(fewest));
}

}  // namespace

TEST_CASE("packing: rows of real and generated data against the fewest possible", "[data][pack]") {
  const int64_t sequence_len = GENERATE(2048, 4096);
  // One document in five is longer than T/2, the rest are below T/8.
  std::vector<uint32_t> lengths = random_lengths(10'000, sequence_len / 8, 23);
  const std::vector<uint32_t> extra = random_lengths(10'000, sequence_len / 2 - 1, 29);
  for (size_t i = 0; i < lengths.size(); i += 5) {
    lengths[i] = static_cast<uint32_t>(sequence_len / 2 + 1) + extra[i];
  }
  check_efficiency("20 % above T/2", lengths, sequence_len);
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const auto tokenizer = load_tokenizer(shared + "/data/tokenizers/llama3/tokenizer.json");
  for (const char* name : {"alpaca_5000", "gsm_8k_train", "gpteacher_roleplay"}) {
    check_efficiency(name, lengths_of(shared + "/data/datasets/" + name + ".json", *tokenizer),
                     sequence_len);
  }
}

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
