#include <cmath>
#include <map>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "data/text/mix.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

std::map<int64_t, int> counts_of(const std::vector<std::vector<uint32_t>>& documents,
                                 size_t source) {
  std::map<int64_t, int> counts;
  for (const uint32_t document : documents.at(source)) ++counts[document];
  return counts;
}

const std::vector<uint32_t> kTens(10, 10);  // ten documents of ten supervised tokens
const std::vector<uint32_t> kMany(1000, 7);

}  // namespace

TEST_CASE("mix: without numbers every document comes once in each epoch", "[data][mix]") {
  const std::vector<MixSource> sources = {{"a", kTens}, {"b", kMany}};
  for (const int64_t epoch : {0, 1, 7}) {
    const auto documents = mix(sources, 42, epoch);
    CHECK(documents.at(0).size() + documents.at(1).size() == 1010);
    CHECK(counts_of(documents, 0).size() == 10);
    CHECK(counts_of(documents, 1).size() == 1000);
  }
  CHECK(mix(sources, 42, 3) == mix(sources, 42, 3));
  CHECK_FALSE(mix(sources, 42, 0) == mix(sources, 43, 0));
  CHECK_FALSE(mix(sources, 42, 0) == mix(sources, 42, 1));
}

TEST_CASE("mix: repeat takes whole and broken passes, nothing twice before the rest",
          "[data][mix]") {
  const std::vector<MixSource> sources = {{"a", kTens, 2.5}};
  CHECK(mix(sources, 1, 0).at(0).size() == 25);  // 2.5 x 100 tokens of documents of ten
  CHECK(mix(sources, 1, 1).at(0).size() == 25);
  const auto first = counts_of(mix(sources, 1, 0), 0);
  const auto second = counts_of(mix(sources, 1, 1), 0);
  std::map<int64_t, int> both = first;
  for (const auto& [document, count] : second) both[document] += count;
  for (int64_t document = 0; document < 10; ++document) {
    CHECK(both[document] == 5);
    CHECK((first.at(document) == 2 || first.at(document) == 3));
  }
}

TEST_CASE("mix: weights are shares of supervised tokens", "[data][mix]") {
  // 100 and 7,000 tokens; a third and two thirds of 7,100 an epoch.
  const std::vector<MixSource> sources = {{"a", kTens, 0, 1}, {"b", kMany, 0, 2}};
  CHECK(tokens_per_epoch(sources) == std::vector<int64_t>{2367, 4733});
  const auto documents = mix(sources, 9, 0);
  int64_t tokens[2] = {0, 0};
  for (size_t source : {0, 1}) {
    for (const uint32_t one : documents[source]) tokens[source] += sources[source].supervised[one];
  }
  CHECK(std::abs(tokens[0] - 2367) <= 10);
  CHECK(std::abs(tokens[1] - 4733) <= 7);
}

TEST_CASE("mix: a budget is kept within one document and walks through the data", "[data][mix]") {
  const std::vector<MixSource> sources = {{"b", kMany, 0, 0, 700}};
  std::map<int64_t, int> seen;
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    const auto counts = counts_of(mix(sources, 5, epoch), 0);
    CHECK(counts.size() == 100);
    for (const auto& [document, count] : counts) seen[document] += count;
  }
  CHECK(seen.size() == 1000);
}

TEST_CASE("mix: nonsense is refused by name", "[data][mix]") {
  const std::vector<uint32_t> none;
  CHECK_THROWS_WITH(mix(std::vector<MixSource>{{"a", none}}, 0, 0),
                    Catch::Contains("no documents") && Catch::Contains("a"));
  CHECK_THROWS_WITH(mix(std::vector<MixSource>{{"a", kTens, 1, 1}}, 0, 0),
                    Catch::Contains("one of repeat, weight and budget"));
  CHECK_THROWS_WITH(mix(std::vector<MixSource>{{"a", kTens, -1}}, 0, 0),
                    Catch::Contains("positive"));
  CHECK_THROWS_WITH(mix(std::vector<MixSource>{{"a", kTens, 5000}}, 0, 0),
                    Catch::Contains("1,000 times"));
}

}  // namespace graft::data
