// Tokenizers and templates made to hurt: each ends in a clear error, within a second of processor
// time and in bounded memory.
#include <fstream>
#include <functional>

#include "core/error.h"
#include "data/text/template.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "tests/data/text/golden.h"
#include "tests/data/text/model_proto.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

std::string repeated(const std::string& text, size_t count) {
  std::string result;
  result.reserve(text.size() * count);
  for (size_t i = 0; i < count; ++i) result += text;
  return result;
}

// The process's memory at its highest since the last call, in MiB.
int64_t take_peak_mib() {
  std::ifstream status("/proc/self/status");
  int64_t peak = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) peak = std::stoll(line.substr(6)) / 1024;
  }
  std::ofstream("/proc/self/clear_refs") << "5";
  return peak;
}

struct Hostile {
  const char* what;
  const char* message;  // part of the error
  std::function<void()> use;
};

std::unique_ptr<Tokenizer> tokenizer_of(const std::string& json) {
  auto parts = std::make_unique<Tokenizer::Parts>();
  parts->name = "tokenizer.json";
  read_tokenizer_json(json, parts->name, *parts);
  parts->finish();
  return std::make_unique<Tokenizer>(std::move(parts));
}

// A small BPE model with other members in front.
std::string with(const std::string& members, const std::string& model = "") {
  return "{" + members + R"("model": {"type": "BPE", "unk_token": "u", )" + model +
         R"("vocab": {"u": 0, "a": 1}, "merges": []}})";
}

void read_model(const std::string& bytes) {
  Tokenizer::Parts parts;
  read_sentencepiece_model(bytes, "tokenizer.model", Legacy::kYes, parts);
}

void split_with(const std::string& regex, const std::string& text) {
  const std::string pattern = dump_json(Json(regex));
  tokenizer_of(with(R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": )" + pattern +
                    R"(}, "behavior": "Isolated", "invert": false}, )"))
      ->encode(text);
}

void render(const std::string& source) {
  RenderInput input;
  input.messages = parse_json(R"([{"role": "user", "content": "hi"}])", "test");
  ChatTemplate(source, "t.jinja").render(input);
}

const std::vector<Hostile>& hostile() {
  static const std::vector<Hostile> all = {
      {"a million open brackets", "levels",
       [] { tokenizer_of(with("\"normalizer\": " + repeated("[", 1'000'000))); }},
      {"a million open objects", "levels",
       [] { tokenizer_of(with("\"normalizer\": " + repeated("{\"a\":", 1'000'000))); }},
      {"a sequence in a sequence, without end", "levels",
       [] {
         tokenizer_of(with("\"normalizer\": " +
                           repeated(R"({"type": "Sequence", "normalizers": [)", 100'000)));
       }},
      {"20 MB of normalizers", "at most",
       [] {
         tokenizer_of(with(R"("normalizer": {"type": "Sequence", "normalizers": [)" +
                           repeated(R"({"type":"NFC"},)", 1'400'000) + R"({"type":"NFC"}]}, )"));
       }},
      {"a string of 20 MB without an end", "without an end",
       [] { tokenizer_of("{\"version\": \"" + repeated("x", 20'000'000)); }},
      {"wrong types", "missing key \"type\"",
       [] { tokenizer_of(with("\"normalizer\": [1, 2], ")); }},
      {"an id of 10^18", "id",
       [] { tokenizer_of(R"({"model": {"vocab": {"a": 1000000000000000000}, "merges": []}})"); }},
      {"added tokens of 2 MB", "added tokens must have at most",
       [] {
         std::string tokens;
         for (int i = 0; i < 50; ++i) {
           tokens += (i > 0 ? ", " : "") + (R"({"id": )" + std::to_string(2 + i)) +
                     R"(, "content": ")" + std::to_string(i) + repeated("x", 40'000) + "\"}";
         }
         tokenizer_of(with("\"added_tokens\": [" + tokens + "], "));
       }},
      {"an added token of 2 MB", "at most 65535 bytes, got 2000000",
       [] {
         tokenizer_of(with(R"("added_tokens": [{"id": 2, "content": ")" + repeated("x", 2'000'000) +
                           "\"}], "));
       }},
      {"a merge of a token that is none", "not in the vocabulary",
       [] { tokenizer_of(R"({"model": {"vocab": {"a": 0}, "merges": ["a a"]}})"); }},
      {"catastrophic backtracking", "regular expression",
       [] { split_with("(a+)+$", repeated("a", 100'000) + "!"); }},
      {"a backtracking bomb at every byte", "regular expression",
       [] { split_with("(?:a?){24}a{24}[bc]", repeated("a", 100'000)); }},
      {"a lookahead over the rest at every byte", "regular expression",
       [] { split_with("a(?=.*[bc])", repeated("a", 1'000'000)); }},
      {"a pattern of 20,000 groups", "regular expression",
       [] { split_with(repeated("(a", 20'000) + repeated(")", 20'000), "a"); }},
      {"a repetition of repetitions", "regular expression",
       [] { split_with("((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99})", "a"); }},
      {"a character map whose tree points outside", "character map",
       [] {
         // 5 bytes, of which 200 are said to be the tree.
         read_model(test::field(1, test::field(1, "a")) +
                    test::field(3, test::field(2, std::string("\xC8\0\0\0x", 5))));
       }},
      {"a piece of a megabyte", "at most 65535 bytes, got 1000000",
       [] {
         // trainer_spec.model_type = BPE
         read_model(test::field(1, test::field(1, repeated("a", 1'000'000))) +
                    test::field(2, "\x18\x02"));
       }},
      {"a piece of 65,000 bytes", "too long",
       [] {
         read_model(test::field(1, test::field(1, repeated("a", 65'000))) +
                    test::field(2, "\x18\x02"));
       }},
      {"5 million pieces", "more than",
       [] { read_model(repeated(std::string("\x0A\0", 2), 5'000'000)); }},
      {"loops in loops", "steps",
       [] {
         render("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
       }},
      {"a macro that calls itself", "calls",
       [] { render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"); }},
      {"a terabyte of text", "bytes", [] { render("{{ 'x' * 1000000000000 }}"); }},
      {"text that doubles", "steps",
       [] {
         render(
             "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}"
             "{% set ns.x = ns.x ~ ns.x %}{% endfor %}");
       }},
      {"lists that double", "steps",
       [] {
         render(
             "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
             "{% set ns.x = ns.x + ns.x %}{% endfor %}");
       }},
      {"100,000 parentheses", "t.jinja",
       [] { render("{{ " + repeated("(", 100'000) + "1" + repeated(")", 100'000) + " }}"); }},
      {"100,000 blocks in blocks", "t.jinja", [] { render(repeated("{% if 1 %}", 100'000)); }},
      {"100,000 filters in a row", "t.jinja",
       [] { render("{{ 1" + repeated("|string", 100'000) + " }}"); }},
      {"a template of 20 MB", "t.jinja", [] { render(repeated("{{ 1 }}", 3'000'000)); }},
  };
  return all;
}

}  // namespace

TEST_CASE("hostile: every file ends in a clear error, soon and in bounded memory",
          "[data][hostile]") {
  const size_t index = GENERATE(range(size_t{0}, size_t{28}));
  REQUIRE(hostile().size() == 28);
  const Hostile& file = hostile()[index];
  CAPTURE(file.what);
  take_peak_mib();
  const double start = test::cpu_seconds();
  CHECK_THROWS_WITH(file.use(), Catch::Contains(file.message));
  CHECK(test::cpu_seconds() - start < 1.0);
  CHECK(take_peak_mib() < 512);
}

}  // namespace graft::data
