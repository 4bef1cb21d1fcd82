// Rules on bytes and marks that do not belong into text.
#include <utility>

#include "data/curate/match.h"
#include "data/curate/rule_functions.h"

namespace graft::data {
namespace {

Finding in_message(size_t message, double value, const Match& hit, std::string detail = "") {
  return {
      value,
      {static_cast<int>(message), static_cast<int64_t>(hit.begin), static_cast<int64_t>(hit.end)},
      std::move(detail)};
}

// Adds a pattern's hits in one message: the first of all gives the place, their number the value.
void count_hits(const re2::RE2& pattern,
                size_t message,
                std::string_view text,
                std::optional<Finding>& found) {
  for (Match hit = find_match(pattern, text); hit; hit = find_match(pattern, text, hit.end)) {
    if (found) {
      ++found->value;
    } else {
      found = in_message(message, 1, hit);
    }
  }
}

bool is_answer(const Message& message) {
  return message.role == "assistant" || message.role == "text";
}

// Special tokens and prompt scaffolds that no author writes, in any message.
Match find_special_token(const Subject& subject, std::string_view text) {
  static const re2::RE2 kTokens(
      "<\\|[A-Za-z][A-Za-z0-9_]{1,40}\\|>|"
      "<\xEF\xBD\x9C[^\xEF\xBD\x9C<>]{1,40}\xEF\xBD\x9C>|"
      "\\[/?INST\\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|"
      "\\[(?:BOS|EOS|PAD|UNK)\\]|"
      "(?m:^[ \\t]*#{2,4} "
      "?(?:Instructions?|Response|Input|Human|Assistant|User|System|Prompt|Completion) ?:)|"
      "(?m:^[ \\t]*\\d{1,3}\\. ?(?:Instruction|Input|Output) ?:)|[a-z.!?] \\d{1,2}\\. Instruction:|"
      "Below is an instruction that describes a task|"
      "A chat between a curious (?:user|human) and an artificial intelligence assistant|"
      "\\{\\{ "
      "?(?:instruction|input|output|prompt|response|question|answer|user|assistant|system|content|"
      "message|messages|context)[a-z_.]* ?\\}\\}|"
      "\\{%-? ?(?:for|if|endfor|endif|set) ");
  if (!subject.has('<') && !subject.has('[') && !subject.has('#') && !subject.has('{') &&
      !subject.has(':') && !subject.has(' ')) {
    return {};
  }
  return find_match(kTokens, text);
}

// "</s>" closes struck-through text in HTML; alone it is the end mark of a tokenizer.
Match find_sentence_token(const Subject& subject, std::string_view text) {
  if (!subject.has('<') || subject.prompt_is_about_code()) {
    return {};
  }
  static const re2::RE2 kToken(R"(^\s*<s>|</s>)");
  return find_match(kToken, text);
}

// Speakers named at the start of a line of the answer, where no dialogue was asked for.
Match find_speaker(const Subject& subject, std::string_view text) {
  static const re2::RE2 kSpeaker(
      R"((?m)^[ \t]*(?:\*\*)?(?:USER|ASSISTANT|HUMAN|SYSTEM|Human|Assistant|GPT|ChatGPT|AI Assistant|User|System)(?:\*\*)?:(?:\s|$|\*\*)|)"
      R"((?m)^[ \t]*Instruction: |[a-z][.!?] (?:USER|ASSISTANT|HUMAN|Human|Assistant): [A-Za-z])");
  if (!subject.has(':') || subject.prompt_is_about_dialogue() || subject.prompt_is_about_code()) {
    return {};
  }
  return find_match(kSpeaker, text);
}

}  // namespace

std::optional<Finding> check_template_leak(const Subject& subject, double) {
  const Record& record = subject.record();
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const std::string& text = record.messages[i].content;
    Match hit = find_special_token(subject, text);
    if (!hit && is_answer(record.messages[i])) {
      hit = find_sentence_token(subject, text);
      hit = hit ? hit : find_speaker(subject, text);
    }
    if (hit) {
      return in_message(i, 1, hit);
    }
  }
  return std::nullopt;
}

std::optional<Finding> check_control_characters(const Subject& subject, double) {
  // C0 without tab, line feed and carriage return; DEL; C1 (0xC2 0x80..0x9F); the invisible zero
  // width space, byte order mark and direction overrides; U+FFFD.
  static const ByteSet kSuspects = [] {
    ByteSet set;
    for (size_t b = 0; b < 32; ++b) {
      set[b] = b != '\t' && b != '\n' && b != '\r';
    }
    set[0x7F] = true;
    set[0xC2] = true;
    set[0xE2] = true;
    set[0xEF] = true;
    return set;
  }();
  if ((subject.bytes() & kSuspects).none()) {
    return std::nullopt;
  }
  static const re2::RE2 kControl(
      "[\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x7F\\x{80}-\\x{84}\\x{86}-\\x{9F}\\x{200B}\\x{202D}\\x{"
      "202E}\\x{FEFF}\\x{FFFD}]");
  const Record& record = subject.record();
  std::optional<Finding> found;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    count_hits(kControl, i, record.messages[i].content, found);
  }
  return found;
}

std::optional<Finding> check_mojibake(const Subject& subject, double) {
  if (!subject.has('\xC3') && !subject.has('\xC2')) {
    return std::nullopt;
  }
  // U+00C3 or U+00C2 and a continuation byte read as Latin-1; U+00E2 U+20AC and what Windows-1252
  // shows for the third byte of a dash, quote or ellipsis; the same for emoji (U+00F0 U+0178).
  static const re2::RE2 kMojibake(
      "\\x{C3}[\\x{80}-\\x{BF}\\x{192}\\x{2018}-\\x{2026}\\x{2030}\\x{20AC}\\x{152}\\x{153}\\x{160}"
      "\\x{161}\\x{178}\\x{17D}\\x{17E}\\x{2C6}\\x{2DC}]|"
      "\\x{C2}[\\x{A0}-\\x{BF}]|"
      "\\x{E2}(?:\\x{20AC}|\\x{80})[\\x{80}-\\x{BF}\\x{2122}\\x{153}\\x{161}\\x{201C}\\x{201D}\\x{"
      "2018}\\x{2019}\\x{2DC}\\x{152}]|"
      "\\x{F0}\\x{178}[\\x{80}-\\x{BF}\\x{152}-\\x{2122}]");
  const Record& record = subject.record();
  std::optional<Finding> found;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    count_hits(kMojibake, i, record.messages[i].content, found);
  }
  return found;
}

std::optional<Finding> check_literal_escapes(const Subject& subject, double) {
  if (!subject.has('\\') || subject.prompt_is_about_code() || subject.answer_is_code()) {
    return std::nullopt;
  }
  // A line feed is followed by a new line's first character, never by a lower-case letter: \nu and
  // \neq are LaTeX. A backslash before a quote is an escape that was escaped twice.
  static const re2::RE2 kEscape(
      R"((?:\\r)?\\n(?:[A-Z0-9\s"'*•\-(\\]|$)|[a-z.!?,;)]\\n[a-z]{2,}|\\t(?:[A-Z0-9\s\\]|$)|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|[^\\]\\")");
  const Record& record = subject.record();
  std::optional<Finding> found;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const std::string& text = record.messages[i].content;
    // "C:\new", \nu, \neq: paths and LaTeX spell their names with the same two bytes.
    static const re2::RE2 kOther(
        R"(\b[A-Za-z]:\\|\$|\\(?:n(?:u|e|eq|abla|ot|otin|ewline|ewcommand|onumber|mid|i)|[a-mo-qsv-z][a-zA-Z]+|frac|text|times|theta|tau|tan|rho|right)\b)");
    if (matches(kOther, text)) {
      continue;
    }
    count_hits(kEscape, i, text, found);
  }
  return found;
}

std::optional<Finding> check_html_residue(const Subject& subject, double) {
  if ((!subject.has('<') && !subject.has('&')) || subject.prompt_is_about_code()) {
    return std::nullopt;
  }
  const std::string_view answer = subject.answer();
  static const re2::RE2 kHtml(
      R"((?i)</?(?:br|p|div|span|a|li|ul|ol|td|tr|th|table|tbody|img|strong|em|font|h[1-6]|script|style|blockquote|hr|iframe|center|b|i|u)(?:\s[^<>]{0,200})?/?>|)"
      R"(&(?:nbsp|amp|lt|gt|quot|apos|rsquo|lsquo|ldquo|rdquo|mdash|ndash|hellip|#\d{2,5}|#x[0-9a-f]{2,5});)");
  static const re2::RE2 kPage(R"((?i)<!DOCTYPE|<html|<svg|<\?xml|```)");
  static const re2::RE2 kFormats(
      R"((?i)\b(?:bold|italics?|font|underlin\w+|formatt?(?:ed|ing)?|hyperlinks?)\b)");
  std::optional<Finding> found;
  count_hits(kHtml, static_cast<size_t>(subject.answer_message()), answer, found);
  if (found && (matches(kPage, answer) || matches(kFormats, subject.prompt()))) {
    return std::nullopt;
  }
  return found;
}

}  // namespace graft::data
