#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/args.h"
#include "core/error.h"

namespace {

graft::Args parsed;

int run(std::vector<std::string> words) {
  const graft::Command command{"clean",
                               "FILE…",
                               1,
                               2,
                               "cleans",
                               {{"--threads", "N", "2", "threads"},
                                {"--out", "DIR", "", "where"},
                                {"--allow", "", "", "go on"}},
                               {"graft data clean a.jsonl --out d"},
                               [](const graft::Args& args) {
                                 parsed = args;
                                 return 0;
                               }};
  words.insert(words.begin(), {"graft-data", "clean"});
  std::vector<char*> pointers;
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  return graft::run_program("graft data", "data", {&command, 1}, static_cast<int>(pointers.size()),
                            pointers.data());
}

}  // namespace

TEST_CASE("args: options, switches, defaults and positionals are told apart", "[core][args]") {
  REQUIRE(run({"a", "--out", "d", "--allow", "b"}) == 0);
  CHECK(parsed.positionals() == std::vector<std::string>{"a", "b"});
  CHECK(parsed.text("--out") == "d");
  CHECK(parsed.flag("--allow"));
  CHECK_FALSE(parsed.json());
  CHECK(parsed.integer("--threads", 1, 64) == 2);
  REQUIRE(run({"--threads=7", "--", "--out"}) == 0);
  CHECK(parsed.integer("--threads", 1, 64) == 7);
  CHECK(parsed.positionals() == std::vector<std::string>{"--out"});
}

TEST_CASE("args: mistakes are usage errors that say what to write", "[core][args]") {
  CHECK_THROWS_WITH(run({"a", "--thread", "3"}), Catch::Contains("did you mean \"--threads\"?"));
  CHECK_THROWS_WITH(run({}), Catch::Contains("expected FILE…, got 0"));
  CHECK_THROWS_WITH(run({"a", "b", "c"}), Catch::Contains("unexpected argument \"c\""));
  CHECK_THROWS_WITH(run({"a", "--out"}), Catch::Contains("--out needs a value"));
  CHECK_THROWS_WITH(run({"a", "--allow=1"}), Catch::Contains("takes no value"));
  CHECK_THROWS_WITH(run({"a", "--out", "x", "--out", "y"}), Catch::Contains("given twice"));
  REQUIRE(run({"a", "--threads", "many"}) == 0);
  CHECK_THROWS_WITH(parsed.integer("--threads", 1, 64), Catch::Contains("1..64, got \"many\""));
  CHECK_THROWS_WITH(parsed.need("--out"), Catch::Contains("missing option --out"));
}
