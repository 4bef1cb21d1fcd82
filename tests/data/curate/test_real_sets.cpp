// Public instruction sets kept outside the tree: nothing is lost, little is taken from clean data.
#include <catch2/catch.hpp>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using graft::test::run;
using graft::test::TempDir;

namespace {

struct Set {
  std::string name;
  int64_t records;
};

int64_t line_count(const std::string& path) {
  const std::string text = read_file(path);
  return std::count(text.begin(), text.end(), '\n');
}

}  // namespace

TEST_CASE("real sets: clean + quarantine = input, restored to the byte, small side files",
          "[data][real]") {
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) {
    return;
  }
  const Set set = GENERATE(Set{"alpaca_5000.json", 5000}, Set{"gpteacher_roleplay.json", 3146},
                           Set{"gsm_8k_train.json", 7473});
  CAPTURE(set.name);
  const std::string in = shared + "/data/datasets/" + set.name;
  const TempDir folder;
  REQUIRE(run({"graft-data", "clean", in, "--out", folder.file("out")}).exit_code == 0);
  const int64_t removed = line_count(folder.file("out/quarantine.jsonl"));
  CHECK(line_count(folder.file("out/clean.jsonl")) + removed == set.records);
  // Published sets: the defects that a person finds in them are below 1 %.
  CHECK(removed * 100 <= set.records);
  const int64_t side =
      file_size(folder.file("out/layout.json")) + file_size(folder.file("out/edits.jsonl"));
  CHECK(side * 10 <= file_size(in));
  REQUIRE(
      run({"graft-data", "restore", folder.file("out"), "--out", folder.file("back")}).exit_code ==
      0);
  CHECK(sha256_file(folder.file("back")) == sha256_file(in));
}
