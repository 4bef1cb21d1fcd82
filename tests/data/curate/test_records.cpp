#include <string>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/hash.h"
#include "data/records/record.h"
#include "data/records/scan.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using namespace graft::data;
using graft::test::TempDir;

namespace {

Record record_of(const std::string& json) {
  return parse_record(parse_json(json, "x"), "x");
}

std::vector<std::string> items_of(const std::string& content) {
  const TempDir folder;
  const std::string path = folder.file("a");
  graft::test::put_file(path, content);
  RecordSource source({path});
  std::vector<std::string> items;
  for (RawItem item; source.next(item);) {
    items.emplace_back(item.raw);
  }
  return items;
}

std::string error_of(const std::string& content) {
  const TempDir folder;
  const std::string path = folder.file("a.jsonl");
  graft::test::put_file(path, content);
  RecordSource source({path});
  RawItem item;
  std::string where;
  while (source.next(item)) {
    try {
      read_record(source, item);
    } catch (const Error& error) {
      REQUIRE(error.code() == ExitCode::kData);
      where = error.text().where;
    }
  }
  const size_t name = where.find("a.jsonl");
  return name == std::string::npos ? where : where.substr(name);
}

}  // namespace

TEST_CASE("records: every schema becomes messages", "[data][records]") {
  const Record alpaca = record_of(R"({"instruction":"Add","input":"1 2","output":"3","id":7})");
  CHECK(alpaca.schema == Schema::kAlpaca);
  CHECK(alpaca.prompt() == "Add\n\n1 2");
  CHECK(alpaca.answer() == "3");
  CHECK(alpaca.id == "7");
  CHECK(record_of(R"({"instruction":"Add","output":"3"})").prompt() == "Add");
  CHECK(record_of(R"({"prompt":"p","completion":"c"})").schema == Schema::kPromptCompletion);
  CHECK(record_of(R"({"prompt":"p","response":"c"})").answer() == "c");
  const Record chat = record_of(
      R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u","weight":0},)"
      R"({"role":"assistant","content":"a"},{"role":"user","content":"v"},{"role":"assistant","content":"b"}]})");
  CHECK(chat.prompt() == "s\nu\nv");
  CHECK(chat.answer() == "b");
  CHECK(chat.messages[1].extra.at("weight").as_int() == 0);
  const Record share = record_of(
      R"({"conversations":[{"from":"system","value":"s"},{"from":"human","value":"h"},{"from":"gpt","value":"g"},{"from":"tool","value":"t"}]})");
  CHECK(share.schema == Schema::kShareGpt);
  CHECK(share.messages[1].role == "user");
  CHECK(share.messages[2].role == "assistant");
  CHECK(share.messages[3].role == "tool");
  const Record text = record_of(R"({"text":"t"})");
  CHECK(text.prompt().empty());
  CHECK(text.answer() == "t");
  CHECK(
      record_of(
          R"({"messages":[{"role":"assistant","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}]})")
          .answer() == "xy");
}

TEST_CASE("records: a misfit names the member and the place", "[data][records]") {
  const std::string json =
      GENERATE(R"({"instruction":"a"})", R"({"instruction":1,"output":"b"})", R"({"foo":"bar"})",
               R"([1])", R"({"messages":[]})", R"({"messages":[{"role":"user"}]})",
               R"({"messages":"x"})", R"({"conversations":[{"from":"nobody","value":"x"}]})",
               R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})");
  CAPTURE(json);
  CHECK_THROWS_AS(record_of(json), Error);
}

TEST_CASE("records: errors carry the line and column of the file", "[data][records]") {
  CHECK(error_of("{\"text\": \"a\"}\n  {\"text\": 5}\n").rfind("a.jsonl:2:", 0) == 0);
  // The third byte of line 2 opens the object, "x" is its member.
  CHECK(error_of("\n {\"text\": }\n").rfind("a.jsonl:2:", 0) == 0);
}

TEST_CASE("records: line ends, marks and blank lines are not items", "[data][records]") {
  const std::vector<std::string> two = {"{\"text\":\"a\"}", "{\"text\":\"b\"}"};
  CHECK(items_of("{\"text\":\"a\"}\n{\"text\":\"b\"}\n") == two);
  CHECK(items_of("{\"text\":\"a\"}\r\n{\"text\":\"b\"}") == two);
  CHECK(items_of("\xEF\xBB\xBF{\"text\":\"a\"}\n\n  \t\r\n{\"text\":\"b\"}  \n\n") == two);
  CHECK(items_of("[{\"text\":\"a\"},{\"text\":\"b\"}]") == two);
  CHECK(items_of("\xEF\xBB\xBF [\n{\"text\":\"a\"}\n,\r\n{\"text\":\"b\"}\n]\n") == two);
}

TEST_CASE("records: a damaged array gives its items and then the rest", "[data][records]") {
  CHECK(items_of("[{\"text\":\"a\"},{\"text\":\"b") ==
        std::vector<std::string>{"{\"text\":\"a\"}", "{\"text\":\"b"});
  CHECK(items_of("[{\"text\":\"a\"} {\"text\":\"b\"}]") ==
        std::vector<std::string>{"{\"text\":\"a\"}", "{\"text\":\"b\"}]"});
  CHECK(items_of("[{\"text\":\"a\"}] more") ==
        std::vector<std::string>{"{\"text\":\"a\"}", "more"});
  CHECK(items_of("[{\"text\":\"a\"},]") == std::vector<std::string>{"{\"text\":\"a\"}", ",]"});
}

TEST_CASE("records: an array without its final bracket ends in an item that says so",
          "[data][records]") {
  const std::string end = GENERATE("", "\n", " \r\n\t");
  CAPTURE(end);
  CHECK(items_of("[{\"text\":\"a\"}" + end) == std::vector<std::string>{"{\"text\":\"a\"}", ""});
  const std::string error = error_of("[\n{\"text\":\"a\"}" + end);
  CHECK(error.rfind("a.jsonl:2", 0) == 0);
  CHECK(items_of("[{\"text\":\"a\"}]" + end) == std::vector<std::string>{"{\"text\":\"a\"}"});
  CHECK(items_of("[]" + end).empty());
}

TEST_CASE("records: an empty file is an error, not an empty set", "[data][records]") {
  CHECK_THROWS_AS(items_of(""), Error);
  CHECK_THROWS_AS(items_of(" \n\r\n"), Error);
}

TEST_CASE("records: hostile text never parses and never crashes", "[data][records]") {
  const std::string text =
      GENERATE(std::string("{\"text\":\"\xFF\xFE\"}"), std::string("{\"text\":\"\\ud800\"}"),
               std::string(100000, '['), std::string("{\"a\":") + std::string(5000, '{'),
               std::string("{\"text\":\"a\"} {\"text\":\"b\"}"), std::string("\0\0\0", 3),
               std::string("{\"text\":\"a\",\"text\":\"b\"}"), std::string("nan"));
  CHECK_FALSE(error_of(text).empty());
}

TEST_CASE("records: items and gaps cover every byte of a damaged file", "[data][records]") {
  const std::string good =
      GENERATE(std::string("[\n  {\"text\": \"a \\\"b\\\"\"},\n  {\"text\": \"[x]\"}\n]\n"),
               std::string("{\"text\": \"a\"}\r\n{\"text\": \"b\"}\n\n{\"text\": \"c\"}"));
  const Philox random(7, 1);
  for (uint64_t round = 0; round < 400; ++round) {
    std::string content = good;
    for (uint64_t k = 0; k < 3; ++k) {
      const auto at = static_cast<size_t>(random.below(round * 8 + k, content.size()));
      content[at] = static_cast<char>(random.below(round * 8 + k + 3, 256));
    }
    const TempDir folder;
    const std::string path = folder.file("a");
    graft::test::put_file(path, content);
    RecordSource source({path});
    int64_t at = 0;
    for (RawItem item; source.next(item);) {
      CAPTURE(round, content);
      REQUIRE(item.begin >= at);
      // Only a missing final bracket gives an empty item.
      REQUIRE((item.begin < item.end || (item.begin == item.end && source.is_array(0))));
      REQUIRE(std::string_view(content).substr(static_cast<size_t>(item.begin),
                                               static_cast<size_t>(item.end - item.begin)) ==
              item.raw);
      // Between items stands only what joins items.
      const std::string gap =
          content.substr(static_cast<size_t>(at), static_cast<size_t>(item.begin - at));
      REQUIRE(gap.find_first_not_of(" \t\r\n[],\xEF\xBB\xBF") == std::string::npos);
      at = item.end;
    }
    REQUIRE(content.substr(static_cast<size_t>(at)).find_first_not_of(" \t\r\n]") ==
            std::string::npos);
  }
}

TEST_CASE("records: a member of an object is found as it is written", "[data][records]") {
  CHECK(json_member(R"({"a": {"id": 1}, "id" : "x\"y", "b": 2})", "id") == R"("x\"y")");
  CHECK(json_member(R"({"a": {"id": 1}})", "id").empty());
  CHECK(json_member(R"({"id":[1,2]})", "id") == "[1,2]");
}
