// quickstart-data DIR: writes the quickstart's data, the same bytes on every machine.
//
//   base_text.jsonl   what the base model is trained on: messages with plain answers, the same with
//                     JSON answers on demand, and lines of JSON
//   base_heldout.jsonl  more of the same, never trained on
//   base_check.jsonl  fresh messages with plain answers: what the base can do
//   raw.jsonl         instructions for fine-tuning, with planted defects
//   defects.json      which row of raw.jsonl is defective and the rule that must catch it
//   eval.jsonl        held-out questions with house answers
//
// The message is triaged into intent, urgency and product. The base answers in a plain format;
// fine-tuning teaches the house format: JSON with other keys and other labels.
#include <string>

#include "examples/quickstart/jsonl.h"
#include "examples/quickstart/messages.h"

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace quickstart {
namespace {

using graft::Json;

std::string chat(const std::string& question, const std::string& answer) {
  return "user:\n" + question + "\nassistant:\n" + answer;
}

// JSON lines of many kinds, so that the base writes the alphabet of every answer with ease.
std::string json_text(Draw& draw) {
  std::string text;
  const int lines = 1 + draw.below(3);
  for (int line = 0; line < lines; ++line) {
    const std::string team(draw.pick(kIntentTable).team);
    const std::string item(draw.pick(kProductTable).item);
    const std::string priority(draw.pick(kUrgencyTable).priority);
    const char digit = static_cast<char>('1' + draw.below(9));
    text += line == 0 ? "" : "\n";
    switch (draw.below(6)) {
      case 0:
        text += "{\"item\": \"" + item + "\", \"count\": " + digit + "}";
        break;
      case 1:
        text += "{\"team\": \"" + team + "\", \"members\": " + digit + "}";
        break;
      case 2:
        text += "{\"priority\": \"" + priority + "\", \"team\": \"" + team + "\"}";
        break;
      default:
        text += house_json(team, priority, item);
    }
  }
  return text;
}

void write_base_text(const std::string& path, std::string_view stream, int documents) {
  Draw draw(stream);
  JsonLines out(path);
  for (int i = 0; i < documents; ++i) {
    const int kind = draw.below(100);
    const Message m = any_message(draw);
    std::string text;
    if (kind < 50) {
      text = chat(text_of(m), plain_answer(m));
    } else if (kind < 75) {
      text = chat(text_of(m) + " as json", json_answer(m));
    } else {
      text = json_text(draw);
    }
    out.add(Json::object({{"text", text}}));
  }
  out.commit();
}

void write_base_check(const std::string& path, int rows) {
  Draw draw("base_check");
  JsonLines out(path);
  for (int i = 0; i < rows; ++i) {
    const Message m = any_message(draw);
    out.add(alpaca(text_of(m), plain_answer(m)));
  }
  out.commit();
}

}  // namespace
}  // namespace quickstart

int main(int argc, char** argv) {
  return graft::run_main([&] {
    if (argc != 2) {
      graft::fail(graft::ExitCode::kUsage, "expected one directory", "command line",
                  "quickstart-data DIR");
    }
    const std::string directory = argv[1];
    graft::make_directories(directory);
    quickstart::write_base_text(graft::join_path(directory, "base_text.jsonl"), "base_text",
                                120'000);
    quickstart::write_base_text(graft::join_path(directory, "base_heldout.jsonl"), "base_heldout",
                                500);
    quickstart::write_base_check(graft::join_path(directory, "base_check.jsonl"), 200);
    quickstart::write_tuning_files(directory);
    return 0;
  });
}
