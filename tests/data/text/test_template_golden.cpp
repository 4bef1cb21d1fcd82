// Rendered text and generation spans against transformers' own renderer.
#include <cstdio>
#include <map>

#include "core/error.h"
#include "data/text/template.h"
#include "data/text/utf8.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

RenderInput input_of(const Json& row) {
  RenderInput input;
  input.messages = row.at("messages");
  if (const Json* tools = row.find("tools")) input.tools = *tools;
  input.add_generation_prompt = row.at("add_generation_prompt").as_bool();
  input.vars = row.at("vars");
  input.now = "2026-11-22";
  return input;
}

std::vector<ByteRange> in_characters(const Rendered& rendered) {
  std::vector<ByteRange> spans;
  const auto characters = [&](int64_t end) {
    return static_cast<int64_t>(
        utf8_count(std::string_view(rendered.text).substr(0, static_cast<size_t>(end))));
  };
  for (const ByteRange& span : rendered.generation) {
    spans.push_back({characters(span.begin), characters(span.end)});
  }
  return spans;
}

}  // namespace

TEST_CASE("template: real templates render as transformers renders them", "[data][template]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const std::string directory = shared + "/data/chat_templates/";
  int equal = 0;
  int errors = 0;
  std::map<std::string, int> refused;
  for (const Json& row : test::read_golden(directory + "golden.jsonl")) {
    const std::string name = row.at("template").as_string();
    CAPTURE(name, row.at("conv").as_string(), row.at("add_generation_prompt").as_bool());
    const Json* expected = row.find("text");
    try {
      const ChatTemplate chat(read_file(directory + name), name);
      const Rendered rendered = chat.render(input_of(row));
      REQUIRE(expected);
      CHECK(rendered.text == expected->as_string());
      CHECK(in_characters(rendered) == test::ranges_of(row, "spans"));
      ++equal;
    } catch (const Error& error) {
      if (!expected) {
        ++errors;
      } else {
        ++refused[std::string(error.what())];
      }
    }
  }
  int refusals = 0;
  for (const auto& [what, count] : refused) {
    std::printf("refused %d: %s\n", count, what.c_str());
    refusals += count;
  }
  std::printf("template goldens: %d equal, %d errors as expected, %d refused\n", equal, errors,
              refusals);
  CHECK(refusals == 0);
}

}  // namespace graft::data
