// Masks without {% generation %}: every real template that has the marks is rendered with and
// without them; the masks must be the same, or differ for a reason that is named here.
#include <cstdio>
#include <map>
#include <regex>
#include <set>

#include "core/error.h"
#include "core/progress.h"
#include "data/text/mask.h"
#include "tests/data/text/byte_tokenizer.h"
#include "tests/data/text/golden.h"
#include "tests/support/support.h"

namespace graft::data {
namespace {

// The stop tokens of these templates' families.
const std::vector<std::string> kSpecials = {"</s>",
                                            "<|im_start|>",
                                            "<|im_end|>",
                                            "<|eot_id|>",
                                            "<|end|>",
                                            "<|return|>",
                                            "<|call|>",
                                            "<end_of_turn>",
                                            "<turn|>",
                                            "<tool_call|>",
                                            "<|tool_response>",
                                            "<|\"|>",
                                            "<|endoftext|>",
                                            "<|END_OF_TURN_TOKEN|>",
                                            "<｜end▁of▁sentence｜>",
                                            "<end_of_utterance>",
                                            "<|user|>",
                                            "<|observation|>",
                                            "</assistant>"};

// The marks as blocks that print the same and mark nothing.
std::string without_marks(const std::string& source) {
  const std::string opened = std::regex_replace(
      source, std::regex(R"((\{%[-+]?)\s*generation\s*([-+]?%\}))"), "$1 if true $2");
  return std::regex_replace(opened, std::regex(R"((\{%[-+]?)\s*endgeneration\s*([-+]?%\}))"),
                            "$1 endif $2");
}

using Causes = std::map<std::string, int64_t>;  // tokens by cause

// Why the marked document's mask differs from its twin's, stretch by stretch.
Causes causes_of(const Document& marked, const Document& twin, const Tokenizer& tokenizer) {
  Causes causes;
  const size_t count = marked.ids.size();
  for (size_t i = 0; i < count; ++i) {
    if (marked.loss[i] == 0 && twin.loss[i] != 0) ++causes["only the twin trains it"];
  }
  for (size_t begin = 0; begin < count; ++begin) {
    if (marked.loss[begin] == 0) continue;
    size_t end = begin;
    while (end < count && marked.loss[end] != 0) ++end;
    const auto is_trained = [&](size_t i) { return twin.loss[i] != 0; };
    size_t first = begin;
    while (first < end && !is_trained(first)) ++first;
    size_t last = end;  // behind the last token that the twin trains
    while (last > first && !is_trained(last - 1)) --last;
    const auto tokens = [](size_t from, size_t to) { return static_cast<int64_t>(to - from); };
    if (first == end) {
      causes["marked turn in which no message says anything"] += tokens(begin, end);
    } else {
      if (first > begin) causes["mark begins before the prompt ends"] += tokens(begin, first);
      const bool stops = tokenizer.is_special(marked.ids[last - 1]);
      if (end > last)
        causes[stops ? "mark goes on behind the stop token" : "?"] += tokens(last, end);
      for (size_t i = first; i < last; ++i) causes["?"] += is_trained(i) ? 0 : 1;
    }
    begin = end;
  }
  std::erase_if(causes, [](const auto& cause) { return cause.second == 0; });
  return causes;
}

}  // namespace

TEST_CASE("mask: templates with and without generation marks train the same text",
          "[data][mask][twins]") {
  const std::string shared = test::shared_data();
  if (shared.empty()) return;
  const test::TempDir dir;
  const auto tokenizer = test::byte_tokenizer(dir, kSpecials);
  const std::string directory = shared + "/data/chat_templates/";
  MaskOptions options;
  options.content_specials = ContentSpecials::kParse;
  options.now = "2026-11-22";
  struct Row {
    int renders = 0;
    int64_t tokens = 0;
  };
  std::map<std::string, std::map<std::string, Row>> table;  // by template, then cause
  const auto count = [&](const std::string& name, const std::string& cause, int64_t tokens) {
    for (const std::string& group : {name, std::string("all")}) {
      ++table[group][cause].renders;
      table[group][cause].tokens += tokens;
    }
  };
  for (const Json& row : test::read_golden(directory + "golden.jsonl")) {
    const std::string name = row.at("template").as_string();
    if (!row.find("text") || row.at("add_generation_prompt").as_bool()) continue;
    const std::string source = read_file(directory + name);
    const ChatTemplate marked(source, name, row.at("vars"));
    if (!marked.marks_generation()) continue;
    const ChatTemplate twin(without_marks(source), name, row.at("vars"));
    REQUIRE_FALSE(twin.marks_generation());
    Record record;
    try {
      record = parse_record(
          Json::object({{"messages", row.at("messages")}, {"tools", row.at("tools")}}), name);
    } catch (const Error&) {
      count(name, "no record", 0);
      continue;
    }
    const Document a = encode_record(record, *tokenizer, &marked, options).front();
    const Document b = encode_record(record, *tokenizer, &twin, options).front();
    if (a.refusal != Refusal::kNone || b.refusal != Refusal::kNone) {
      count(name, a.refusal == b.refusal ? "nothing to train, both" : "only one refused", 0);
      continue;
    }
    REQUIRE(a.ids == b.ids);
    const Causes causes = causes_of(a, b, *tokenizer);
    if (causes.empty()) count(name, "equal", a.supervised);
    for (const auto& [cause, tokens] : causes) count(name, cause, tokens);
  }
  std::printf("%-38s %-46s %7s %7s\n", "template", "masks with and without marks", "renders",
              "tokens");
  for (const auto& [name, causes] : table) {
    for (const auto& [cause, row] : causes) {
      std::printf("%-38s %-46s %7d %7lld\n", name.c_str(), cause.c_str(), row.renders,
                  static_cast<long long>(row.tokens));
    }
  }
  std::map<std::string, Row>& all = table["all"];
  CHECK(all["equal"].renders > 0);
  CHECK(all["?"].renders == 0);  // every difference has a cause
  // Gemma's calls end in the token that opens their answer, and its prompt behind a tool's answer
  // leaves out the header that the template then writes.
  CHECK(all["only the twin trains it"].renders ==
        table["trl/diffusion_gemma_training.jinja"]["only the twin trains it"].renders);
  // Idefics3 renders lists of parts only; these conversations hold strings.
  CHECK(all["only one refused"].renders ==
        table["trl/idefics3_training.jinja"]["only one refused"].renders);
}

}  // namespace graft::data
