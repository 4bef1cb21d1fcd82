#include "examples/quickstart/messages.h"

namespace quickstart {
namespace {

std::string with_product(std::string_view wording, std::string_view product) {
  const size_t place = wording.find("{p}");
  return std::string(wording.substr(0, place)) + std::string(product) +
         std::string(wording.substr(place + 3));
}

// Three of ten combinations of the three values are kept out of fine-tuning.
bool is_tuned_combination(const Message& m) {
  return (m.intent * 7 + m.urgency * 3 + m.product * 5) % 10 < 7;
}

// Words in a row of 5, the unit of near-duplicate search.
std::set<std::string> shingles(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == ' ') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  std::set<std::string> result;
  for (size_t i = 0; i + 5 <= words.size(); ++i) {
    result.insert(words[i] + ' ' + words[i + 1] + ' ' + words[i + 2] + ' ' + words[i + 3] + ' ' +
                  words[i + 4]);
  }
  return result;
}

double jaccard(const std::set<std::string>& a, const std::set<std::string>& b) {
  size_t common = 0;
  for (const std::string& one : a) {
    common += b.count(one);
  }
  const size_t all = a.size() + b.size() - common;
  return all == 0 ? 1.0 : static_cast<double>(common) / static_cast<double>(all);
}

}  // namespace

Draw::Draw(std::string_view stream) : random_(20260101, graft::xxh3_64(stream)) {}

int Draw::below(int bound) {
  return static_cast<int>(random_.below(next_++, static_cast<uint64_t>(bound)));
}

std::string text_of(const Message& m) {
  const auto at = [](int index) { return static_cast<size_t>(index); };
  std::string text;
  for (const char part : kLayouts[at(m.layout)]) {
    std::string words;
    switch (part) {
      case 'g':
        words = kGreetings[at(m.greeting)];
        break;
      case 'c':
        words = std::string(kClosings[at(m.closing)]) + ".";
        break;
      case 'u':
        words = std::string(kUrgencyTable[at(m.urgency)].wordings[at(m.urgency_wording)]) + ".";
        break;
      default:
        words = with_product(kIntentTable[at(m.intent)].wordings[at(m.intent_wording)],
                             kProductTable[at(m.product)].plain) +
                ".";
    }
    text += (text.empty() ? "" : " ") + words;
  }
  return text;
}

std::string plain_answer(const Message& m) {
  return "intent: " + std::string(kIntentTable[static_cast<size_t>(m.intent)].plain) +
         ", urgency: " + std::string(kUrgencyTable[static_cast<size_t>(m.urgency)].plain) +
         ", product: " + std::string(kProductTable[static_cast<size_t>(m.product)].plain);
}

std::string json_answer(const Message& m) {
  return "{\"intent\": \"" + std::string(kIntentTable[static_cast<size_t>(m.intent)].plain) +
         "\", \"urgency\": \"" + std::string(kUrgencyTable[static_cast<size_t>(m.urgency)].plain) +
         "\", \"product\": \"" + std::string(kProductTable[static_cast<size_t>(m.product)].plain) +
         "\"}";
}

std::string house_json(std::string_view team, std::string_view priority, std::string_view item) {
  return "{\"team\": \"" + std::string(team) + "\", \"priority\": \"" + std::string(priority) +
         "\", \"item\": \"" + std::string(item) + "\"}";
}

std::string house_answer(const Message& m) {
  return house_json(kIntentTable[static_cast<size_t>(m.intent)].team,
                    kUrgencyTable[static_cast<size_t>(m.urgency)].priority,
                    kProductTable[static_cast<size_t>(m.product)].item);
}

Message any_message(Draw& draw) {
  Message m;
  m.intent = draw.below(kIntents);
  m.urgency = draw.below(kUrgencies);
  m.product = draw.below(kProducts);
  m.intent_wording = draw.below(kIntentWordings);
  m.urgency_wording = draw.below(kUrgencyWordings);
  m.greeting = draw.below(static_cast<int>(kGreetings.size()));
  m.closing = draw.below(static_cast<int>(kClosings.size()));
  m.layout = draw.below(static_cast<int>(kLayouts.size()));
  return m;
}

Message tuned_message(Draw& draw) {
  Message m;
  do {
    m = any_message(draw);
  } while (!is_tuned_combination(m));
  m.intent_wording = draw.below(kTunedIntentWordings);
  m.urgency_wording = draw.below(kTunedUrgencyWordings);
  m.greeting = draw.below(kTunedGreetings);
  m.closing = draw.below(kTunedClosings);
  m.layout = draw.below(kTunedLayouts);
  return m;
}

bool is_held_out(const Message& m) {
  return !is_tuned_combination(m) || m.intent_wording >= kTunedIntentWordings ||
         m.urgency_wording >= kTunedUrgencyWordings || m.layout >= kTunedLayouts;
}

bool Distinct::accept(const std::string& text) {
  constexpr double kMostAlike = 0.55;
  std::set<std::string> candidate = shingles(text);
  for (const auto& other : accepted_) {
    if (jaccard(candidate, other) > kMostAlike) {
      return false;
    }
  }
  accepted_.push_back(std::move(candidate));
  return true;
}

}  // namespace quickstart
