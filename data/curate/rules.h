// The table of rules. A rule is one row here (rules.cpp) and one function in the file of its kind;
// `graft data rules` prints the table and a test walks it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "data/curate/subject.h"

namespace graft::data {

enum class Action {
  kOff,
  kReport,      // counted and shown, the record stays
  kEdit,        // the record stays, corrected; edits.jsonl holds what it was
  kQuarantine,  // the record leaves
};
std::string_view action_name(Action action);
Action parse_action(std::string_view name, std::string_view where);  // Errors: kUsage

// Bytes [begin, end) of one message's content. message = -1: there is no place to point at.
struct Span {
  int message = -1;
  int64_t begin = 0;
  int64_t end = 0;
};

struct Finding {
  double value = 0;  // what was measured; the rule's doc says in which unit
  Span span;
  std::string detail;  // for people; may be empty
};

// Whether a rule finds something in one record. nullptr for what needs the file or the whole set:
// the reader, the duplicate search and the comparison of equal prompts report those themselves.
using RuleCheck = std::optional<Finding> (*)(const Subject& subject, double threshold);

struct Rule {
  std::string_view name;
  std::string_view doc;  // one line: what is found, and what the value counts
  Action action;         // by default
  double threshold;      // found when value >= threshold
  int version;           // goes up when the rule finds other things than before
  RuleCheck check;
};

std::span<const Rule> rules();
const Rule& rule_named(std::string_view name, std::string_view where);  // Errors: kUsage

struct Verdict {
  std::string_view rule;
  Action action = Action::kQuarantine;
  double value = 0;
  double threshold = 0;
  Span span;
  std::string detail;
};

}  // namespace graft::data
