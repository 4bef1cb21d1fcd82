// Rules on an answer as an answer.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "data/curate/match.h"
#include "data/curate/normalize.h"
#include "data/curate/rule_functions.h"

namespace graft::data {
namespace {

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

Finding in_answer(
    const Subject& subject, double value, size_t begin, size_t end, std::string detail = "") {
  return {value,
          {subject.answer_message(), static_cast<int64_t>(begin), static_cast<int64_t>(end)},
          std::move(detail)};
}

Finding whole_answer(const Subject& subject, double value, std::string detail = "") {
  return in_answer(subject, value, 0, subject.answer().size(), std::move(detail));
}

}  // namespace

std::optional<Finding> check_roles(const Subject& subject, double) {
  const Record& record = subject.record();
  if (record.schema == Schema::kText) {
    return std::nullopt;
  }
  const auto turns = static_cast<double>(record.messages.size());
  if (subject.answer_message() < 0) {
    return Finding{turns, {}, "no assistant turn"};
  }
  if (record.messages.back().role != "assistant") {
    return Finding{turns, {}, "the last turn is of role " + record.messages.back().role};
  }
  return std::nullopt;
}

std::optional<Finding> check_empty_prompt(const Subject& subject, double) {
  const Record& record = subject.record();
  if (record.schema == Schema::kText || !trim(subject.prompt()).empty()) {
    return std::nullopt;
  }
  double blank = 0;
  for (const Message& message : record.messages) {
    if (message.role == "tool") {
      return std::nullopt;
    }
    blank += message.role == "user" || message.role == "system" ? 1 : 0;
  }
  return Finding{std::max(1.0, blank), {}, ""};
}

std::optional<Finding> check_empty_output(const Subject& subject, double) {
  const Record& record = subject.record();
  double blank = 0;
  int first = -1;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const Message& message = record.messages[i];
    const bool answer = message.role == "assistant" || message.role == "text";
    if (answer && trim(message.content).empty() && message.extra.find("tool_calls") == nullptr) {
      first = first < 0 ? static_cast<int>(i) : first;
      ++blank;
    }
  }
  if (blank == 0) {
    return std::nullopt;
  }
  const auto size =
      static_cast<int64_t>(record.messages[static_cast<size_t>(first)].content.size());
  return Finding{blank, {first, 0, size}, ""};
}

std::optional<Finding> check_marker_output(const Subject& subject, double) {
  const std::string_view answer = trim(subject.answer());
  if (answer.empty() || answer.size() > 60) {
    return std::nullopt;
  }
  static const re2::RE2 kMarker(
      R"((?i)^[<\[({"'*]*\s*(?:n\.?\s*/\s*a\.?|not applicable|no ?[-_]?(?:output|answer|response|input)(?: (?:is )?(?:provided|given|available|found|needed|required|necessary|returned|generated|specified))?|)"
      R"(redacted|)"
      R"((?:output|answer|response|input|text|your (?:answer|response|output)(?: here)?|)"
      R"((?:insert|enter|add|put|write|your|the) (?:the |your |an? )?(?:answer|response|output|text)(?: here)?) *(?:[>\]})]+)|)"
      R"((?:your|insert|enter|write|add|put) (?:the |your |an? )?(?:answer|response|output|text) here|)"
      R"(place ?holder(?: text)?|to ?do|t\.?b\.?[da]\.?|to be (?:added|determined|completed|filled(?: in)?|written|done|announced)|)"
      R"(fix ?me|coming soon|under construction|left blank|intentionally left blank|\?{2,}|-{1,}|\.{2,}|_{2,}|x{3,}|lorem ipsum.*|)"
      R"((?:output|answer|response) (?:missing|pending|not available|unavailable|goes here)|)"
      R"((?:no|not) (?:data|content|available)|missing|empty|unavailable|pending)\s*[>\])}"'*.!:]*$)");
  // These may be true answers, above all in code, so the prompt must not speak of them.
  static const re2::RE2 kDoubtful(
      R"((?i)^["'<\[(]*(?:none|null|nan|nil|undefined|NA|#N/A)[>\]"')]*\.?$)");
  static const re2::RE2 kTrueLabels(
      R"((?i)^(?:missing|empty|pending|unavailable|not available|-+)\W*$)");
  if (matches(kDoubtful, answer)) {
    static const re2::RE2 kExpected(
        R"((?i)\b(?:none|null|nan|nil|undefined|na)\b|how many|which of|is there|are there|what|any\b)");
    static const re2::RE2 kNamed(R"((?i)\b(?:none|null|nan|nil|undefined)\b)");
    if (matches(kExpected, subject.prompt()) || subject.prompt_is_about_code()) {
      // "None" answers "which of these is a mammal"; what a program prints for it does not.
      static const re2::RE2 kNothing(R"(^\W*(?:(?i:nan|null|nil|undefined|#N/A)|none)\W*$)");
      if (!matches(kNothing, answer) || matches(kNamed, subject.prompt()) ||
          subject.prompt_is_about_code()) {
        return std::nullopt;
      }
    }
    return whole_answer(subject, static_cast<double>(answer.size()));
  }
  static const re2::RE2 kNote(R"(^(?:TODO|FIXME|XXX)\b)");
  if (!matches(kMarker, answer) && !matches(kNote, answer)) {
    return std::nullopt;
  }
  if (matches(kTrueLabels, answer)) {
    // A label of the task when the prompt names it.
    const std::string label = fold_text(answer.substr(0, answer.find_last_not_of(".!") + 1));
    if (fold_text(subject.prompt()).find(label) != std::string::npos) {
      return std::nullopt;
    }
  }
  return whole_answer(subject, static_cast<double>(answer.size()));
}

std::optional<Finding> check_noinput_marker(const Subject& subject, double) {
  if (subject.record().schema != Schema::kAlpaca) {
    return std::nullopt;
  }
  const std::string_view input = trim(subject.input());
  static const re2::RE2 kMarker(
      R"((?i)^[<\[("]?\s*(?:no ?[-_]?input(?: (?:required|needed|necessary|provided|given|specified))?|n\s*/\s*a|)"
      R"(none|nan|null|not applicable|no input is (?:required|needed|given))\s*[>\]")]?\.?$)");
  if (input.empty() || input.size() > 40 || !matches(kMarker, input)) {
    return std::nullopt;
  }
  const auto begin = static_cast<int64_t>(input.data() - subject.prompt().data());
  return Finding{static_cast<double>(input.size()),
                 {0, begin, begin + static_cast<int64_t>(input.size())},
                 ""};
}

std::optional<Finding> check_refusal(const Subject& subject, double) {
  const std::string_view answer = subject.answer();
  // Said of oneself, wherever it stands.
  static const re2::RE2 kSelf(
      R"((?i)\bas an? (?:ai|artificial intelligence|large|text-based ai|machine learning)[ -]?(?:language|based)?[ -]?(?:language )?model\b|)"
      R"(\bas a language model\b|\bas an artificial intelligence,? (?:i|my)\b|)"
      R"(\bi(?:'|’)?(?: a)?m (?:just |only |merely )?an? (?:ai|large) language model\b|)"
      R"(\bas an ai(?: assistant| system| chatbot)?, i (?:do not|don(?:'|’)t|cannot|can(?:'|’)t|am (?:not|unable)|have no|lack)\b|)"
      R"(\bi(?:'|’)?(?: a)?m (?:just |only |merely |simply )?an ai(?: assistant| model| program)?,?(?: and| so| but)? (?:so )?i? ?(?:do not|don(?:'|’)t|cannot|can(?:'|’)t|have no)\b|)"
      R"(\bmy (?:knowledge cutoff|training data (?:only )?(?:goes|extends|ends))\b|\b(?:against|violates?) (?:openai|my (?:guidelines|programming|content policy)))");
  static const re2::RE2 kPlaysOne(
      R"((?is)\b(?:pretend|imagine|act|role|play|perspective|point of view|story|dialogue|you are)\b.*\b(?:ai|a\.i\.|artificial intelligence|language model|chatbot|robot)\b)");
  const std::string_view instruction = subject.instruction();
  if (const Match hit = find_match(kSelf, answer); hit && !matches(kPlaysOne, instruction)) {
    return in_answer(subject, 1, hit.begin, hit.end);
  }
  // Phrases of a refusal count where an answer begins, and only when little else is said.
  if (answer.size() > 600) {
    return std::nullopt;
  }
  static const re2::RE2 kRefusal(
      R"((?i)^\W*(?:(?:i(?:'|’)?(?: a)?m |we(?:'|’)?(?: a)?re )?(?:(?:so |very |really )?sorry|afraid)|i apologi[sz]e|my apologies|unfortunately|regrettably)?[,. ]*(?:but |that |however,? )?)"
      R"((?:i|we) (?:(?:cannot|can(?:'|’)t|can not|could not|couldn(?:'|’)t|(?:will not|won(?:'|’)t) be able to|will not|won(?:'|’)t|must decline to|have to decline to) (?:really |actually |in good conscience )?(?:assist|help|provide|comply|fulfil?l?|answer|complete|do (?:that|this)|generate|create|write|share|support|discuss|give|offer|respond|process|perform|access|browse|engage|continue|carry out|make that|tell)|)"
      R"((?:am|(?:'|’)m) (?:not able|unable|not allowed|not permitted|not programmed|not comfortable|not in a position) to|(?:do not|don(?:'|’)t) (?:feel comfortable|have (?:the ability|access|enough (?:information|context)|sufficient (?:information|context)|real-time))|must decline|have to decline|refuse to))");
  static const re2::RE2 kAbout(
      R"((?i)apolog|refus|declin|reject|sorry|reply|respond|customer|excuse|complain|say no|turn down|resign)");
  if (const Match hit = find_match(kRefusal, answer)) {
    if (!matches(kAbout, subject.prompt()) && !subject.prompt_is_about_dialogue()) {
      return in_answer(subject, 1, hit.begin, hit.end);
    }
  }
  static const re2::RE2 kContracted(
      R"((?i)^\W*(?:i(?:'|’)m|i am) (?:(?:so |very )?sorry|afraid),?(?: but)?(?: that)? (?:i (?:can(?:'|’)?(?:no)?t|don(?:'|’)t|do not|am|won(?:'|’)t)|(?:this|that|it) (?:is (?:not|beyond)|goes against)|as an ai)|)"
      R"(^\W*i(?:'|’)m (?:not able|unable|not allowed|not permitted|not comfortable) (?:to|with)|)"
      R"(^\W*(?:this|your|that) (?:request|prompt|question) (?:violates|goes against|is against|cannot be (?:completed|answered|fulfilled)|is not appropriate)|)"
      R"(^\W*(?:sorry|apologies)[,.!]? (?:but )?(?:i|this|that|we) (?:can(?:'|’)?(?:no)?t|cannot|am|(?:is|request)|won(?:'|’)t|don(?:'|’)t|do not|(?:a|(?:'|’))?m (?:not|unable))|)"
      R"(^\W*(?:it is|it(?:'|’)s) not (?:possible|appropriate) for me to)");
  if (const Match hit = find_match(kContracted, answer)) {
    if (!matches(kAbout, subject.prompt()) && !subject.prompt_is_about_dialogue()) {
      return in_answer(subject, 1, hit.begin, hit.end);
    }
  }
  return std::nullopt;
}

std::optional<Finding> check_echo(const Subject& subject, double threshold) {
  const std::string_view answer = trim(subject.answer());
  if (answer.empty() || subject.record().schema == Schema::kText) {
    return std::nullopt;
  }
  static const re2::RE2 kWantsCopy(
      R"((?i)\b(?:repeat|copy|echo|quote|recite|say|write down|type|print|transcribe)\b)");
  const auto words_if_equal = [&](std::string_view asked) -> double {
    // Equal words imply near-equal lengths: spare the folding of the rest.
    if (asked.empty() || asked.size() > 2 * answer.size() + 16 ||
        answer.size() > 2 * asked.size() + 16) {
      return 0;
    }
    return fold_text(asked) == fold_text(answer) ? static_cast<double>(count_words(answer)) : 0;
  };
  double words = words_if_equal(trim(subject.instruction()));
  if (words == 0) {
    words = words_if_equal(trim(subject.prompt()));
  }
  if (words >= threshold && !matches(kWantsCopy, subject.instruction())) {
    return whole_answer(subject, words, "equals the prompt");
  }
  // Where the task is to change the input, giving it back unchanged is no answer; where it is to
  // check, to pick or to keep, it may be one.
  static const re2::RE2 kMustChange(
      R"((?i)\b(?:translate|summari[sz]e|rewrite|rephrase|paraphrase|reword|simplify|shorten|condense|expand|elaborate|convert|transform|explain|describe|analy[sz]e|answer|reverse|continue|improve|classify|predict|generate|respond)\b)");
  const std::string_view input = trim(subject.input());
  words = input.empty() ? 0 : words_if_equal(input);
  if (words >= threshold && answer == input && matches(kMustChange, subject.instruction()) &&
      !matches(kWantsCopy, subject.instruction())) {
    return whole_answer(subject, words, "equals the input");
  }
  // The whole instruction in front of the answer proper.
  const std::string_view instruction = trim(subject.instruction());
  if (instruction.size() >= 40 && answer.size() > instruction.size() &&
      answer.substr(0, instruction.size()) == instruction && !subject.prompt_is_about_code() &&
      !matches(kWantsCopy, instruction)) {
    const auto copied = static_cast<double>(count_words(instruction));
    if (copied >= 2 * threshold) {
      return in_answer(subject, copied, 0, instruction.size(), "begins with the instruction");
    }
  }
  return std::nullopt;
}

std::optional<Finding> check_missing_input(const Subject& subject, double) {
  const Record& record = subject.record();
  const bool single = record.schema == Schema::kAlpaca || record.messages.size() == 2;
  // "Ticket:" with nothing behind it is no input.
  static const re2::RE2 kLabel(R"((?i)^(?:[a-z]{3,14} ?:)?$)");
  if (!single || subject.prompt().size() > 240 || !matches(kLabel, trim(subject.input()))) {
    return std::nullopt;
  }
  const std::string_view prompt = trim(subject.instruction());
  const auto says = [&](std::string_view word) { return prompt.find(word) != prompt.npos; };
  if (!says("ollowing") && !says("elow") && !says("given") && !says("his ") && !says("ere is ")) {
    return std::nullopt;
  }
  // The sentence that points must be the last one and hold nothing that could be the text itself:
  // no quote, bracket, digit or line break, no colon but at its end, and behind the noun only what
  // is to be done. A label that waits for its text ("Ticket:") may follow.
  static const std::string kNoun =
      "(?:sentences?|paragraphs?|texts?|passages?|articles?|e-?mails?|letter|code|snippet|table|"
      "dataset|data|poem|haiku|essay|document|conversation|dialogue|review|tweet|image|picture|"
      "photo|graph|chart|statements?|phrase|excerpt|transcript|quote|story|equation|expression|"
      "logo|cartoon|artwork|art piece|painting|input|material|information|recipe|speech|lyrics|"
      "messages?|questions?|problem|puzzle|sequence|words|numbers|items|list|mails?|tickets?|"
      "notes?|requests?|complaints?|comments?|posts?|reports?|logs?|feedback|inquiry|enquiry|query|"
      "case)\\b";
  static const std::string kEnd = "[.?!:]?(?:\\s*\\n\\s*[a-z]{3,14} ?:)?$";
  static const std::string kTask =
      "(?: (?:in|into|by|using|from|with|to|for|and|as|so|without|is|are|if|according|based|on|or|"
      "below|above)\\b[a-z ,'-]{0,90})?" +
      kEnd;
  static const re2::RE2 kPoints(
      "(?i)\\b(?:the |these |this )?following (?:[a-z-]+ ){0,3}?" + kNoun + kTask +
      "|\\b(?:the|this) (?:[a-z-]+ ){0,2}?" + kNoun + " (?:given |provided |shown |listed )?below" +
      kTask + "|^(?:given|based on|using|considering|from) the following (?:[a-z-]+ ){0,2}?" +
      kNoun + ", [a-z ,'-]{5,120}" + kEnd + "|\\bhere is (?:the|my|our|a|an) (?:[a-z-]+ ){0,2}?" +
      kNoun + ":$|^(?:is|are|was|does|do|did) the following " + kNoun + "(?: [a-z'-]+){1,5}\\?$");
  static const re2::RE2 kGiven("(?i)\\b(?:the|this) given (?:[a-z-]+ ){0,2}?" + kNoun + kTask);
  // One sentence that ends in "this text": nothing stands before or behind it.
  static const re2::RE2 kThis(
      R"((?i)^(?:[a-z ,'-]+ )?[a-z]+ this (?:sentence|paragraph|text|passage|article|e-?mail|code|snippet|review|tweet|poem|letter|excerpt|statement|essay|document|message|mail|ticket|note|request|complaint|comment|post|report|log)[.?:]?$)");
  Match hit = find_match(kPoints, prompt);
  hit = hit || subject.prompt_is_about_code() ? hit : find_match(kThis, prompt);
  if (!hit && !subject.prompt_is_about_code()) {
    // "a function that reverses the given string" asks for something general.
    static const re2::RE2 kGeneral(
        R"((?i)^(?:please )?(?:write|create|generate|compose|construct|draft|design|make|produce|develop|invent|build|how|what|explain)\b)");
    hit = matches(kGeneral, prompt) ? Match{} : find_match(kGiven, prompt);
  }
  if (!hit) {
    return std::nullopt;
  }
  // The text in the sentence itself, or named well enough to be known.
  static const re2::RE2 kInline(
      R"((?i)\bsuch as\b|\bcalled\b|\btitled\b|\bnamed\b|\blike\b|\bby [a-z]+ [a-z]+$)");
  static const re2::RE2 kKnown(R"(\b(?:by|from|of|in) [A-Z][a-z])");
  const std::string_view tail = prompt.substr(hit.begin, hit.end - hit.begin);
  if (matches(kInline, tail) || matches(kKnown, tail)) {
    return std::nullopt;
  }
  const int message = record.messages.front().role == "system" ? 1 : 0;
  const auto begin = static_cast<int64_t>(prompt.data() - subject.prompt().data() +
                                          static_cast<std::ptrdiff_t>(hit.begin));
  return Finding{1, {message, begin, begin + static_cast<int64_t>(hit.end - hit.begin)}, ""};
}

namespace {

// "1,234.5" as a number and how many digits follow the point.
double read_number(std::string_view text, int& decimals) {
  std::string plain;
  decimals = 0;
  bool after_point = false;
  for (const char c : text) {
    if (c != ',') {
      plain += c;
      decimals += after_point ? 1 : 0;
      after_point = after_point || c == '.';
    }
  }
  return std::strtod(plain.c_str(), nullptr);
}

char neighbour(std::string_view text, std::ptrdiff_t at, int step) {
  while (at >= 0 && at < static_cast<std::ptrdiff_t>(text.size()) &&
         (text[static_cast<size_t>(at)] == ' ' || text[static_cast<size_t>(at)] == '$')) {
    at += step;
  }
  return at >= 0 && at < static_cast<std::ptrdiff_t>(text.size()) ? text[static_cast<size_t>(at)]
                                                                  : '\0';
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const char before = neighbour(text, static_cast<std::ptrdiff_t>(begin) - 1, -1);
  const char after = neighbour(text, static_cast<std::ptrdiff_t>(end), 1);
  const auto is_letter = [](char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; };
  // An operator, bracket or digit beside it makes the equation a part of a longer one.
  constexpr std::string_view kJoins = "+-*/^%().,=<>_[]{}\\|&~!";
  const bool joined_before =
      before != '\0' && before != '=' && before != '.' && before != ',' &&
      (kJoins.find(before) != std::string_view::npos ||
       static_cast<unsigned char>(before) >= 0x80 || (before >= '0' && before <= '9'));
  const char touching = begin > 0 ? text[begin - 1] : '\0';
  // "(1/2) x 2 x 2", "60 students x 2/3", "14, 400 / 80"
  const size_t before_at = text.find_last_not_of(" $", begin == 0 ? 0 : begin - 1);
  const char earlier =
      begin > 1 && before_at != std::string_view::npos && before_at > 0 ? text[before_at - 1] : ' ';
  const bool factor =
      (before == 'x' && !is_letter(earlier)) || (before == ',' && earlier >= '0' && earlier <= '9');
  const bool glued = factor || is_letter(touching) || touching == '.' || touching == ',';
  constexpr std::string_view kContinues = "+-*/^%=<>([{\\:";
  const bool joined_after = after != '\0' && (kContinues.find(after) != std::string_view::npos ||
                                              static_cast<unsigned char>(after) >= 0x80 ||
                                              (after >= '0' && after <= '9'));
  const bool unit = end < text.size() && (is_letter(text[end]) || text[end] == '_');
  return !joined_before && !glued && !joined_after && !unit;
}

}  // namespace

namespace {

struct Equation {
  std::vector<double> operands;
  std::string operators;  // one of + - * / between two operands
  double claimed = 0;
  int decimals = 0;  // of the claimed value
};

// Reads "$3 x 1/2 = 1.50"; false for clock times and other numbers with leading zeros.
bool read_equation(std::string_view text, Equation& out) {
  bool after_equals = false;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c >= '0' && c <= '9') {
      const size_t end = std::min(text.find_first_not_of("0123456789,.", at), text.size());
      std::string_view number = text.substr(at, end - at);
      while (number.back() == ',' || number.back() == '.') {
        number.remove_suffix(1);
      }
      if (number.size() > 1 && number[0] == '0' && number[1] != '.') {
        return false;
      }
      int decimals = 0;
      const double value = read_number(number, decimals);
      if (after_equals) {
        out.claimed = value;
        out.decimals = decimals;
      } else {
        out.operands.push_back(value);
      }
      at = end;
      continue;
    }
    const bool times = c == 'x' || c == '*' || text.substr(at, 2) == "×";
    const bool over = c == '/' || text.substr(at, 2) == "÷";
    if (c == '=') {
      after_equals = true;
    } else if (times || over || c == '+' || c == '-') {
      out.operators += times ? '*' : over ? '/' : c;
    }
    ++at;
  }
  // 25 / 1/3 may mean 25 / (1/3).
  return after_equals && out.operators.find("//") == std::string::npos &&
         out.operators.size() + 1 == out.operands.size();
}

// Products and quotients first, each from left to right. NaN on division by zero.
double evaluate(const Equation& equation) {
  double sum = 0;
  double term = equation.operands[0];
  double sign = 1;
  for (size_t i = 0; i < equation.operators.size(); ++i) {
    const double next = equation.operands[i + 1];
    switch (equation.operators[i]) {
      case '*':
        term *= next;
        break;
      case '/':
        term = next == 0 ? std::nan("") : term / next;
        break;
      default:
        sum += sign * term;
        sign = equation.operators[i] == '+' ? 1 : -1;
        term = next;
    }
  }
  return sum + sign * term;
}

// Whether rounding, dollars for cents, shares for percent or counting in thousands explains it.
bool is_explained(const Equation& equation, double actual) {
  const double unit = std::pow(10.0, -equation.decimals);
  const double slack = unit * (actual == std::floor(actual) ? 0.5 : 1.0);
  for (const double scale : {1.0, 100.0, 0.01, 1000.0}) {
    if (std::abs(actual * scale - equation.claimed) <= slack) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::optional<Finding> check_wrong_arithmetic(const Subject& subject, double threshold) {
  if (!subject.has('=') || subject.answer_is_code()) {
    return std::nullopt;
  }
  const std::string_view answer = subject.answer();
  static const re2::RE2 kEquation(
      R"(\$?\d[\d,]*(?:\.\d+)?(?: ?(?:[-+*/x]|×|÷) ?\$?\d[\d,]*(?:\.\d+)?){1,8} ?= ?\$?\d[\d,]*(?:\.\d+)?)");
  static const re2::RE2 kOther(
      R"((?i)\bmod\b|modul|binary|hexadecimal|base \d|octal|boolean|remainder|clock|incorrect|wrong|puzzle)");
  static const re2::RE2 kMixed(R"((?:\band|\d) $)");
  for (Match hit = find_match(kEquation, answer); hit;
       hit = find_match(kEquation, answer, hit.end)) {
    Equation equation;
    const std::string_view before =
        answer.substr(hit.begin - std::min<size_t>(hit.begin, 5), std::min<size_t>(hit.begin, 5));
    if (!stands_alone(answer, hit.begin, hit.end) || matches(kMixed, before) ||
        !read_equation(answer.substr(hit.begin, hit.end - hit.begin), equation)) {
      continue;
    }
    const double actual = evaluate(equation);
    const double relative = std::abs(actual - equation.claimed) / std::max(1.0, std::abs(actual));
    // "3 - 5 = 2" in prose is a difference.
    const bool wrong = actual >= 0 && relative >= threshold && !is_explained(equation, actual);
    if (wrong && !matches(kOther, subject.prompt()) && !matches(kOther, answer)) {
      return in_answer(subject, relative, hit.begin, hit.end);
    }
  }
  return std::nullopt;
}

std::optional<Finding> check_one_word_output(const Subject& subject, double) {
  const std::string_view answer = trim(subject.answer());
  if (answer.empty() || answer.size() > 60 ||
      answer.find_first_of(" \t\r\n") != std::string_view::npos || count_words(answer) > 1) {
    return std::nullopt;
  }
  return whole_answer(subject, static_cast<double>(answer.size()));
}

std::optional<Finding> check_url_in_prompt(const Subject& subject, double) {
  static const re2::RE2 kUrl(R"((?i)\b(?:https?://|www\.)[^\s"'<>]{4,})");
  for (size_t i = 0; i < subject.record().messages.size(); ++i) {
    const Message& message = subject.record().messages[i];
    if (message.role != "user") {
      continue;
    }
    if (const Match hit = find_match(kUrl, message.content)) {
      return Finding{
          1,
          {static_cast<int>(i), static_cast<int64_t>(hit.begin), static_cast<int64_t>(hit.end)},
          ""};
    }
  }
  return std::nullopt;
}

}  // namespace graft::data
