#include <new>
#include <stdexcept>
#include <string_view>

#include <catch2/catch.hpp>

#include "core/error.h"

using graft::ExitCode;

TEST_CASE("error: the text has what, where and fix on three lines", "[core][error]") {
  const graft::Error error(ExitCode::kUsage,
                           {"r must be in 1..512, got 0", "a.yaml:1:2", "set r to 8"});
  CHECK(std::string_view(error.what()) ==
        "error: r must be in 1..512, got 0\n  at a.yaml:1:2\n  fix: set r to 8");
}

TEST_CASE("error: a near name is suggested, a far one is not", "[core][error]") {
  const std::string_view known[] = {"language", "length", "repetition"};
  CHECK(graft::nearest_name("langauge", known) == "language");
  CHECK(graft::nearest_name("lenght", known) == "length");
  CHECK(graft::nearest_name("zebra", known).empty());
  CHECK(graft::unknown_name("rule", "lenght", known) ==
        "unknown rule \"lenght\"; known: language, length, repetition - did you mean \"length\"?");
}

TEST_CASE("error: run_main turns each kind of failure into its exit code", "[core][error]") {
  CHECK(graft::run_main([] { return 7; }) == 7);
  CHECK(graft::run_main([]() -> int { graft::fail(ExitCode::kData, "x"); }) == 3);
  CHECK(graft::run_main([]() -> int { throw std::bad_alloc(); }) == 4);
  CHECK(graft::run_main([]() -> int { throw std::runtime_error("x"); }) == 70);
}
