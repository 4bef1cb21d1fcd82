#include "data/curate/rules.h"

#include <array>
#include <vector>

#include "core/error.h"
#include "data/curate/rule_functions.h"

namespace graft::data {
namespace {

constexpr Action kQ = Action::kQuarantine;
constexpr Action kE = Action::kEdit;
constexpr Action kR = Action::kReport;

// Thresholds fit instruction data: one word, a label, code and JSON are answers.
constexpr std::array kRules = {
    // What the reader finds.
    Rule{"malformed", "the item is not valid UTF-8 JSON", kQ, 1, 1, nullptr},
    Rule{"schema", "the JSON fits no known schema, or a member is missing or mistyped", kQ, 1, 1,
         nullptr},
    // rules_answer.cpp
    Rule{"roles",
         "no answer to learn from: no assistant turn, or the last turn is not the assistant's "
         "(value: turns)",
         kQ, 1, 1, check_roles},
    Rule{"empty_prompt", "every prompt turn is blank (value: blank turns)", kQ, 1, 1,
         check_empty_prompt},
    Rule{"empty_output", "an assistant turn is blank (value: blank turns)", kQ, 1, 1,
         check_empty_output},
    Rule{"marker_output",
         "the answer is a placeholder such as N/A, nan, <nooutput>, TODO (value: its bytes)", kQ, 1,
         1, check_marker_output},
    Rule{"noinput_marker",
         "the alpaca input is a spelling of \"no input\"; edited to an empty input (value: its "
         "bytes)",
         kE, 1, 1, check_noinput_marker},
    Rule{"refusal",
         "the answer is a refusal or speaks of itself as a language model (value: phrases)", kQ, 1,
         1, check_refusal},
    Rule{"echo",
         "the answer repeats the instruction or an input it should have changed (value: words "
         "repeated)",
         kQ, 4, 1, check_echo},
    Rule{"missing_input",
         "the prompt points at \"the following\" text, but none is there (value: 1)", kQ, 1, 2,
         check_missing_input},
    Rule{"wrong_arithmetic",
         "an equation a op b = c in the answer is false (value: relative error)", kQ, 0.001, 1,
         check_wrong_arithmetic},
    // rules_ending.cpp
    Rule{"truncated",
         "the answer is cut: open fence, bracket or quote, dangling comma or word, or prose "
         "without an end mark (value: bytes of the answer)",
         kQ, 1, 1, check_truncated},
    Rule{"repetition", "the answer runs in a loop (value: share of its words inside the loop)", kQ,
         0.3, 1, check_repetition},
    // rules_text.cpp
    Rule{"template_leak",
         "role markers or special tokens of a chat or prompt template inside the text (value: 1)",
         kQ, 1, 1, check_template_leak},
    Rule{"control_characters", "control characters, invisible marks or U+FFFD (value: how many)",
         kQ, 1, 1, check_control_characters},
    Rule{"mojibake",
         "UTF-8 read as Latin-1 or Windows-1252, such as \"\xC3\x83\xC2\xA9\" (value: how many)",
         kQ, 1, 1, check_mojibake},
    Rule{"literal_escapes", "a written-out \\n, \\t, \\\" or \\u00e9 in prose (value: how many)",
         kQ, 1, 1, check_literal_escapes},
    Rule{"html_residue",
         "HTML tags or entities in an answer that is not about markup (value: how many)", kQ, 1, 1,
         check_html_residue},
    // rules_pii.cpp
    Rule{"email",
         "an e-mail address, also written with (at); placeholders such as you@ excepted (value: 1)",
         kQ, 1, 1, check_email},
    Rule{"phone",
         "a dialable telephone number; not years, prices, order numbers or toll-free lines (value: "
         "digits)",
         kQ, 7, 1, check_phone},
    Rule{"secret", "a private key, token, API key or password (value: bytes)", kQ, 8, 1,
         check_secret},
    Rule{"account_number",
         "a card number, IBAN or US social security number whose checksum or ranges hold (value: "
         "digits and letters)",
         kQ, 9, 1, check_account_number},
    // What only the whole set shows.
    Rule{"exact_duplicate",
         "the same turns as a kept record, up to case and white space (value: Jaccard similarity)",
         kQ, 1, 1, nullptr},
    Rule{"near_duplicate",
         "Jaccard similarity of word 5-grams to a kept record; numbers and short answers must "
         "agree (value: similarity)",
         kQ, 0.8, 1, nullptr},
    Rule{"prompt_conflict",
         "the same prompt has different short answers and none has a majority, or one that fits it "
         "(value: answers)",
         kQ, 2, 1, nullptr},
    // Counted only.
    Rule{"prompt_repeated", "the same prompt has several long answers (value: answers)", kR, 2, 1,
         nullptr},
    Rule{"one_word_output",
         "the answer is one word: a label, or an answer cut short (value: bytes)", kR, 1, 1,
         check_one_word_output},
    Rule{"url_in_prompt", "the prompt needs a page that the model cannot read (value: 1)", kR, 1, 1,
         check_url_in_prompt},
};

constexpr std::array<std::string_view, 4> kActionNames = {"off", "report", "edit", "quarantine"};

}  // namespace

std::string_view action_name(Action action) {
  return kActionNames[static_cast<size_t>(action)];
}

Action parse_action(std::string_view name, std::string_view where) {
  for (size_t i = 0; i < kActionNames.size(); ++i) {
    if (kActionNames[i] == name) {
      return static_cast<Action>(i);
    }
  }
  fail(ExitCode::kUsage, unknown_name("action", name, kActionNames), std::string(where));
}

std::span<const Rule> rules() {
  return kRules;
}

const Rule& rule_named(std::string_view name, std::string_view where) {
  std::vector<std::string_view> known;
  for (const Rule& rule : kRules) {
    if (rule.name == name) {
      return rule;
    }
    known.push_back(rule.name);
  }
  fail(ExitCode::kUsage, unknown_name("rule", name, known), std::string(where),
       "`graft data rules` lists them");
}

}  // namespace graft::data
