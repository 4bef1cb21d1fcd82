// The quickstart's files: made by the committed generator, caught by the named rules, reproducible.
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"

namespace {

using graft::Json;
using graft::test::run;
using graft::test::source_path;
using graft::test::TempDir;

std::vector<Json> json_lines(const std::string& path) {
  std::vector<Json> rows;
  const std::string text = graft::read_file(path);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    rows.push_back(graft::parse_json(text.substr(begin, end - begin), path));
    begin = end + 1;
  }
  return rows;
}

// Lines that clean quarantined, with the rules that did.
std::map<int64_t, std::vector<std::string>> quarantined(const std::string& file,
                                                        const std::string& out) {
  const auto result = run({"graft", "data", "clean", file, "--out", out, "--allow"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  std::map<int64_t, std::vector<std::string>> rules;
  for (const Json& row : json_lines(out + "/quarantine.jsonl")) {
    for (const Json& reason : row.at("reasons").as_array()) {
      rules[row.at("line").as_int()].push_back(reason.at("rule").as_string());
    }
  }
  return rules;
}

bool contains(const std::vector<std::string>& rules, const std::string& rule) {
  return std::find(rules.begin(), rules.end(), rule) != rules.end();
}

}  // namespace

TEST_CASE("quickstart: the committed data is what the generator writes", "[quickstart]") {
  const TempDir dir;
  REQUIRE(run({"quickstart-data", dir.path()}).exit_code == 0);
  for (const char* name : {"raw.jsonl", "defects.json", "eval.jsonl", "base_check.jsonl"}) {
    CAPTURE(name);
    CHECK(graft::read_file(dir.file(name)) ==
          graft::read_file(source_path(std::string("examples/quickstart/") + name)));
  }
}

TEST_CASE("quickstart: every planted defect is caught by its rule, no clean row is",
          "[quickstart]") {
  const TempDir dir;
  const auto caught = quarantined(source_path("examples/quickstart/raw.jsonl"), dir.file("clean"));
  std::map<int64_t, std::string> planted;
  const Json defects = graft::read_json_file(source_path("examples/quickstart/defects.json"));
  std::vector<int64_t> edited;
  for (const Json& defect : defects.as_array()) {
    planted[defect.at("line").as_int()] = defect.at("rule").as_string();
  }
  for (const Json& edit : json_lines(dir.file("clean") + "/edits.jsonl")) {
    edited.push_back(edit.at("line").as_int());
  }
  for (const auto& [line, rule] : planted) {
    CAPTURE(line, rule);
    if (rule == "noinput_marker") {  // mended, not quarantined
      CHECK(std::find(edited.begin(), edited.end(), line) != edited.end());
    } else {
      const auto found = caught.find(line);
      REQUIRE(found != caught.end());
      CHECK(contains(found->second, rule));
    }
  }
  for (const auto& [line, rules] : caught) {
    CAPTURE(line);
    CHECK(planted.count(line) == 1);
  }
}

TEST_CASE("quickstart: no held-out question is in the training data", "[quickstart]") {
  const auto result = run({"graft", "data", "check", source_path("examples/quickstart/eval.jsonl"),
                           "--against", source_path("examples/quickstart/raw.jsonl")});
  INFO(result.out << result.err);
  CHECK(result.exit_code == 0);
}

TEST_CASE("quickstart: the base's first 20 losses are those of its training",
          "[quickstart][slow]") {
  const TempDir dir;
  REQUIRE(run({"quickstart-data", dir.path()}).exit_code == 0);
  const auto result = run({"graft", "train", source_path("examples/quickstart/base/train.yaml"),
                           "base_model=" + source_path("examples/quickstart/base"),
                           "datasets=[" + dir.file("base_text.jsonl") + "]", "test_datasets=[]",
                           "output_dir=" + dir.file("run"), "max_steps=20"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const std::vector<Json> golden =
      json_lines(source_path("examples/quickstart/base/first_losses.jsonl"));
  const std::vector<Json> got = json_lines(dir.file("run") + "/metrics.jsonl");
  REQUIRE(golden.size() == 20);
  REQUIRE(got.size() == 20);
  for (size_t step = 0; step < 20; ++step) {
    CAPTURE(step);
    // Another instruction set sums in another order: float32 noise grows a little over 20 steps.
    CHECK(got[step].at("loss").as_double() ==
          Approx(golden[step].at("loss").as_double()).epsilon(1e-4));
  }
}
