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

// Why the marked document's mask differs from its twin's.
std::set<std::string> causes_of(const Document& marked,
                                const Document& twin,
                                const Tokenizer& tokenizer) {
  std::set<std::string> causes;
  bool is_behind_stop = false;
  for (size_t i = 0; i < marked.ids.size(); ++i) {
    if (twin.loss[i] != 0) is_behind_stop = tokenizer.is_special(marked.ids[i]);
    if (marked.loss[i] == twin.loss[i]) continue;
    if (twin.loss[i] != 0) {
      causes.insert("only the twin trains it");
    } else if (is_behind_stop) {
      causes.insert("marks reach behind the stop token");
    } else if (marked.turns_unlike_serving > 0) {
      causes.insert("rendered otherwise at serving");
    } else {
      causes.insert("marks cover the generation prompt");
    }
  }
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
  std::map<std::string, std::map<std::string, int>> table;
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
      ++table[name]["unreadable"];
      continue;
    }
    const Document a = encode_record(record, *tokenizer, &marked, options).front();
    const Document b = encode_record(record, *tokenizer, &twin, options).front();
    if (a.refusal != Refusal::kNone || b.refusal != Refusal::kNone) {
      ++table[name][a.refusal == b.refusal ? "nothing to train, both" : "one refused"];
      continue;
    }
    REQUIRE(a.ids == b.ids);
    if (a.loss == b.loss) {
      ++table[name]["equal"];
      continue;
    }
    for (const std::string& cause : causes_of(a, b, *tokenizer)) ++table[name][cause];
  }
  std::map<std::string, int> totals;
  for (const auto& [name, causes] : table) {
    for (const auto& [cause, count] : causes) {
      std::printf("%-38s %-34s %d\n", name.c_str(), cause.c_str(), count);
      totals[cause] += count;
    }
  }
  for (const auto& [cause, count] : totals) {
    std::printf("%-38s %-34s %d\n", "all", cause.c_str(), count);
  }
  // The template of a tool's answer follows the call without a stop token, in one template.
  CHECK(totals["only the twin trains it"] <= 1);
  // Idefics3 renders lists of parts only; these conversations hold strings.
  CHECK(totals["one refused"] == table["trl/idefics3_training.jinja"]["one refused"]);
  CHECK(totals["equal"] > 0);
}

}  // namespace graft::data
