#include <array>
#include <string>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/json.h"

using graft::dump_json;
using graft::Json;
using graft::parse_json;

namespace {

std::string error_of(const std::string& text) {
  try {
    parse_json(text, "t.json");
  } catch (const graft::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("json: a value tree round-trips through text", "[core][json]") {
  const std::string text =
      GENERATE(as<std::string>{}, R"({"a":1,"b":[true,null,-2,1.5,"x"],"c":{"d":{}},"e":[]})", "[]",
               "{}", "3", "\"\"", "1.0", "1e300", "null", "true", R"(["é","\u0001","\\\"/"])",
               "-9223372036854775808");
  const std::string once = dump_json(parse_json(text, "t"));
  CHECK(dump_json(parse_json(once, "t")) == once);
}

TEST_CASE("json: integers and floats keep their kind", "[core][json]") {
  const Json tree = parse_json("[1,1.0,1e2]", "t");
  CHECK(tree.as_array()[0].is_int());
  CHECK(tree.as_array()[1].is_float());
  CHECK(tree.as_array()[2].is_float());
  CHECK(dump_json(tree) == "[1,1.0,100.0]");
}

TEST_CASE("json: floats are written as Python's repr writes them", "[core][json]") {
  // [repr(x) for x in (1e-4, 1e-5, 1e15, 1e16, 0.1, -0.0, 1/3, 5e-324, 123456789.125)]
  const Json tree =
      parse_json("[1e-4,1e-5,1e15,1e16,0.1,-0.0,0.3333333333333333,5e-324,123456789.125]", "t");
  CHECK(dump_json(tree) ==
        "[0.0001,1e-05,1000000000000000.0,1e+16,0.1,-0.0,0.3333333333333333,5e-324,123456789.125]");
}

TEST_CASE("json: every value knows its line and column", "[core][json]") {
  const Json tree = parse_json("{\n  \"a\": 1,\n  \"b\": [\n    \"x\"]\n}", "t");
  CHECK(tree.at("a").mark().line == 2);
  CHECK(tree.at("a").mark().column == 8);
  CHECK(tree.at("b").as_array()[0].mark().line == 4);
  CHECK(tree.at("b").as_array()[0].mark().column == 5);
}

TEST_CASE("json: damaged or ambiguous text is refused", "[core][json]") {
  const std::string text =
      GENERATE(as<std::string>{}, "", " ", "{", "[1,", "[1,]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}",
               "[1] 2", "1 2", "\"\xff\"", "\"\\ud800\"", "nul", "tru", "01", "1.", "+1", "[1}",
               "'a'", "\"a", "\"\n\"", "{\"a\":1,\"a\":2}", "99999999999999999999", "NaN", "[NaN]",
               "[tru]", "{\"a\":nul}");
  CAPTURE(text);
  CHECK_THROWS_AS(parse_json(text, "t.json"), graft::Error);
}

TEST_CASE("json: a duplicate key in a large object is refused", "[core][json]") {
  std::string text = "{";
  for (int i = 0; i < 100; ++i) {
    text += "\"k" + std::to_string(i) + "\":0,";
  }
  CHECK_NOTHROW(parse_json(text + "\"new\":0}", "t"));
  CHECK_THROWS_AS(parse_json(text + "\"k7\":0}", "t"), graft::Error);
  CHECK_THROWS_AS(parse_json(text + "\"k99\":0}", "t"), graft::Error);
}

TEST_CASE("json: errors name file, line and column", "[core][json]") {
  CHECK(error_of("{\n \"a\": 1,\n \"a\": 2}").find("t.json:3:") != std::string::npos);
  CHECK(error_of("{\n \"a\": 1,\n \"a\": 2}").find("duplicate key \"a\"") != std::string::npos);
}

TEST_CASE("json: nesting is bounded", "[core][json]") {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  CHECK_NOTHROW(parse_json(nested(200), "t"));
  CHECK_THROWS_AS(parse_json(nested(300), "t"), graft::Error);
  CHECK_THROWS_AS(parse_json(nested(2000000), "t"), graft::Error);
}

TEST_CASE("json: styles write Python's one-line and indented forms", "[core][json]") {
  const Json tree = parse_json(R"({"b":[1,2],"a":"é\u0007😀"})", "t");
  CHECK(dump_json(tree, {.spaces = true}) == "{\"b\": [1, 2], \"a\": \"é\\u0007😀\"}");
  // json.dumps({"b":[1,2],"a":"é\x07😀"}, sort_keys=True, indent=2)
  CHECK(dump_json(tree, {.indent = 2, .sort_keys = true, .ascii = true}) ==
        "{\n  \"a\": \"\\u00e9\\u0007\\ud83d\\ude00\",\n  \"b\": [\n    1,\n    2\n  ]\n}");
}

TEST_CASE("json: a string is escaped alike wherever in a run of plain bytes it needs it",
          "[core][json]") {
  // RFC 8259, section 7, and json.dumps for the ascii form.
  const std::vector<std::array<std::string, 3>> kBytes = {
      {"\"", "\\\"", "\\\""},
      {"\\", "\\\\", "\\\\"},
      {"\n", "\\n", "\\n"},
      {"\x1f", "\\u001f", "\\u001f"},
      {"\x7f", "\x7f", "\\u007f"},
      {"\u00e9", "\u00e9", "\\u00e9"},
      {"\U0001F600", "\U0001F600", "\\ud83d\\ude00"},
      {std::string(1, '\0'), "\\u0000", "\\u0000"},
      {"~ /", "~ /", "~ /"}};
  for (size_t before = 0; before <= 33; ++before) {
    for (const auto& [byte, plain, ascii] : kBytes) {
      const std::string run(before, 'x');
      const std::string rest(before % 19, 'y');
      CAPTURE(before, plain);
      std::string out;
      graft::append_json_string(out, run + byte + rest + byte);
      CHECK(out == "\"" + run + plain + rest + plain + "\"");
      out.clear();
      graft::append_json_string(out, run + byte + rest + byte, true);
      CHECK(out == "\"" + run + ascii + rest + ascii + "\"");
    }
  }
}

TEST_CASE("json: access with the wrong type tells both types and the place", "[core][json]") {
  const Json tree = parse_json("{\"a\": \"x\"}", "t");
  CHECK_THROWS_WITH(tree.at("a").as_int(), Catch::Contains("expected an integer, got string") &&
                                               Catch::Contains("column 7"));
  CHECK_THROWS_WITH(tree.at("b"), Catch::Contains("missing key \"b\""));
}
