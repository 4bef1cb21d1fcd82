// Every string operation of the template engine on text of every origin: where each byte of the
// result comes from.
#include <cstdio>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "data/text/template.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

// `source` with S in place of the text "ab cd"; `result`: "s" for a byte that comes from S, "t" for
// one of the template, in order.
struct Operation {
  const char* source;
  const char* text;
  const char* result;
};

const std::vector<Operation> kOperations = {
    {"{{ S }}", "ab cd", "sssss"},
    {"{{ S.strip() }}", "ab cd", "sssss"},
    {"{{ S.lstrip('a') }}", "b cd", "ssss"},
    {"{{ S.rstrip('d') }}", "ab c", "ssss"},
    {"{{ ('  ' ~ S ~ ' ')|trim }}", "ab cd", "sssss"},
    {"{{ S|trim('ad') }}", "b c", "sss"},
    {"{{ S[1:] }}", "b cd", "ssss"},
    {"{{ S[:2] }}", "ab", "ss"},
    {"{{ S[-2:] }}", "cd", "ss"},
    {"{{ S[0] }}", "a", "s"},
    {"{{ S[::-1] }}", "dc ba", "sssss"},
    {"{{ S.split()[1] }}", "cd", "ss"},
    {"{{ S.split('b')[0] }}", "a", "s"},
    {"{{ S.split(' ', 1)|join('+') }}", "ab+cd", "sstss"},
    {"{{ S.splitlines()[0] }}", "ab cd", "sssss"},
    {"{{ S.replace('b ', 'XY') }}", "aXYcd", "sttss"},
    {"{{ S|replace('ab', '') }}", " cd", "sss"},
    {"{{ S + 'x' }}", "ab cdx", "ssssst"},
    {"{{ 'x' ~ S ~ 1 }}", "xab cd1", "tssssst"},
    {"{{ S * 2 }}", "ab cdab cd", "ssssssssss"},
    {"{{ [S, 'x']|join('-') }}", "ab cd-x", "ssssstt"},
    {"{{ '-'.join([S, S]) }}", "ab cd-ab cd", "ssssstsssss"},
    {"{{ S|list|join }}", "ab cd", "sssss"},
    {"{{ S.upper() }}", "AB CD", "sssss"},
    {"{{ S|upper }}", "AB CD", "sssss"},
    {"{{ S.lower() }}", "ab cd", "sssss"},
    {"{{ S|lower }}", "ab cd", "sssss"},
    {"{{ S.title() }}", "Ab Cd", "sssss"},
    {"{{ S.capitalize() }}", "Ab cd", "sssss"},
    {"{{ S|capitalize }}", "Ab cd", "sssss"},
    {"{{ '<{}>'.format(S) }}", "<ab cd>", "tssssst"},
    // The margin counts as the line that it indents.
    {"{{ S|indent(2, true) }}", "  ab cd", "sssssss"},
    {"{{ S|string }}", "ab cd", "sssss"},
    {"{{ S|safe }}", "ab cd", "sssss"},
    {"{{ nothing|default(S) }}", "ab cd", "sssss"},
    {"{{ [S]|first }}", "ab cd", "sssss"},
    {"{{ ['x', S]|last }}", "ab cd", "sssss"},
    {"{{ [S]|map('upper')|join }}", "AB CD", "sssss"},
    {"{{ [S]|unique|join }}", "ab cd", "sssss"},
    {"{{ [{'k': S}]|map(attribute='k')|join }}", "ab cd", "sssss"},
    {"{{ {'k': S}.k }}", "ab cd", "sssss"},
    {"{{ {'k': S}['k'] }}", "ab cd", "sssss"},
    {"{{ {'k': S}.get('k') }}", "ab cd", "sssss"},
    {"{% for k, v in {'k': S}|items %}{{ k }}{{ v }}{% endfor %}", "kab cd", "tsssss"},
    {"{% for k, v in {'k': S}|dictsort %}{{ v }}{% endfor %}", "ab cd", "sssss"},
    {"{% for w in S.split() %}{{ w }},{% endfor %}", "ab,cd,", "sstsst"},
    {"{{ S if true else 'x' }}", "ab cd", "sssss"},
    {"{{ false or S }}", "ab cd", "sssss"},
    {"{% set y = S %}{{ y }}", "ab cd", "sssss"},
    {"{% set y %}a{{ S }}{% endset %}{{ y }}", "aab cd", "tsssss"},
    {"{% set ns = namespace(v='') %}{% set ns.v = ns.v + S %}{{ ns.v }}", "ab cd", "sssss"},
    {"{% macro f(v) %}<{{ v }}>{% endmacro %}{{ f(S) }}", "<ab cd>", "tssssst"},
    {"{% macro f(v=S) %}{{ v|upper }}{% endmacro %}{{ f() }}", "AB CD", "sssss"},
    {"{% filter upper %}a{{ S }}{% endfilter %}", "AAB CD", "tsssss"},
    {"{% generation %}{{ S }}!{% endgeneration %}", "ab cd!", "ssssst"},
};

struct Source {
  const char* expression;
  char letter;  // as in origins()
};
const std::vector<Source> kSources = {
    {"'ab cd'", 't'}, {"messages[0].content", 'c'}, {"messages[0].name", 'f'}, {"given", 'i'}};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string origins(const Rendered& rendered) {
  std::string letters;
  for (const Piece& piece : rendered.pieces) {
    letters.append(static_cast<size_t>(piece.end - piece.begin),
                   "tcfi"[static_cast<size_t>(piece.origin)]);
  }
  return letters;
}

}  // namespace

TEST_CASE("template: every string operation keeps the origin of every byte", "[data][template]") {
  RenderInput input;
  input.messages = parse_json(R"([{"role": "user", "content": "ab cd", "name": "ab cd"}])", "test");
  input.vars = Json::object({{"given", "ab cd"}});
  int checked = 0;
  for (const Operation& operation : kOperations) {
    for (const Source& source : kSources) {
      const std::string text = replaced(operation.source, "S", source.expression);
      CAPTURE(text);
      const Rendered rendered = ChatTemplate(text, "t.jinja").render(input);
      CHECK(rendered.text == operation.text);
      std::string expected = operation.result;
      for (char& letter : expected) {
        if (letter == 's') letter = source.letter;
      }
      CHECK(origins(rendered) == expected);
      ++checked;
    }
  }
  std::printf("provenance: %zu operations x %zu origins = %d\n", kOperations.size(),
              kSources.size(), checked);
}

}  // namespace graft::data
