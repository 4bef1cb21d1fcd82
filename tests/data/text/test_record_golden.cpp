// Every form in which a record gives its content, tool calls and tools: what the template sees is
// what transformers shows it for the conversation that the record means.
#include "core/error.h"
#include "data/text/turns.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {

TEST_CASE("records: tools, calls, parts and padding reach the template as transformers gives them",
          "[data][template]") {
  int rows = 0;
  for (const Json& row : test::read_golden(test::source_path("tests/golden/record_golden.jsonl"))) {
    CAPTURE(row.at("name").as_string());
    const Record record = parse_record(row.at("record"), "test");
    const ChatTemplate chat(row.at("template").as_string(), "kinds.jinja");
    const Rendered rendered = chat.render(conversation_of(record), record.messages.size(), {});
    CHECK(rendered.text == row.at("text").as_string());
    ++rows;
  }
  CHECK(rows == 18);
}

TEST_CASE("records: a message must say something or call a tool", "[data][template]") {
  const auto parse = [](const std::string& message) {
    return parse_record(parse_json("{\"messages\": [" + message + "]}", "test"), "test");
  };
  CHECK_THROWS_WITH(parse(R"({"role": "assistant"})"), Catch::Contains("no \"content\""));
  CHECK_THROWS_WITH(parse(R"({"role": "assistant", "tool_calls": null})"),
                    Catch::Contains("no \"content\""));
  CHECK(parse(R"({"role": "assistant", "content": null})").messages[0].given == Content::kText);
  CHECK(parse(R"({"role": "assistant", "content": null, "tool_calls": []})").messages[0].given ==
        Content::kNull);
}

}  // namespace graft::data
