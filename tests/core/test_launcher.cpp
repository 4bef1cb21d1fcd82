#include <filesystem>

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

TEST_CASE("launcher: a program that is not installed is exit 2 and says where it is", "[core]") {
  const graft::test::TempDir alone;
  const std::string graft = alone.file("graft");
  namespace fs = std::filesystem;
  fs::copy_file(fs::read_symlink("/proc/self/exe").parent_path() / "graft", graft);
  const auto bench = run({graft, "bench", "kernels"});
  CHECK(bench.exit_code == 2);
  CHECK(bench.err.find("`graft bench step` is installed") != std::string::npos);
  CHECK(run({graft, "data", "check"}).err.find("install the whole of graft") != std::string::npos);
  // Two words that are one command of graft-train.
  const auto step = run({graft, "bench", "step", "--shape", "134m"});
  CHECK(step.err.find("\"graft bench step\" needs the program graft-train") != std::string::npos);
}

TEST_CASE("launcher: commands of two words are completed word by word", "[core]") {
  CHECK(run({"graft", "--complete"}).out.find("step") == std::string::npos);
  CHECK(run({"graft", "--complete", "bench"}).out.rfind("step\n", 0) == 0);
}
