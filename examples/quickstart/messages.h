// Support messages of the quickstart: drawn, written out and answered.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "examples/quickstart/wording.h"

#include "core/hash.h"

namespace quickstart {

// Draws in the order of the calls; one stream a file, so that files do not depend on each other.
class Draw {
 public:
  explicit Draw(std::string_view stream);
  int below(int bound);
  template <typename List>
  auto pick(const List& list) {
    return list[static_cast<size_t>(below(static_cast<int>(list.size())))];
  }

 private:
  graft::Philox random_;
  uint64_t next_ = 0;
};

// Indices into the tables of wording.h.
struct Message {
  int intent = 0;
  int urgency = 0;
  int product = 0;
  int intent_wording = 0;
  int urgency_wording = 0;
  int greeting = 0;
  int closing = 0;
  int layout = 0;
};

Message any_message(Draw& draw);    // every wording and combination: what the base learns from
Message tuned_message(Draw& draw);  // only what fine-tuning may use
// Has a wording, layout, greeting, closing or combination that fine-tuning never shows.
bool is_held_out(const Message& message);

std::string text_of(const Message& message);
std::string plain_answer(const Message& message);  // intent: refund, urgency: low, product: lamp
std::string json_answer(const Message& message);   // the same as JSON
std::string house_answer(
    const Message& message);  // {"team": "billing", "priority": "rush", "item": "light"}
std::string house_json(std::string_view team, std::string_view priority, std::string_view item);

// Accepts texts that differ clearly from all before: near-duplicate search must keep every one.
class Distinct {
 public:
  bool accept(const std::string& text);

 private:
  std::vector<std::set<std::string>> accepted_;
};

// Writes raw.jsonl, defects.json and eval.jsonl into a directory.
void write_tuning_files(const std::string& directory);

}  // namespace quickstart
