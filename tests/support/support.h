// What every test program shares: places, temporary folders, skips and child processes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::test {

// A file of the source tree, for example source_path("tests/golden/nf4.json").
std::string source_path(std::string_view relative);

// A folder of its own for this test, removed at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;

 private:
  std::string path_;
};

// The folder of test data kept outside the tree ($GRAFT_SHARED, else ../shared beside the source),
// or "" when absent. Then the test prints one SKIPPED line - or fails, when
// GRAFT_REQUIRE_SHARED=1. Usage:
//   const std::string shared = shared_data(); if (shared.empty()) return;
std::string shared_data();

// Processor time of this thread: what a bound on time can be held to on a busy machine.
double cpu_seconds();

struct RunResult {
  int exit_code;  // 128 + signal when killed by one
  std::string out;
  std::string err;
};

// Runs a program of the build (argv[0] is its name, for example "graft") with the given standard
// input and extra environment ("KEY=VALUE").
RunResult run(const std::vector<std::string>& argv,
              std::string_view standard_input = "",
              const std::vector<std::string>& environment = {});

}  // namespace graft::test
