#include <csignal>
#include <functional>

#include <catch2/catch.hpp>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/hash.h"
#include "data/curate/layout.h"
#include "data/curate/outputs.h"
#include "data/curate/report.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using namespace graft::data;
using graft::test::alpaca;
using graft::test::TempDir;

namespace {

CleanResult clean_into(const std::vector<std::string>& inputs, const std::string& folder) {
  RecordSource source(inputs);
  const CleanOptions options;
  const CleanResult result = clean(source, options, [](int64_t, int64_t) {});
  write_outputs(source, result, options,
                {"clean",
                 {"clean.jsonl", "quarantine.jsonl"},
                 Json::object(),
                 curation_report(source, result, options, "clean")},
                {}, folder);
  return result;
}

int64_t line_count(const std::string& path) {
  const std::string text = read_file(path);
  return std::count(text.begin(), text.end(), '\n');
}

// Cleans one file, restores it and compares every byte; returns the number of items.
void round_trip(const std::string& content) {
  const TempDir folder;
  const std::string input = folder.file("in");
  graft::test::put_file(input, content);
  const CleanResult result = clean_into({input}, folder.file("out"));
  CHECK(line_count(folder.file("out/clean.jsonl")) +
            line_count(folder.file("out/quarantine.jsonl")) ==
        static_cast<int64_t>(result.items.size()));
  restore(folder.file("out"), folder.file("back"));
  CHECK(read_file(folder.file("back")) == content);
}

// How a child that runs `body` ends, as waitpid tells it.
int status_of_child(const std::function<void()>& body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

const std::string kPretty =
    "[\r\n  {\r\n    \"instruction\": \"Name a \\\"metal\\\"\",\r\n    \"input\": \"\",\r\n    "
    "\"output\": \"Tin is one.\"\r\n  },\r\n"
    "  {\"instruction\": \"Tell\", \"input\": \"<noinput>\", \"output\": \"A tale.\",\n \"id\": "
    "[1, 2.50, true]},\n"
    "\t{\"instruction\": \"Say\", \"output\": \"\"}\n]\n";

}  // namespace

TEST_CASE("restore: files of every form come back byte for byte", "[data][restore]") {
  const std::string one = alpaca("Name a metal", "", "Tin is one.");
  const std::string two = alpaca("Name a fruit", "", "");
  const std::string content =
      GENERATE_COPY(one + "\n" + two + "\n", one + "\r\n" + two + "\r\n", one + "\n" + two,
                    "\n\n" + one + "  \n \t\n" + two, "\xEF\xBB\xBF" + one + "\n" + two + "\n",
                    "[" + one + ", " + two + "]", "[\n" + one + ",\n" + two + "\n]\n\n", kPretty,
                    one + "\n{\"text\": \"\xFF\xFE\"}\nbroken {\n" + std::string("\0", 1) + "\n",
                    "[" + one + "," + two, "[" + one + "," + two + "\n", "[" + one + "\n,",
                    "\xEF\xBB\xBF[" + one + " junk]");
  CAPTURE(content);
  round_trip(content);
}

TEST_CASE("restore: random damage never costs a byte", "[data][restore]") {
  const std::string good = GENERATE(
      std::string("{\"instruction\": \"Name a metal\", \"output\": \"Tin is one.\"}\r\n{\"text\": "
                  "\"some\"}\n\n{\"prompt\": \"p\", \"completion\": \"c d\"}"),
      kPretty);
  const Philox random(17, 2);
  for (uint64_t round = 0; round < 25; ++round) {
    std::string content = good;
    for (uint64_t k = 0; k < 1 + round % 4; ++k) {
      const auto at = static_cast<size_t>(random.below(round * 16 + k, content.size()));
      switch (random.below(round * 16 + k + 4, 3)) {
        case 0:
          content[at] = static_cast<char>(random.below(round * 16 + k + 8, 256));
          break;
        case 1:
          content.erase(at, 1 + static_cast<size_t>(random.below(round * 16 + k + 8, 9)));
          break;
        default:
          content.insert(at, 1, "\"{}[],\n\r\\"[random.below(round * 16 + k + 8, 9)]);
      }
    }
    CAPTURE(round, content);
    round_trip(content);
  }
}

TEST_CASE("restore: several inputs go to a folder under their names", "[data][restore]") {
  const TempDir folder;
  make_directories(folder.file("a"));
  make_directories(folder.file("b"));
  const std::string one = alpaca("Name a metal", "", "Tin is one.") + "\n";
  graft::test::put_file(folder.file("a/set.jsonl"), one);
  graft::test::put_file(folder.file("b/set.jsonl"), kPretty);
  clean_into({folder.file("a/set.jsonl"), folder.file("b/set.jsonl")}, folder.file("out"));
  const std::vector<std::string> paths = restore(folder.file("out"), folder.file("back"));
  REQUIRE(paths.size() == 2);
  CHECK(paths[1] == folder.file("back/2-set.jsonl"));
  CHECK(read_file(paths[0]) == one);
  CHECK(read_file(paths[1]) == kPretty);
}

TEST_CASE("restore: changed outputs are refused and nothing is written", "[data][restore]") {
  const TempDir folder;
  graft::test::put_file(folder.file("in"), alpaca("Name a metal", "", "Tin is one.") + "\n");
  clean_into({folder.file("in")}, folder.file("out"));
  const std::string change = GENERATE("clean.jsonl", "layout.json", "quarantine.jsonl");
  graft::test::put_file(folder.file("out/" + change), change == "quarantine.jsonl"
                                                          ? "{\"raw\": \"x\"}\n"
                                                          : "{\"text\": \"other\"}\n");
  CHECK_THROWS_AS(restore(folder.file("out"), folder.file("back")), Error);
  CHECK_FALSE(file_exists(folder.file("back")));
}

TEST_CASE("outputs: a folder of somebody else is refused, an own one is replaced",
          "[data][restore]") {
  const TempDir folder;
  graft::test::put_file(folder.file("in"), alpaca("Name a metal", "", "Tin is one.") + "\n");
  make_directories(folder.file("theirs"));
  graft::test::put_file(folder.file("theirs/thesis.tex"), "years of work");
  CHECK_THROWS_AS(clean_into({folder.file("in")}, folder.file("theirs")), Error);
  CHECK(list_directory(folder.file("theirs")) == std::vector<std::string>{"thesis.tex"});
  clean_into({folder.file("in")}, folder.file("ours"));
  const std::string first = read_file(folder.file("ours/manifest.json"));
  clean_into({folder.file("in")}, folder.file("ours"));
  CHECK(read_file(folder.file("ours/manifest.json")) == first);
}

TEST_CASE("outputs: a full disk gives exit 74 and leaves the earlier outputs", "[data][restore]") {
  const TempDir folder;
  graft::test::put_file(folder.file("in"), alpaca("Name a metal", "", "Tin is one.") + "\n");
  clean_into({folder.file("in")}, folder.file("out"));
  const std::string before = read_file(folder.file("out/clean.jsonl"));
  std::string large;
  for (int i = 0; i < 4000; ++i) {
    large += alpaca("Name metal " + std::to_string(i), "",
                    "Tin is one of the " + std::to_string(i) + " metals.") +
             "\n";
  }
  graft::test::put_file(folder.file("large"), large);
  const int status = status_of_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100000, 100000};
    setrlimit(RLIMIT_FSIZE, &limit);
    int code = 0;
    try {
      clean_into({folder.file("large")}, folder.file("out"));
    } catch (const Error& error) {
      code = static_cast<int>(error.code());
    }
    _exit(code);
  });
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 74);
  CHECK(read_file(folder.file("out/clean.jsonl")) == before);
  for (const std::string& name : list_directory(folder.file("out"))) {
    CHECK(name.find("stage") == std::string::npos);
  }
}

TEST_CASE("outputs: no room for any one file gives exit 74 and changes nothing",
          "[data][restore]") {
  const TempDir folder;
  graft::test::put_file(folder.file("in"), kPretty);
  clean_into({folder.file("in")}, folder.file("out"));
  const std::vector<std::string> names = list_directory(folder.file("out"));
  const std::string name = GENERATE("clean.jsonl", "quarantine.jsonl", "edits.jsonl", "layout.json",
                                    "report.html", "manifest.json");
  CAPTURE(name);
  const int64_t size = file_size(folder.file("out/" + name));
  REQUIRE(size > 0);
  // The file that is too large by one byte, or an earlier one that is larger still.
  const int status = status_of_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const auto bytes = static_cast<rlim_t>(size - 1);
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_FSIZE, &limit);
    const auto code_of = [&](const std::string& out) {
      try {
        clean_into({folder.file("in")}, folder.file(out));
      } catch (const Error& error) {
        return static_cast<int>(error.code());
      }
      return 0;
    };
    _exit(code_of("new") == 74 && code_of("out") == 74 ? 74 : 1);
  });
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 74);
  CHECK(list_directory(folder.path()) == std::vector<std::string>{"in", "out"});
  CHECK(list_directory(folder.file("out")) == names);
  CHECK(file_size(folder.file("out/" + name)) == size);
}

namespace {

// Writes half of an output into `folder`, lets `step` happen and tells how the child ended.
int status_of_stopped_run(const std::string& path, const std::function<void(OutputFolder&)>& step) {
  return status_of_child([&] {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
      const auto before = std::signal(number, SIG_DFL);  // Catch2 has handlers of its own
      if (before == SIG_IGN) {
        std::signal(number, SIG_IGN);
      }
    }
    OutputFolder folder(path);
    folder.open("clean.jsonl").write(std::string(3 << 20, 'x'));
    step(folder);
    _exit(0);
  });
}

}  // namespace

TEST_CASE("outputs: Ctrl-C leaves nothing half-written", "[data][restore]") {
  const TempDir folder;
  const int number = GENERATE(SIGINT, SIGTERM, SIGHUP);
  const int status =
      status_of_stopped_run(folder.file("new"), [&](OutputFolder&) { raise(number); });
  REQUIRE(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == number);
  CHECK(list_directory(folder.path()).empty());

  graft::test::put_file(folder.file("in"), alpaca("Name a metal", "", "Tin is one.") + "\n");
  clean_into({folder.file("in")}, folder.file("out"));
  const std::vector<std::string> names = list_directory(folder.file("out"));
  const std::string before = read_file(folder.file("out/clean.jsonl"));
  CHECK(WIFSIGNALED(
      status_of_stopped_run(folder.file("out"), [&](OutputFolder&) { raise(number); })));
  CHECK(list_directory(folder.file("out")) == names);
  CHECK(read_file(folder.file("out/clean.jsonl")) == before);
}

TEST_CASE("outputs: Ctrl-C in the last step waits until all files are in place",
          "[data][restore]") {
  const TempDir folder;
  const int status = status_of_stopped_run(folder.file("out"), [](OutputFolder& out) {
    const HoldSignals hold;  // commit holds signals again, within these
    raise(SIGINT);
    out.commit(Json::object({{"format", "graft-data"}}));
  });
  REQUIRE(WIFSIGNALED(status));
  CHECK(file_size(folder.file("out/clean.jsonl")) == 3 << 20);
  CHECK(file_exists(folder.file("out/manifest.json")));
  CHECK_FALSE(directory_exists(folder.file("out/.stage-" + std::to_string(getpid()))));
}

TEST_CASE("outputs: an ignored signal stays ignored", "[data][restore]") {
  const TempDir folder;
  const auto before = std::signal(SIGHUP, SIG_IGN);
  const int status =
      status_of_stopped_run(folder.file("out"), [](OutputFolder&) { raise(SIGHUP); });
  std::signal(SIGHUP, before);
  CHECK(WIFEXITED(status));
}

TEST_CASE("layout: folding and its template are inverse", "[data][restore]") {
  const std::string raw = "{\n  \"a b\" : [ 1,\t-2.5e3 , \"x\\\" , y\" ],\r\n\"c\":null }";
  CHECK(fold_json(raw) == R"({"a b":[1,-2.5e3,"x\" , y"],"c":null})");
  CHECK(unfold_json(fold_json(raw), json_template(raw)) == raw);
  CHECK_THROWS_AS(unfold_json("{}", "xxx"), Error);
}

TEST_CASE("base64: vectors of RFC 4648", "[data][restore]") {
  const auto pair = GENERATE(std::pair<std::string, std::string>("", ""),
                             std::pair<std::string, std::string>("f", "Zg=="),
                             std::pair<std::string, std::string>("fo", "Zm8="),
                             std::pair<std::string, std::string>("foo", "Zm9v"),
                             std::pair<std::string, std::string>("foobar", "Zm9vYmFy"));
  CHECK(base64_encode(pair.first) == pair.second);
  CHECK(base64_decode(pair.second, "x") == pair.first);
}
