// The commands as users run them: exit codes, files and JSON.
#include <chrono>
#include <cstdlib>

#include <catch2/catch.hpp>
#include <sys/resource.h>

#include "core/file.h"
#include "core/json.h"
#include "data/curate/rules.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using graft::test::alpaca;
using graft::test::lines;
using graft::test::run;
using graft::test::TempDir;

namespace {

std::string good_lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += alpaca("What is the name of star " + std::to_string(i) + "?", "",
                   "It is called S" + std::to_string(i) + ".") +
            "\n";
  }
  return text;
}

std::string put(const TempDir& folder, const std::string& name, const std::string& content) {
  graft::test::put_file(folder.file(name), content);
  return folder.file(name);
}

}  // namespace

TEST_CASE("command clean: writes its files, prints counts and exits 0", "[data][commands]") {
  const TempDir folder;
  const std::string in =
      put(folder, "in.jsonl", good_lines(9) + alpaca("Tell", "", "") + "\nbroken\n");
  const auto result = run({"graft-data", "clean", in, "--out", folder.file("out"), "--json"});
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "stdout");
  CHECK(json.at("records").as_int() == 11);
  CHECK(json.at("quarantined").as_int() == 2);
  for (const char* name :
       {"clean.jsonl", "quarantine.jsonl", "edits.jsonl", "manifest.json", "report.html"}) {
    CHECK(file_exists(folder.file(std::string("out/") + name)));
  }
  const std::string quarantine = read_file(folder.file("out/quarantine.jsonl"));
  const Json first = parse_json(quarantine.substr(0, quarantine.find('\n')), "q");
  CHECK(first.at("file").as_string() == "in.jsonl");
  CHECK(first.at("line").as_int() == 10);
  CHECK(first.at("raw").as_string() == alpaca("Tell", "", ""));
  CHECK(first.at("reasons").as_array()[0].at("rule").as_string() == "empty_output");
  CHECK(first.at("duplicate_of").is_null());
  const auto back =
      run({"graft-data", "restore", folder.file("out"), "--out", folder.file("back")});
  CHECK(back.exit_code == 0);
  CHECK(read_file(folder.file("back")) == read_file(in));
}

TEST_CASE("command clean: a guard rail stops with exit 3 and spares the folder",
          "[data][commands]") {
  const TempDir folder;
  const std::string fine = put(folder, "fine.jsonl", good_lines(4));
  REQUIRE(run({"graft-data", "clean", fine, "--out", folder.file("out")}).exit_code == 0);
  const std::string before = read_file(folder.file("out/clean.jsonl"));
  const std::string bad =
      put(folder, "bad.jsonl",
          good_lines(4) + lines({alpaca("a", "", ""), alpaca("b", "", ""), alpaca("c", "", "")}));
  const auto stopped = run({"graft-data", "clean", bad, "--out", folder.file("out")});
  CHECK(stopped.exit_code == 3);
  CHECK(stopped.err.find("42.9 %") != std::string::npos);  // 3 of 7
  CHECK(stopped.err.find("--allow") != std::string::npos);
  CHECK(read_file(folder.file("out/clean.jsonl")) == before);
  CHECK(file_exists(folder.file("out/stopped/report.html")));
  CHECK(run({"graft-data", "clean", bad, "--out", folder.file("out"), "--allow"}).exit_code == 0);
  CHECK(read_file(folder.file("out/clean.jsonl")) == good_lines(4));
}

TEST_CASE("command clean: one large cluster stops with exit 3", "[data][commands]") {
  const TempDir folder;
  std::string text = good_lines(200);
  for (int i = 0; i < 30; ++i) {
    text += alpaca("Say hello to all of them", "", "Hello to all of you.") + "\n";
  }
  const std::string in = put(folder, "in.jsonl", text);
  const auto result = run({"graft-data", "clean", in, "--out", folder.file("out")});
  CHECK(result.exit_code == 3);
  CHECK(result.err.find("one cluster of duplicates holds 30") != std::string::npos);
  CHECK_FALSE(file_exists(folder.file("out/clean.jsonl")));
}

TEST_CASE("command check: exit 1 above --max-bad, errors with line and column",
          "[data][commands]") {
  const TempDir folder;
  const std::string in = put(folder, "in.jsonl", good_lines(3) + "{\"instruction\": }\n");
  const auto strict = run({"graft-data", "check", in});
  CHECK(strict.exit_code == 1);
  CHECK(strict.err.find("in.jsonl:4:") != std::string::npos);
  CHECK(run({"graft-data", "check", in, "--max-bad", "25"}).exit_code == 0);
  CHECK(list_directory(folder.path()) == std::vector<std::string>{"in.jsonl"});
}

TEST_CASE("command check --against: leaks are counted and exit 1", "[data][commands]") {
  const TempDir folder;
  const std::string train = put(folder, "train.jsonl", good_lines(5));
  const std::string clean_eval = put(
      folder, "eval.jsonl", alpaca("Which river is the longest of all?", "", "The Nile.") + "\n");
  const std::string leaky =
      put(folder, "leaky.jsonl", alpaca("what is the name of star 3?", "", "S3") + "\n");
  const auto fine = run({"graft-data", "check", train, "--against", clean_eval});
  CHECK(fine.exit_code == 0);
  CHECK(fine.out.find("0 exact and 0 near prompt matches") != std::string::npos);
  const auto leak =
      run({"graft-data", "check", train, "--against", leaky + "," + clean_eval, "--json"});
  CHECK(leak.exit_code == 1);
  const Json json = parse_json(leak.out, "stdout");
  CHECK(json.at("exact_prompt_matches").as_int() == 1);
  CHECK(json.at("near_prompt_matches").as_int() == 0);
  CHECK(json.at("leaks").as_array()[0].at("line").as_int() == 4);
}

TEST_CASE("command dedup: kept, removed and clusters", "[data][commands]") {
  const TempDir folder;
  const std::string in =
      put(folder, "in.jsonl",
          "{\"id\": \"a\", \"prompt\": \"p one two three four five\", \"completion\": \"same\"}\n"
          "{\"id\": \"b\", \"prompt\": \"p one two three four five\", \"completion\": \"same\"}\n"
          "{\"prompt\": \"q\", \"completion\": \"other\"}\n" +
              good_lines(5));
  REQUIRE(run({"graft-data", "dedup", in, "--out", folder.file("out")}).exit_code == 0);
  const std::string clusters = read_file(folder.file("out/clusters.jsonl"));
  CHECK(clusters.find("{\"id\":\"a\",\"cluster\":0,\"kept\":true}\n{\"id\":\"b\",\"cluster\":0,"
                      "\"kept\":false}\n{\"id\":2,\"cluster\":2,") == 0);
  const std::string removed = read_file(folder.file("out/removed.jsonl"));
  const Json line = parse_json(removed.substr(0, removed.find('\n')), "removed");
  CHECK(line.at("duplicate_of").at("id").as_string() == "a");
  CHECK(line.at("jaccard").as_double() == 1.0);
  CHECK(
      run({"graft-data", "restore", folder.file("out"), "--out", folder.file("back")}).exit_code ==
      0);
  CHECK(read_file(folder.file("back")) == read_file(in));
}

TEST_CASE("command inspect: schema, counts and lengths", "[data][commands]") {
  const TempDir folder;
  const std::string in = put(folder, "in.jsonl", good_lines(3) + "broken\n");
  const auto result = run({"graft-data", "inspect", in, "--json"});
  REQUIRE(result.exit_code == 0);
  const Json file = parse_json(result.out, "stdout").at("files").as_array()[0];
  CHECK(file.at("format").as_string() == "jsonl");
  CHECK(file.at("records").as_int() == 4);
  CHECK(file.at("unreadable").as_int() == 1);
  CHECK(file.at("schemas").at("alpaca").as_int() == 3);
  CHECK(file.at("prompt_words").at("max").as_int() == 7);  // What is the name of star 0
}

TEST_CASE("command rules: lists the whole table", "[data][commands]") {
  const auto result = run({"graft-data", "rules", "--json"});
  REQUIRE(result.exit_code == 0);
  CHECK(parse_json(result.out, "stdout").at("rules").size() == data::rules().size());
}

TEST_CASE("commands: an input that cannot be read is named", "[data][commands]") {
  const TempDir folder;
  const std::vector<std::string> command = GENERATE(
      std::vector<std::string>{"inspect"}, std::vector<std::string>{"check"},
      std::vector<std::string>{"clean", "--out"}, std::vector<std::string>{"dedup", "--out"});
  const auto run_on = [&](const std::string& input) {
    std::vector<std::string> words = {"graft-data"};
    words.insert(words.end(), command.begin(), command.end());
    if (command.size() > 1) {
      words.push_back(folder.file("out"));
    }
    words.push_back(input);
    return run(words);
  };
  CAPTURE(command.front());
  const auto missing = run_on(folder.file("none"));
  CHECK(missing.exit_code == 74);
  CHECK(missing.err.find("none") != std::string::npos);
  const auto empty = run_on(put(folder, "empty", ""));
  CHECK(empty.exit_code == 3);
  CHECK(empty.err.find("the file is empty") != std::string::npos);
  const auto directory = run_on(folder.path());
  CHECK(directory.exit_code == 74);
  CHECK(directory.err.find("this is a directory") != std::string::npos);
  CHECK(directory.err.find("*.jsonl") != std::string::npos);
  CHECK_FALSE(directory_exists(folder.file("out")));
}

TEST_CASE("command inspect: tells where the first unreadable record is", "[data][commands]") {
  const TempDir folder;
  const std::string in = put(folder, "in.jsonl", good_lines(3) + "x{\n" + good_lines(1) + "y{\n");
  const auto result = run({"graft-data", "inspect", in});
  CHECK(result.exit_code == 0);
  CHECK(result.out.find("unreadable 2") != std::string::npos);
  CHECK(result.out.find("in.jsonl:4:1: malformed JSON") != std::string::npos);
}

TEST_CASE("commands: --threads 0 means all cores, other bad numbers are refused",
          "[data][commands]") {
  const TempDir folder;
  const std::string in = put(folder, "in.jsonl", good_lines(3));
  CHECK(run({"graft-data", "check", in, "--threads", "0"}).exit_code == 0);
  const std::string bad = GENERATE("-1", "two", "1.5", "1025", "");
  CHECK(run({"graft-data", "check", in, "--threads", bad}).exit_code == 2);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("commands: help is there in 15 ms", "[data][commands]") {
  // Processor time, which other programs on the machine do not lengthen; the best of some, since
  // they share its caches. At full speed `true` takes less than 1.9 ms of it; on a machine that
  // runs slower the bound grows as that start does.
  using std::chrono::microseconds;
  const auto children = [] {
    rusage used{};
    getrusage(RUSAGE_CHILDREN, &used);
    const auto of = [](const timeval& t) { return t.tv_sec * 1'000'000LL + t.tv_usec; };
    return microseconds(of(used.ru_utime) + of(used.ru_stime));
  };
  auto best = microseconds::max();
  auto probe = microseconds::max();
  for (int i = 0; i < 30; ++i) {
    const auto begin = children();
    REQUIRE(std::system("exec true") == 0);
    const auto middle = children();
    REQUIRE(run({"graft", "data", "--help"}).exit_code == 0);
    probe = std::min(probe, middle - begin);
    best = std::min(best, children() - middle);
  }
  CAPTURE(best.count(), probe.count());
  CHECK(best < std::max<microseconds>(std::chrono::milliseconds(15), 8 * probe));
}
#endif

TEST_CASE("commands: wrong use says what to do", "[data][commands]") {
  const TempDir folder;
  const std::string in = put(folder, "in.jsonl", good_lines(3));
  CHECK(run({"graft-data", "clean", folder.file("none"), "--out", folder.file("out")}).exit_code ==
        74);
  CHECK(run({"graft-data", "clean", put(folder, "empty", ""), "--out", folder.file("out")})
            .exit_code == 3);
  CHECK(run({"graft-data", "clean", in}).exit_code == 2);
  CHECK(run({"graft-data", "clean", in, "--out", folder.file("out"), "--profile", "sfft"})
            .exit_code == 2);
  CHECK(run({"graft-data", "dedup", in, "--out", folder.file("out"), "--view", "al"}).exit_code ==
        2);
  CHECK(run({"graft-data", "clean", in, "--out", folder.path()}).exit_code == 2);
  CHECK(run({"graft-data", "restore", folder.path(), "--out", folder.file("x")}).exit_code == 2);
}
