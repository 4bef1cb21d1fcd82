#include <catch2/catch.hpp>

#include "data/curate/conflicts.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using namespace graft::data;
using graft::test::alpaca;
using graft::test::clean_text;
using graft::test::has_rule;
using graft::test::lines;

TEST_CASE("conflict: two labels without a majority both leave", "[data][curate]") {
  const CleanResult result =
      clean_text(lines({alpaca("Is water wet?", "", "Yes"), alpaca("Is water wet?", "", "No"),
                        alpaca("Is fire hot?", "", "Yes")}));
  CHECK(result.results[0].fate == Fate::kQuarantined);
  CHECK(has_rule(result.results[0], "prompt_conflict"));
  CHECK(result.results[1].fate == Fate::kQuarantined);
  CHECK(result.results[2].fate == Fate::kKept);
}

TEST_CASE("conflict: a strict majority stays, once", "[data][curate]") {
  const CleanResult result =
      clean_text(lines({alpaca("Is water wet?", "", "No"), alpaca("Is water wet?", "", "Yes"),
                        alpaca("is water wet?", "", "yes")}));
  CHECK(has_rule(result.results[0], "prompt_conflict"));
  CHECK(result.results[1].fate == Fate::kKept);
  CHECK(has_rule(result.results[2], "exact_duplicate"));
}

TEST_CASE("conflict: several long answers are no conflict", "[data][curate]") {
  const CleanResult result = clean_text(lines(
      {alpaca("Write a sentence about rivers.", "",
              "Rivers carry water from the hills to the sea."),
       alpaca("Write a sentence about rivers.", "", "Few rivers reach the ocean without a dam.")}));
  CHECK(result.results[0].fate == Fate::kKept);
  CHECK(result.results[1].fate == Fate::kKept);
  CHECK(has_rule(result.results[0], "prompt_repeated"));
}

TEST_CASE("conflict: an answer to another question leaves when one fits", "[data][curate]") {
  const CleanResult result = clean_text(lines(
      {alpaca("Write a sentence about rivers.", "",
              "Rivers carry water from the hills to the sea."),
       alpaca("Write a sentence about rivers.", "", "My uncle bakes bread in his old shop.")}));
  CHECK(result.results[0].fate == Fate::kKept);
  CHECK(has_rule(result.results[1], "prompt_conflict"));
  CHECK(result.results[1].fate == Fate::kQuarantined);
}

TEST_CASE("conflict: the input is a part of the prompt", "[data][curate]") {
  const CleanResult result = clean_text(
      lines({alpaca("Is it an animal?", "cat", "Yes"), alpaca("Is it an animal?", "stone", "No")}));
  CHECK(result.results[0].fate == Fate::kKept);
  CHECK(result.results[1].fate == Fate::kKept);
}
