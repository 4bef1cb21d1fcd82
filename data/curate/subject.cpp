#include "data/curate/subject.h"

#include <algorithm>

#include "data/curate/match.h"

namespace graft::data {
namespace {

bool looks_like_code(std::string_view text, const ByteSet& bytes) {
  const auto has = [&](char c) { return bytes.test(static_cast<unsigned char>(c)); };
  // Every alternative below holds one of these.
  if (!has('(') && !has('{') && !has('`') && !has('<') && !has(';') && !has('=') && !has('#')) {
    return false;
  }
  static const re2::RE2 kCode(
      R"((?m)```|;[ \t]*$|^\s*[{}]\s*$|^\s*(?:def|class|for|while|if|elif)\b.*:\s*$|)"
      R"(^\s*(?:import|from|return|using|package|public|private|const|let|var|int|void)\s+\S+|)"
      R"(#include|<!DOCTYPE|</[a-zA-Z]+>|\bSELECT\b.*\bFROM\b|\w\(.*\)\s*\{|=>|\bprint\(|)"
      R"(console\.log|^\s*//|^\s*#!|\w\s=\s\w+\(|\w+\[\w+\]\s*=)");
  return matches(kCode, text);
}

}  // namespace

ByteSet bytes_of(std::string_view text) {
  bool seen[256] = {};
  for (const char c : text) {
    seen[static_cast<unsigned char>(c)] = true;
  }
  ByteSet set;
  for (size_t b = 0; b < 256; ++b) {
    set[b] = seen[b];
  }
  return set;
}

Subject::Subject(const Record& record) : record_(record), prompt_(record.prompt()) {
  for (size_t i = record.messages.size(); i-- > 0;) {
    const Message& message = record.messages[i];
    if (message.role == "assistant" || message.role == "text") {
      answer_message_ = static_cast<int>(i);
      answer_ = message.content;
      break;
    }
  }
  for (const Message& message : record.messages) {
    bytes_ |= bytes_of(message.content);
    digit_count_ += std::count_if(message.content.begin(), message.content.end(),
                                  [](char c) { return c >= '0' && c <= '9'; });
  }
  instruction_ = prompt_;
  if (record.schema == Schema::kAlpaca) {
    const size_t gap = instruction_.find("\n\n");
    if (gap != std::string_view::npos) {
      input_ = instruction_.substr(gap + 2);
      instruction_ = instruction_.substr(0, gap);
    }
  }
  answer_is_code_ = looks_like_code(answer_, bytes_);
}

bool Subject::prompt_is_about_code() const {
  static const re2::RE2 kAbout(
      R"((?i)\b(?:code|coding|python|java|javascript|typescript|c\+\+|c#|rust|golang|sql|html|css|)"
      R"(xml|json|yaml|markdown|markup|regex|regular expressions?|function|program|programming|)"
      R"(script|algorithm|query|bash|shell|linux|unix|command|class|method|array|string|snippet|)"
      R"(tag|web ?page|website|api|url|escape|latex)s?\b)");
  return matches(kAbout, prompt_);
}

bool Subject::prompt_is_about_dialogue() const {
  static const re2::RE2 kAbout(
      R"((?i)\b(?:dialogues?|dialogs?|conversations?|chat|chatbots?|bot|scripts?|transcripts?|)"
      R"(interviews?|role ?-?plays?|roleplaying|role|assistant|user|customer|discussions?|)"
      R"(exchange|skit|play|scene|screenplay|debate|character|pretend|imagine|act as|you are)\b)");
  return matches(kAbout, prompt_);
}

}  // namespace graft::data
