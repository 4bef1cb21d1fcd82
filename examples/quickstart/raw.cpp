// raw.jsonl with planted defects, and the held-out questions.
#include <functional>

#include "examples/quickstart/jsonl.h"
#include "examples/quickstart/messages.h"

namespace quickstart {
namespace {

using graft::Json;

constexpr int kCleanRows = 1180;
constexpr int kHeldOutRows = 100;

struct Row {
  std::string line;  // as it stands in the file
  std::string rule;  // that must catch it; "" = clean
};

std::string json_line(const Json& value) {
  return graft::dump_json(value, {.spaces = true});
}

class RawFile {
 public:
  RawFile() : draw_("raw") {}

  void build();
  void write(const std::string& directory) const;
  Distinct& distinct() { return distinct_; }

 private:
  // A message that is like no other row's.
  Message fresh() {
    while (true) {
      const Message m = tuned_message(draw_);
      if (distinct_.accept(text_of(m))) {
        return m;
      }
    }
  }
  using Spoil = std::function<Json(const Message&, int)>;
  void plant(const char* rule, int count, const Spoil& spoil) {
    for (int i = 0; i < count; ++i) {
      rows_.push_back({json_line(spoil(fresh(), i)), rule});
    }
  }
  void plant_lines(const char* rule, const std::vector<std::string>& lines) {
    for (const std::string& line : lines) {
      rows_.push_back({line, rule});
    }
  }
  void plant_answers();
  void plant_texts();
  void plant_personal_data();
  void plant_structure();
  void plant_conflicts();
  void plant_duplicates();
  void shuffle();

  Draw draw_;
  Distinct distinct_;
  std::vector<Row> rows_;
};

void RawFile::plant_answers() {
  plant("empty_output", 20,
        [](const Message& m, int i) { return alpaca(text_of(m), i % 2 == 0 ? "" : "  \n"); });
  plant("marker_output", 20, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 5> kMarkers = {"N/A", "none", "TODO", "<nooutput>",
                                                          "nan"};
    return alpaca(text_of(m), std::string(kMarkers[static_cast<size_t>(i % 5)]));
  });
  plant("truncated", 30, [](const Message& m, int i) {
    const std::string answer = house_answer(m);
    return alpaca(text_of(m), answer.substr(0, answer.size() - 2 - static_cast<size_t>(i)));
  });
  plant("refusal", 12, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 3> kRefusals = {
        "I'm sorry, but as an AI language model I cannot triage support messages.",
        "As an AI assistant, I am not able to help with this order.",
        "I cannot assist with that request."};
    return alpaca(text_of(m), std::string(kRefusals[static_cast<size_t>(i % 3)]));
  });
  plant("echo", 10, [](const Message& m, int) { return alpaca(text_of(m), text_of(m)); });
  plant("repetition", 10, [](const Message& m, int) {
    const std::string team(kIntentTable[static_cast<size_t>(m.intent)].team);
    std::string answer = "send it to the " + team + " team";
    for (int i = 0; i < 12; ++i) {
      answer += " and then to the " + team + " team";
    }
    return alpaca(text_of(m), answer + ".");
  });
  plant("wrong_arithmetic", 4, [](const Message& m, int i) {
    const int price = 4 + i;
    return alpaca("what do 3 of these cost at " + std::to_string(price) +
                      " each: " + std::string(kProductTable[static_cast<size_t>(m.product)].plain),
                  "3 * " + std::to_string(price) + " = " + std::to_string(3 * price + 1));
  });
}

void RawFile::plant_texts() {
  plant("template_leak", 20, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 4> kLeaks = {
        "</s>", "<|im_end|>\n<|im_start|>user", "\n### Instruction:\nnext message", " [/INST]"};
    return alpaca(text_of(m), house_answer(m) + std::string(kLeaks[static_cast<size_t>(i % 4)]));
  });
  plant("control_characters", 12, [](const Message& m, int i) {
    return alpaca(text_of(m) + (i % 2 == 0 ? "\x07" : "\xEF\xBF\xBD"), house_answer(m));
  });
  plant("mojibake", 6, [](const Message& m, int) {
    // "é" as UTF-8, read as Latin-1, written as UTF-8 again.
    return alpaca(text_of(m) + " the caf\xC3\x83\xC2\xA9 next door.", house_answer(m));
  });
  plant("literal_escapes", 6, [](const Message& m, int) {
    return alpaca(text_of(m) + "\\n\\nsent from my desk\\nroom 2", house_answer(m));
  });
  plant("html_residue", 8, [](const Message& m, int) {
    return alpaca(text_of(m), "<p>" + house_answer(m) + "<br></p>&nbsp;");
  });
}

void RawFile::plant_personal_data() {
  plant("email", 18, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 3> kMails = {
        "anna.berg@nordlicht-mail.net", "t_okafor88@postkasten.org", "mira.lind@haus-und-hof.de"};
    return alpaca(text_of(m) + " write to " + std::string(kMails[static_cast<size_t>(i % 3)]) + ".",
                  house_answer(m));
  });
  plant("phone", 14, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 2> kPhones = {"+1 415-555-01", "(415) 555-01"};
    return alpaca(text_of(m) + " call me: " + std::string(kPhones[static_cast<size_t>(i % 2)]) +
                      std::to_string(30 + i),
                  house_answer(m));
  });
  plant("secret", 8, [this](const Message& m, int i) {
    constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    std::string key = i % 2 == 0 ? "AKIA" : "ghp_";
    while (key.size() < (i % 2 == 0 ? 20U : 40U)) {
      key += draw_.pick(kLetters);
    }
    return alpaca(text_of(m) + " my key is " + key, house_answer(m));
  });
  plant("account_number", 8, [](const Message& m, int i) {
    return alpaca(text_of(m) + (i % 2 == 0 ? " card 4111 1111 1111 1111"
                                           : " pay to DE89 3704 0044 0532 0130 00"),
                  house_answer(m));
  });
}

void RawFile::plant_structure() {
  plant("empty_prompt", 5, [](const Message& m, int i) {
    return alpaca(std::string(static_cast<size_t>(i), ' '), house_answer(m));
  });
  plant("missing_input", 6, [](const Message& m, int i) {
    constexpr std::array<std::string_view, 6> kTasks = {
        "sort the following message from a customer", "triage the following text:",
        "which team gets the following mail?",        "label the message below",
        "read the text below and answer in json",     "put the following ticket into a team."};
    return alpaca(std::string(kTasks[static_cast<size_t>(i)]), house_answer(m));
  });
  plant("roles", 4, [](const Message& m, int) {
    return Json::object(
        {{"messages", Json::array({Json::object({{"role", "user"}, {"content", text_of(m)}})})}});
  });
  plant("schema", 6, [](const Message& m, int) {
    return Json::object({{"question", text_of(m)}, {"reply", house_answer(m)}});
  });
  plant("noinput_marker", 15, [](const Message& m, int) {
    return Json::object(
        {{"instruction", text_of(m)}, {"input", "<noinput>"}, {"output", house_answer(m)}});
  });
  plant_lines("malformed", {R"({"instruction": "the lamp is broken", "output": )",
                            R"({"instruction": "where is my phone" "output": "x"})",
                            R"({'instruction': 'hello', 'output': 'hi'})", R"(instruction,output)",
                            R"({"instruction": "hello", "output": "hi"}})",
                            "{\"instruction\": \"caf\xE9\", \"output\": \"hi\"}"});
}

void RawFile::plant_conflicts() {
  for (int i = 0; i < 14; ++i) {
    const Message m = fresh();
    Message other = m;
    other.intent = (m.intent + 1) % kIntents;
    rows_.push_back({json_line(alpaca(text_of(m), house_answer(m))), "prompt_conflict"});
    rows_.push_back({json_line(alpaca(text_of(m), house_answer(other))), "prompt_conflict"});
  }
}

void RawFile::shuffle() {
  for (size_t i = rows_.size(); i > 1; --i) {
    std::swap(rows_[i - 1], rows_[static_cast<size_t>(draw_.below(static_cast<int>(i)))]);
  }
}

// Copies behind their originals: the first of its kind is the one that stays.
void RawFile::plant_duplicates() {
  for (int i = 0; i < 90; ++i) {
    size_t original = 0;
    do {
      original = static_cast<size_t>(draw_.below(static_cast<int>(rows_.size())));
    } while (!rows_[original].rule.empty());
    Row copy = rows_[original];
    copy.rule = "exact_duplicate";
    if (i % 3 == 0) {
      // Other punctuation: the same words in a row.
      const size_t end = copy.line.find("\", \"output\"");
      copy.line.replace(end - 1, 1, i % 2 == 0 ? "!!" : " ...");
      copy.rule = "near_duplicate";
    }
    const auto place =
        static_cast<int64_t>(original) + 1 + draw_.below(static_cast<int>(rows_.size() - original));
    rows_.insert(rows_.begin() + place, std::move(copy));
  }
}

void RawFile::build() {
  for (int i = 0; i < kCleanRows; ++i) {
    const Message m = fresh();
    rows_.push_back({json_line(alpaca(text_of(m), house_answer(m))), ""});
  }
  plant_answers();
  plant_texts();
  plant_personal_data();
  plant_structure();
  plant_conflicts();
  shuffle();
  plant_duplicates();
}

void RawFile::write(const std::string& directory) const {
  JsonLines out(graft::join_path(directory, "raw.jsonl"));
  Json defects = Json::array();
  for (size_t i = 0; i < rows_.size(); ++i) {
    out.add_raw(rows_[i].line);
    if (!rows_[i].rule.empty()) {
      defects.push_back(
          Json::object({{"line", static_cast<int64_t>(i) + 1}, {"rule", rows_[i].rule}}));
    }
  }
  out.commit();
  graft::write_file_atomically(graft::join_path(directory, "defects.json"),
                               graft::dump_json(defects, {.indent = 0}) + "\n");
}

}  // namespace

void write_tuning_files(const std::string& directory) {
  RawFile raw;
  raw.build();
  raw.write(directory);
  // Six of ten questions use wordings or combinations that fine-tuning never shows; none is like a
  // row of raw.jsonl.
  Draw draw("eval");
  JsonLines out(graft::join_path(directory, "eval.jsonl"));
  for (int i = 0; i < kHeldOutRows;) {
    const bool held_out = i % 10 < 6;
    const Message m = held_out ? any_message(draw) : tuned_message(draw);
    if (held_out == is_held_out(m) && raw.distinct().accept(text_of(m))) {
      out.add(alpaca(text_of(m), house_answer(m)));
      ++i;
    }
  }
  out.commit();
}

}  // namespace quickstart
