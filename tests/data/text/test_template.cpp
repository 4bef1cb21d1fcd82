#include "core/error.h"
#include "core/file.h"
#include "data/text/template.h"
#include "data/text/utf8.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

Json messages(const std::string& json) {
  return parse_json(json, "test");
}

Rendered render(const std::string& source, const std::string& chat = R"([])") {
  RenderInput input;
  input.messages = messages(chat);
  return ChatTemplate(source, "t.jinja").render(input);
}

// Each byte's origin as a letter: t template, c content, f field, i input.
std::string origins(const Rendered& rendered) {
  std::string letters;
  for (const Piece& piece : rendered.pieces) {
    REQUIRE(piece.begin == static_cast<int64_t>(letters.size()));
    letters.append(static_cast<size_t>(piece.end - piece.begin),
                   "tcfi"[static_cast<size_t>(piece.origin)]);
  }
  REQUIRE(letters.size() == rendered.text.size());
  return letters;
}

}  // namespace

TEST_CASE("template: goldens of transformers' renderer", "[data][template]") {
  int rows = 0;
  for (const Json& row :
       test::read_golden(test::source_path("tests/golden/template_golden.jsonl"))) {
    CAPTURE(row.at("name").as_string(), dump_json(row.at("messages")));
    RenderInput input;
    input.messages = row.at("messages");
    input.tools = row.at("tools");
    input.vars = row.at("vars");
    input.add_generation_prompt = row.at("add_generation_prompt").as_bool();
    const ChatTemplate chat(row.at("template").as_string(), row.at("name").as_string());
    ++rows;
    if (row.find("error")) {
      CHECK_THROWS_AS(chat.render(input), Error);
      continue;
    }
    const Rendered rendered = chat.render(input);
    CHECK(rendered.text == row.at("text").as_string());
    std::vector<ByteRange> spans;
    for (const ByteRange& span : rendered.generation) {
      const std::string_view text = rendered.text;
      spans.push_back(
          {static_cast<int64_t>(utf8_count(text.substr(0, static_cast<size_t>(span.begin)))),
           static_cast<int64_t>(utf8_count(text.substr(0, static_cast<size_t>(span.end))))});
    }
    CHECK(spans == test::ranges_of(row, "spans"));
  }
  CHECK(rows == 132);
}

TEST_CASE("template: every string operation keeps the origin of each byte", "[data][template]") {
  // x is the content "ab, cd"; the expected letters follow from which bytes of the result are x's.
  const auto [expression, text, letters] = GENERATE(table<std::string, std::string, std::string>({
      {"x", "ab, cd", "cccccc"},
      {"'<' + x + '>'", "<ab, cd>", "tcccccct"},
      {"'<' ~ x ~ 1", "<ab, cd1", "tcccccct"},
      {"x[1:4]", "b, ", "ccc"},
      {"x[::-1]", "dc ,ba", "cccccc"},
      {"x[0]", "a", "c"},
      {"(' ' + x + ' ').strip()", "ab, cd", "cccccc"},
      {"('__' + x).lstrip('_a')", "b, cd", "ccccc"},
      {"x.rstrip('d')", "ab, c", "ccccc"},
      {"x | trim", "ab, cd", "cccccc"},
      {"x.split(', ')[1]", "cd", "cc"},
      {"x.split() | join('+')", "ab,+cd", "ccctcc"},
      {"'+'.join(x.split(', '))", "ab+cd", "cctcc"},
      {"x.replace(',', ';')", "ab; cd", "cctccc"},
      {"x | replace('ab', '')", ", cd", "cccc"},
      {"x | upper", "AB, CD", "cccccc"},
      {"x.title()", "Ab, Cd", "cccccc"},
      {"x | capitalize", "Ab, cd", "cccccc"},
      {"x | string | safe", "ab, cd", "cccccc"},
      {"missing | default(x)", "ab, cd", "cccccc"},
      {"x if true else 'y'", "ab, cd", "cccccc"},
      {"[x, 'z'] | last ~ [x] | first", "zab, cd", "tcccccc"},
      {"x | tojson", "\"ab, cd\"", "cccccccc"},
      {"{'k': x} | tojson", "{\"k\": \"ab, cd\"}", "ttttttcccccccct"},
      {"[x]", "['ab, cd']", "tcccccccct"},
      {"x * 2", "ab, cdab, cd", "cccccccccccc"},
      {"(x ~ '\\n' ~ x) | indent(1)", "ab, cd\n ab, cd", "ccccccttcccccc"},
      {"'[{}]'.format(x)", "[ab, cd]", "tcccccct"},
      {"messages[0].role", "user", "ffff"},
      {"x | list | join", "ab, cd", "cccccc"},
  }));
  CAPTURE(expression);
  const Rendered rendered = render("{% set x = messages[0].content %}{{ " + expression + " }}",
                                   R"([{"role": "user", "content": "ab, cd"}])");
  CHECK(rendered.text == text);
  // `indent` puts its margin in front of a line with that line's origin.
  std::string expected = letters;
  if (expression.find("indent") != std::string::npos) expected[7] = 'c';
  CHECK(origins(rendered) == expected);
}

TEST_CASE("template: macros, set blocks and namespaces keep origins and generation marks",
          "[data][template]") {
  const Rendered rendered = render(
      "{% macro m(v) %}({{ v }}){% endmacro %}{% set ns = namespace(y='') %}"
      "{% set b %}{% generation %}{{ messages[0].content }}!{% endgeneration %}{% endset %}"
      "{% set ns.y = b %}{{ m(ns.y) }}",
      R"([{"role": "assistant", "content": "hi"}])");
  CHECK(rendered.text == "(hi!)");
  CHECK(origins(rendered) == "tcctt");
  CHECK(rendered.generation == std::vector<ByteRange>{{1, 4}});
  CHECK(rendered.pieces[1].generation);
  CHECK(rendered.pieces[1].message == 0);
}

TEST_CASE("template: what graft does not know is refused by name and place", "[data][template]") {
  const auto [source, message] = GENERATE(table<std::string, std::string>({
      {"a\n{% include 'x' %}", "include"},
      {"{% for a in b recursive %}{% endfor %}", "recursive"},
      {"{{ 2 ** 3 }}", "**"},
      {"{% raw %}x{% endraw %}", "raw"},
      {"{{ f(*a) }}", "starred"},
      {"{% if true %}", "endif"},
      {"{{ 'a }}", "no end"},
      {"{{ 1 + }}", "an expression"},
      {"{# never closed", "no end"},
      {"{% break %}", "loop"},
  }));
  CAPTURE(source);
  CHECK_THROWS_WITH(ChatTemplate(source, "t.jinja"),
                    Catch::Contains(message) && Catch::Contains("t.jinja:"));
  CHECK_THROWS_WITH(
      render("\n  {{ 'x' | wordwrap }}"),
      Catch::Contains("unknown filter \"wordwrap\"") && Catch::Contains("t.jinja:2:"));
  CHECK_THROWS_WITH(render("{{ 1 is prime }}"), Catch::Contains("unknown test \"prime\""));
  CHECK_THROWS_WITH(render("{{ 'x'.zfill(3) }}"), Catch::Contains("str.zfill"));
  CHECK_THROWS_WITH(render("{{ messages.append(1) }}"), Catch::Contains("list.append"));
  CHECK_THROWS_WITH(render("{{ ''.__class__ }}"), Catch::Contains("unsafe"));
  CHECK_THROWS_WITH(render("{{ nothing.x }}"), Catch::Contains("'nothing' is undefined"));
  CHECK_THROWS_WITH(render("{{ raise_exception('no tools') }}"), Catch::Contains("no tools"));
}

TEST_CASE("template: bombs end in an error, quickly", "[data][template]") {
  const std::vector<std::string> sources = {
      "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{{ 'x' * 1000000000000 }}",
      "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(99) %}"
      "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
      "{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}"
      "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
      "{{ ('x' * 9999999).replace('x', 'y' * 99999) }}",
      "{% for i in range(99999999999) %}{% endfor %}",
      "{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + " }}",
      "{{ a" + std::string(100000, '-') + "1 }}",
      "{{ " + std::string(100000, '[') + std::string(100000, ']') + " }}",
      "{% set ns = namespace() %}{% set ns.self = ns %}",
  };
  const size_t i = GENERATE(range(size_t{0}, size_t{12}));
  REQUIRE(sources.size() == 12);
  CAPTURE(sources[i].substr(0, 80));
  const double start = test::cpu_seconds();
  CHECK_THROWS_AS(render(sources[i]), Error);
  CHECK(test::cpu_seconds() - start < 1.0);
}

TEST_CASE("template: the date is the caller's", "[data][template]") {
  const ChatTemplate chat("{{ strftime_now('%d %b %Y') }}", "t.jinja");
  RenderInput input;
  CHECK_THROWS_WITH(chat.render(input), Catch::Contains("writes today's date"));
  input.now = "2024-07-26";
  CHECK(chat.render(input).text == "26 Jul 2024");
  input.now = "26.7.2024";
  CHECK_THROWS_WITH(chat.render(input), Catch::Contains("YYYY-MM-DD"));
}

TEST_CASE("template: a model directory's template and special tokens are found",
          "[data][template]") {
  const test::TempDir dir;
  CHECK_FALSE(ChatTemplate::load(dir.path()));
  const std::string tokens = R"("bos_token": {"content": "<s>"}, "eos_token": "</s>")";
  const auto config = [&](const std::string& chat_template) {
    write_file_atomically(dir.file("tokenizer_config.json"),
                          "{" + tokens + ", \"chat_template\": " + chat_template + "}");
  };
  config(R"("{{ bos_token }}one{{ eos_token }}")");
  CHECK(ChatTemplate::load(dir.path())->render({}).text == "<s>one</s>");
  config(R"([{"name": "tool_use", "template": "u"}, {"name": "default", "template": "d"}])");
  CHECK(ChatTemplate::load(dir.path())->render({}).text == "d");
  CHECK(ChatTemplate::load(dir.path(), "tool_use")->render({}).text == "u");
  CHECK_THROWS_WITH(ChatTemplate::load(dir.path(), "tool"), Catch::Contains("tool_use"));
  write_file_atomically(dir.file("chat_template.jinja"), "file{{ bos_token }}");
  CHECK(ChatTemplate::load(dir.path())->render({}).text == "file<s>");
}

}  // namespace graft::data
