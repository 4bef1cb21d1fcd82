// Walks the table: each rule is documented, finds what it should, and leaves its neighbours alone.
#include <map>
#include <set>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/yaml.h"
#include "data/curate/rules.h"
#include "tests/data/curate/curate_support.h"

using namespace graft;
using namespace graft::data;
using graft::test::alpaca;
using graft::test::clean_text;
using graft::test::has_rule;
using graft::test::lines;

namespace {

struct Case {
  std::vector<std::string> found;  // each set of lines: the last one must be found
  std::vector<std::string> kept;   // each set of lines: none may be found by this rule
};

std::string chat(const std::string& turns) {
  return "{\"messages\": [" + turns + "]}";
}

// `n` times.
std::string times(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) {
    out += text;
  }
  return out;
}

const std::map<std::string_view, Case>& cases() {
  static const std::string kLong =
      "The old mill stands at the river where the road from the village meets the path through the "
      "woods, and every summer the children of the miller play on its wheel.";
  static const std::map<std::string_view, Case> kCases = {
      {"malformed",
       {{"{\"instruction\": \"a\", \"output\": ", "{\"text\": \"\xFF\"}", "{\"text\": \"\\ud800\"}",
         "nonsense"},
        {alpaca("a", "", "b"), "{\"text\": \"\\ud83d\\ude00\"}"}}},
      {"schema",
       {{"{\"question\": \"a\"}", "{\"instruction\": \"a\"}",
         "{\"instruction\": \"a\", \"output\": 3}", "[1]", "7"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", "{\"text\": \"t\"}"}}},
      {"roles",
       {{chat(R"({"role": "user", "content": "Hi"})"),
         chat(R"({"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"})")},
        {chat(R"({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."})"),
         "{\"text\": \"no roles at all\"}"}}},
      {"empty_prompt",
       {{alpaca(" ", "", "An answer.")}, {alpaca("Why?", "", "An answer."), "{\"text\": \"a\"}"}}},
      {"empty_output",
       {{alpaca("Say it", "", ""), alpaca("Say it", "", " \\n ")},
        {alpaca("Is it so?", "", "Yes"), alpaca("1+1", "", "2"),
         chat(
             R"({"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3"})")}}},
      {"marker_output",
       {{alpaca("Draw a map", "", "<nooutput>"), alpaca("Draw a map", "", "N/A"),
         alpaca("Draw a map", "", "n/a."), alpaca("Draw a map", "", "nan"),
         alpaca("Draw a map", "", "None"), alpaca("Draw a map", "", "[insert answer here]"),
         alpaca("Draw a map", "", "TODO"), alpaca("Draw a map", "", "..."),
         alpaca("Draw a map", "", "No output"), alpaca("Draw a map", "", "To be added")},
        {alpaca("Which of these is a mammal?", "trout, crow", "None"),
         alpaca("What does this Python code print?", "print(None)", "None"),
         alpaca("Is it so?", "", "No"), alpaca("Name a metal", "", "Tin"),
         alpaca("Label as done or pending", "rent", "Pending"), alpaca("Grade it", "", "A")}}},
      {"noinput_marker",
       {{alpaca("Tell a joke", "<noinput>", "A good one."),
         alpaca("Tell a joke", "No input required.", "A good one."),
         alpaca("Tell a joke", "n/a", "A good one.")},
        {alpaca("Tell a joke", "", "A good one."),
         alpaca("Tell a joke", "about input devices", "A good one.")}}},
      {"refusal",
       {{alpaca("Who wins?", "", "As an AI language model, I cannot predict this."),
         alpaca("Who wins?", "", "I'm sorry, but I can't help with that."),
         alpaca("Who wins?", "", "I am unable to answer this question."),
         alpaca("Who wins?", "", "Unfortunately, I cannot provide that.")},
        {alpaca("Write a reply to a customer", "", "I'm sorry, but I can't refund this."),
         alpaca("What is a language model?", "", "A language model gives probabilities to texts."),
         alpaca("Why is he sad?", "", "He is sorry that he cannot come.")}}},
      {"echo",
       {{alpaca("Describe the life of bees in summer.", "", "describe the life of bees in summer."),
         alpaca("Translate to French", "The cat sleeps here.", "The cat sleeps here.")},
        {alpaca("Correct the grammar", "The cat sleeps here.", "The cat sleeps here."),
         alpaca("Repeat this sentence.", "", "Repeat this sentence."),
         alpaca("Translate to German", "Computer", "Computer")}}},
      {"missing_input",
       {{alpaca("Summarize the following article.", "", "It is about trade."),
         alpaca("Rewrite the following sentence in the passive voice", "", "It was done."),
         alpaca("Translate the text below.", "", "Bonjour."),
         alpaca("Classify the given sentence as positive or negative.", "", "Positive"),
         alpaca("Summarize the following text:", "", "It is about trade."),
         alpaca("Translate the following text to French: ", "", "Bonjour."),
         alpaca("Rewrite this sentence:", "", "It was done."),
         alpaca("which team gets the following mail?", "", "billing"),
         alpaca("put the following ticket into a team.", "", "billing"),
         alpaca("Label the request below.\\n\\nRequest:", "", "refund"),
         alpaca("Sort the following customer complaint by urgency:", "", "high"),
         alpaca("Is the following comment friendly?", "", "yes"),
         alpaca("Say what is wrong in the log below.", "", "A crash."),
         alpaca("Shorten this post.", "", "Sale today."),
         alpaca("Here is the support ticket:", "", "billing"),
         chat(R"({"role": "user", "content": "Name the team for the following note:"}, )"
              R"({"role": "assistant", "content": "billing"})")},
        {alpaca("Summarize the following article.", "Trade grew.", "Trade grew."),
         alpaca("Rewrite the following sentence: He did it.", "", "It was done."),
         alpaca("Answer the following question. Who are you?", "", "A miller."),
         alpaca("Write a function that reverses the given sentence.", "", "Use a loop."),
         alpaca("Sort the following numbers 3, 1, 2", "", "1, 2, 3"),
         alpaca("Write a report with the following sections: aim, method, result.", "", "Aim."),
         alpaca("which team gets the following mail? My card was charged twice", "", "billing"),
         alpaca("put the following ticket into a team:\\n\\nThe app is slow", "", "apps"),
         alpaca("put the following ticket into a team.", "The app is slow", "apps"),
         alpaca("Write a short post about tea:", "", "Tea is warm."),
         alpaca("Name three parts of a bug report:", "", "Title, steps, result.")}}},
      {"wrong_arithmetic",
       {{alpaca("Add them", "", "So 12 + 5 = 18 apples."),
         alpaca("Buy", "", "It costs $3 x 4 = $13."),
         alpaca("Chain", "", "We get 2 + 3 * 4 = 20.")},
        {alpaca("Add them", "", "So 12 + 5 = 17 apples."),
         alpaca("Divide", "", "10 / 3 = 3.33 each"), alpaca("Chain", "", "We get 2 + 3 * 4 = 14."),
         alpaca("Percent", "", "60 x 60/100 = 36 students"), alpaca("Percent", "", "1/4 = 25%"),
         alpaca("Half", "", "x + 3 = 4, so x = 1"), alpaca("Time", "", "0900-0130 = 0730"),
         alpaca("Mixed", "", "12 x 1 and 1/4 = 15")}}},
      {"truncated",
       {{alpaca(
             "Tell of the mill", "",
             "The mill is old. It stands at the river where the road from the village meets the"),
         alpaca("Tell of the mill", "",
                "The mill is old. It stands at the river and children play on the wheel of its"),
         alpaca("Tell of the mill", "",
                "The mill is very old and big. It stands at the river where children pl"),
         alpaca("Show code", "", "Here it is:\\n```python\\nprint(1)"),
         alpaca("As JSON", "", R"({\"name\": \"mill\", \"age\": [1, 2)"),
         alpaca("List three", "", "We need flour, water and salt,")},
        {alpaca("Tell of the mill", "", kLong), alpaca("Is it so?", "", "Yes"),
         alpaca("As JSON", "", R"({\"name\": \"mill\"})"),
         alpaca("Show code", "", "```python\\nprint(1)\\n```"), alpaca("Label", "", "positive"),
         alpaca("List", "", "- flour\\n- water\\n- salt"),
         alpaca("Letter", "",
                "Thank you for coming. It was a joy.\\n\\nYours truly,\\nJane Miller"),
         alpaca("Tweet", "", "What a day at the mill. Come and see it! #mill #river"),
         alpaca("Title", "", "The Miller of the River and the Village")}}},
      {"repetition",
       {{alpaca("Tell more", "", "It began well. " + times("I like the mill very much. ", 6)),
         alpaca("Tell more", "", times("very ", 20) + "old")},
        {alpaca("Tell more", "", kLong),
         alpaca("Write a song", "", times("row row row your boat ", 5)),
         alpaca("Laugh", "", "ha ha ha"),
         alpaca("Tell more", "", "No, no, no, it is not so, no, no.")}}},
      {"template_leak",
       {{alpaca("Tell", "", "Fine.<|im_end|>"),
         alpaca("Tell", "", "Fine.\\n### Instruction:\\nNext"),
         alpaca("Tell", "", "Fine. 18. Instruction: Write a poem"),
         alpaca("[INST] Tell [/INST]", "", "Fine."), alpaca("Tell", "", "Fine.</s>"),
         alpaca("Tell", "", "Fine.\\nHuman: And now?"), alpaca("Tell", "", "Fine.<end_of_turn>"),
         alpaca("Tell {{ instruction }}", "", "Fine.")},
        {alpaca("Write a dialogue", "", "User: Hi\\nAssistant: Hello"),
         alpaca("Write HTML", "", "<s>old</s> new"), alpaca("Compare", "", "a < b | c > d"),
         alpaca("Recipe", "", "Instructions: mix it."), alpaca("Cite", "", "See [1] and [2].")}}},
      {"control_characters",
       {{alpaca("Tell", "", "a\\u0007b"), alpaca("Tell", "", "a\\u0000b"),
         alpaca("Tell", "", "broken \xEF\xBF\xBD mark"), alpaca("Tell", "", "a\\u0085b\\u0092")},
        {alpaca("Tell", "", "a\\tb\\r\\nc"),
         alpaca("Tell", "", "na\xC3\xAFve \xE2\x80\x93 50 \xC2\xB0"),
         alpaca("Tell", "", "\xF0\x9F\x98\x80")}}},
      {"mojibake",
       {{alpaca("Tell", "", "caf\xC3\x83\xC2\xA9"),
         alpaca("Tell", "", "it\xC3\xA2\xE2\x82\xAC\xE2\x84\xA2s"),
         alpaca("Tell", "", "50 \xC3\x82\xC2\xB0")},
        {alpaca("Tell", "", "caf\xC3\xA9 \xC3\xA0 la carte"),
         alpaca("Tell", "", "it\xE2\x80\x99s \xE2\x82\xAC 5"),
         alpaca("Tell", "", "S\xC3\x83O PAULO")}}},
      {"literal_escapes",
       {{alpaca("List", "", "First\\\\nSecond"), alpaca("List", "", "One.\\\\n\\\\nTwo."),
         alpaca("Tell", "", "caf\\\\u00e9")},
        {alpaca("Explain the newline escape in code", "", "It is \\\\nX."),
         alpaca("Maths", "", "\\\\nu and \\\\neq are symbols"),
         alpaca("List", "", "First\\nSecond")}}},
      {"html_residue",
       {{alpaca("Tell", "", "One<br>Two"), alpaca("Tell", "", "Tom &amp; Jerry"),
         alpaca("Tell", "", "<p>One</p>")},
        {alpaca("Write an HTML page", "", "<p>One</p>"), alpaca("Compare", "", "1 < 2 and 3 > 2"),
         alpaca("Tell", "", "Tom & Jerry"), alpaca("Area", "", "70 m<sup>2</sup>")}}},
      {"email",
       {{alpaca("Tell", "", "Write to jane.doe@mail.org."),
         alpaca("Call jane@firm.co.uk", "", "Done."),
         alpaca("Tell", "", "jane (at) firm (dot) org")},
        {alpaca("Tell", "", "Write to your_name@firm.org"), alpaca("Tell", "", "@jane likes a@b"),
         alpaca("Tell", "", "git@github.com:a/b.git")}}},
      {"phone",
       {{alpaca("Tell", "", "Call (212) 736-5000 now"), alpaca("Tell", "", "Ring 212-736-5000."),
         alpaca("Tell", "", "+44 20 7946 0958"), alpaca("Tell", "", "Phone: 030 1234567")},
        {alpaca("Tell", "", "From 1914 to 1918"), alpaca("Tell", "", "It costs $2127365000"),
         alpaca("Tell", "", "Order number 212-736-5000"),
         alpaca("Tell", "", "1,234,567,890 people"), alpaca("Tell", "", "ISBN 978-3-16-148410-0"),
         alpaca("Tell", "", "2024-01-31"), alpaca("Tell", "", "Poison control: 1-800-222-1222"),
         alpaca("Tell", "", "123-456-7890")}}},
      {"secret",
       {{alpaca("Tell", "", "AKIAIOSFODNN7EXAMPLE"), alpaca("Tell", "", "ghp_" + times("a1B2", 9)),
         alpaca("Tell", "", "sk-" + times("x9Yq", 8)),
         alpaca("Tell", "", "-----BEGIN RSA PRIVATE KEY-----"),
         alpaca("Tell", "", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123456"),
         alpaca("Tell", "", "password: Tr0ub4dor&3xyz")},
        {alpaca("Tell", "", "Use sk-learn for this"),
         alpaca("Tell", "", "api_key = YOUR_API_KEY_HERE"),
         alpaca("Tell", "", "Your password is important"),
         alpaca("Tell", "", "password: ************")}}},
      {"account_number",
       {// The card passes Luhn, the IBAN mod 97 (both are the issuers' published examples).
        {alpaca("Tell", "", "4111 1111 1111 1111"),
         alpaca("Tell", "", "GB82 WEST 1234 5698 7654 32"), alpaca("Tell", "", "SSN 219-09-9999")},
        {alpaca("Tell", "", "4111 1111 1111 1112"),
         alpaca("Tell", "", "GB82 WEST 1234 5698 7654 33"), alpaca("Tell", "", "000-12-3456"),
         alpaca("Tell", "", "1234 5678 9012 3456")}}},
      {"exact_duplicate",
       {{alpaca("Name a metal.", "", "Tin") + "\n" + alpaca("name a  metal.", "", "tin")},
        {alpaca("Name a metal.", "", "Tin") + "\n" + alpaca("Name a colour.", "", "Red")}}},
      {"near_duplicate",
       {{alpaca("Tell of the mill", "", kLong) + "\n" +
         alpaca("Please tell of the mill", "", kLong)},
        {alpaca("Tell of the mill", "", kLong) + "\n" +
             alpaca("What is this about?", "", "It is about a mill at a river."),
         alpaca("Tell of mill 1", "", kLong) + "\n" + alpaca("Tell of mill 2", "", kLong)}}},
      {"prompt_conflict",
       {{alpaca("Is water wet?", "", "Yes") + "\n" + alpaca("Is water wet?", "", "No")},
        {alpaca("Is water wet?", "", "Yes") + "\n" + alpaca("Is stone wet?", "", "No")}}},
      {"prompt_repeated",
       {{alpaca("Write about a mill.", "", kLong) + "\n" +
         alpaca("Write about a mill.", "", "A mill grinds corn all day.")},
        {alpaca("Write about a mill.", "", kLong) + "\n" +
         alpaca("Write about a road.", "", "A road leads far away.")}}},
      {"one_word_output",
       {{alpaca("Name a metal.", "", "Tin")}, {alpaca("Name a metal.", "", "Tin is one.")}}},
      {"url_in_prompt",
       {{alpaca("Sum up https://example.org/page", "", "It is short.")},
        {alpaca("Sum up the page", "", "It is short.")}}},
  };
  return kCases;
}

}  // namespace

TEST_CASE("rules: each row is documented and has examples", "[data][rules]") {
  std::set<std::string_view> names;
  for (const Rule& rule : rules()) {
    CAPTURE(rule.name);
    CHECK(names.insert(rule.name).second);
    CHECK(rule.doc.size() > 20);
    CHECK(rule.version >= 1);
    CHECK(rule.action != Action::kOff);
    REQUIRE(cases().count(rule.name) == 1);
    CHECK_FALSE(cases().at(rule.name).found.empty());
    CHECK_FALSE(cases().at(rule.name).kept.empty());
  }
  CHECK(cases().size() == rules().size());
}

TEST_CASE("rules: each finds its examples and leaves its counterexamples", "[data][rules]") {
  for (const Rule& rule : rules()) {
    for (const std::string& text : cases().at(rule.name).found) {
      CAPTURE(rule.name, text);
      const CleanResult result = clean_text(text + "\n");
      const ItemResult& last = result.results.back();
      CHECK(has_rule(last, rule.name));
      CHECK((last.fate == Fate::kQuarantined) == (rule.action == Action::kQuarantine));
      CHECK((rule.action != Action::kEdit || last.fate == Fate::kEdited));
    }
    for (const std::string& text : cases().at(rule.name).kept) {
      CAPTURE(rule.name, text);
      const CleanResult result = clean_text(text + "\n");
      for (const ItemResult& item : result.results) {
        CHECK_FALSE(has_rule(item, rule.name));
      }
    }
  }
}

TEST_CASE("rules: a span lies within the message it names", "[data][rules]") {
  for (const Rule& rule : rules()) {
    for (const std::string& text : cases().at(rule.name).found) {
      const CleanResult result = clean_text(text + "\n");
      if (!result.results.back().readable) {
        continue;
      }
      const size_t at = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
      const Record record = parse_record(parse_json(std::string_view(text).substr(at), "x"), "x");
      for (const Verdict& verdict : result.results.back().verdicts) {
        CAPTURE(rule.name, text);
        if (verdict.span.message >= 0) {
          REQUIRE(static_cast<size_t>(verdict.span.message) < record.messages.size());
          CHECK(verdict.span.begin >= 0);
          CHECK(verdict.span.begin <= verdict.span.end);
          CHECK(static_cast<size_t>(verdict.span.end) <=
                record.messages[static_cast<size_t>(verdict.span.message)].content.size());
        }
        CHECK(verdict.value >= verdict.threshold);
      }
    }
  }
}

TEST_CASE("rules: a config turns a rule off, moves a threshold and refuses typos",
          "[data][rules]") {
  const std::string text = alpaca("Tell", "", "Write to jane@firm.org.") + "\n";
  CleanOptions options;
  apply_config(
      parse_yaml("rules: {email: report, refusal: off, truncated: {threshold: 500}}", "c.yaml"),
      "c.yaml", options);
  CHECK(options.of("truncated").threshold == 500);
  CHECK(options.of("refusal").action == Action::kOff);
  CHECK(clean_text(text, options).results[0].fate == Fate::kKept);
  CHECK(clean_text(text).results[0].fate == Fate::kQuarantined);
  CHECK_THROWS_AS(apply_config(parse_yaml("rules: {emial: off}", "c.yaml"), "c.yaml", options),
                  Error);
  CHECK_THROWS_AS(apply_config(parse_yaml("rules: {email: edit}", "c.yaml"), "c.yaml", options),
                  Error);
  CHECK_THROWS_AS(apply_config(parse_yaml("rules: {malformed: off}", "c.yaml"), "c.yaml", options),
                  Error);
  CHECK_THROWS_AS(apply_config(parse_yaml("near: 1", "c.yaml"), "c.yaml", options), Error);
}

TEST_CASE("rules: the noinput edit empties the input and nothing else", "[data][rules]") {
  const CleanResult result = clean_text(
      "{\"id\": 1e5, \"input\": \"<noinput>\", \"instruction\": \"Tell\", \"output\": "
      "\"Fine.\"}\n");
  CHECK(result.results[0].edited ==
        "{\"id\": 1e5, \"input\": \"\", \"instruction\": \"Tell\", \"output\": \"Fine.\"}");
}
