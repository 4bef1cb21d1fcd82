#include <catch2/catch.hpp>

#include "tests/support/support.h"

using graft::test::run;

TEST_CASE("launcher: --help lists the commands and --version the version", "[core][launcher]") {
  const auto help = run({"graft", "--help"});
  CHECK(help.exit_code == 0);
  CHECK(help.out.find("graft train") != std::string::npos);
  CHECK(run({"graft", "--version"}).out == "graft " GRAFT_VERSION "\n");
}

TEST_CASE("launcher: a misspelt command is exit 2 with the nearest name", "[core][launcher]") {
  const auto result = run({"graft", "trian"});
  CHECK(result.exit_code == 2);
  CHECK(result.err.find("did you mean \"train\"?") != std::string::npos);
  CHECK(result.out.empty());
}

TEST_CASE("launcher: the completion script names the function it completes with", "[core]") {
  const auto script = run({"graft", "completion"});
  CHECK(script.out.find("complete -o filenames -F _graft graft") != std::string::npos);
  CHECK(run({"graft", "--complete"}).out.find("quantize\n") != std::string::npos);
}
