// Rules on personal data and secrets: shapes first, then checksums, ranges and context.
#include <algorithm>
#include <array>
#include <cctype>
#include <functional>
#include <string>

#include "data/curate/match.h"
#include "data/curate/rule_functions.h"

namespace graft::data {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_alpha(char c) {
  return (c | 32) >= 'a' && (c | 32) <= 'z';
}

std::string digits_of(std::string_view text) {
  std::string digits;
  std::copy_if(text.begin(), text.end(), std::back_inserter(digits), is_digit);
  return digits;
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return out;
}

// The first match of `pattern` in any message that `accept` takes; accept returns the value, or 0.
using Accept = std::function<double(std::string_view text, const Match& hit)>;
std::optional<Finding> find_in_messages(const Subject& subject,
                                        const re2::RE2& pattern,
                                        const Accept& accept) {
  const Record& record = subject.record();
  for (size_t i = 0; i < record.messages.size(); ++i) {
    const std::string& text = record.messages[i].content;
    for (Match hit = find_match(pattern, text); hit; hit = find_match(pattern, text, hit.end)) {
      if (const double value = accept(text, hit); value > 0) {
        return Finding{
            value,
            {static_cast<int>(i), static_cast<int64_t>(hit.begin), static_cast<int64_t>(hit.end)},
            ""};
      }
      if (hit.end == hit.begin) {
        break;
      }
    }
  }
  return std::nullopt;
}

// What people write where an address belongs: you@, my_email@, username@, name@.
bool is_placeholder_mailbox(std::string_view mailbox) {
  static const re2::RE2 kPlaceholder(
      R"(^(?:your?|my|the|sender|recipient|receiver|from|to|someone|somebody|anyone|example|sample|user|users?name|e?mail|name|first|last|test|foo|bar|abc|xyz|address)\d*(?:$|[._\-+ ]|name|email|mail))");
  return matches(kPlaceholder, mailbox);
}

bool names_provider(const Subject& subject) {
  const auto named = [](std::string_view text) {
    return text.find(" at ") != std::string_view::npos &&
           (text.find("mail") != std::string_view::npos ||
            text.find("dot") != std::string_view::npos ||
            text.find(".com") != std::string_view::npos);
  };
  return std::any_of(subject.record().messages.begin(), subject.record().messages.end(),
                     [&](const Message& message) { return named(message.content); });
}

// A part of a larger word or number, or the second half of one.
bool glued(std::string_view text, const Match& hit) {
  const char before = hit.begin > 0 ? text[hit.begin - 1] : ' ';
  const char after = hit.end < text.size() ? text[hit.end] : ' ';
  return is_digit(before) || is_alpha(before) || before == '_' || is_digit(after) ||
         is_alpha(after) || after == '_';
}

}  // namespace

std::optional<Finding> check_email(const Subject& subject, double) {
  static const re2::RE2 kEmail(
      R"([A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})");
  static const re2::RE2 kFile(
      R"((?i)\.(?:png|jpe?g|gif|svg|webp|js|ts|css|py|json|html?|txt|md)$)");
  if (subject.has('@')) {
    auto found = find_in_messages(subject, kEmail, [&](std::string_view text, const Match& hit) {
      const std::string address = lower(text.substr(hit.begin, hit.end - hit.begin));
      const size_t at = address.rfind('@');
      const bool remote = address.substr(0, at) == "git";
      return is_placeholder_mailbox(address.substr(0, at)) || matches(kFile, address) || remote
                 ? 0.0
                 : 1.0;
    });
    if (found) {
      return found;
    }
  }
  if (!subject.has('[') && !subject.has('(') && !subject.has('{') && !names_provider(subject)) {
    return std::nullopt;
  }
  static const re2::RE2 kSpelled(
      R"((?i)\b[a-z0-9][a-z0-9._%+\-]{1,40} ?(?:\[ ?at ?\]|\( ?at ?\)|\{ ?at ?\}) ?[a-z0-9\-]{2,40} ?(?:\[ ?dot ?\]|\( ?dot ?\)|\{ ?dot ?\}|\.| dot ) ?[a-z]{2,12}\b|)"
      R"(\b[a-z0-9][a-z0-9._%+\-]{1,40} at (?:gmail|yahoo|hotmail|outlook|proton|icloud)(?: dot |\.)com\b)");
  return find_in_messages(subject, kSpelled, [](std::string_view, const Match&) { return 1.0; });
}

namespace {

// Toll-free numbers belong to nobody in person.
bool is_toll_free(std::string_view area) {
  constexpr std::array<std::string_view, 7> kAreas = {"800", "833", "844", "855",
                                                      "866", "877", "888"};
  return std::find(kAreas.begin(), kAreas.end(), area) != kAreas.end();
}

// North American numbers: area code and exchange begin with 2-9 and are no N11 service code.
bool is_nanp(std::string_view ten) {
  const auto service = [](std::string_view code) { return code[1] == '1' && code[2] == '1'; };
  const std::string_view area = ten.substr(0, 3);
  const std::string_view exchange = ten.substr(3, 3);
  if (area[0] < '2' || exchange[0] < '2' || service(area) || service(exchange)) {
    return false;
  }
  return area != exchange && !is_toll_free(area);  // 555-555-1234 is a placeholder
}

bool speaks_of_phone(std::string_view text, const Match& hit) {
  static const re2::RE2 kContext(
      R"((?i)\b(?:phones?|telephone|tel|mobile|cell|call|dial|fax|whatsapp|sms|text (?:me|us|him|her)|contact|hotline|number is|my number|reach (?:me|us|him|her|out))\b)");
  const size_t from = hit.begin > 60 ? hit.begin - 60 : 0;
  return matches(kContext, text.substr(from, hit.begin - from)) ||
         matches(kContext, text.substr(hit.end, 30));
}

// What says that a number is of another kind.
bool speaks_of_other(std::string_view text, const Match& hit) {
  static const re2::RE2 kOther(
      R"((?i)(?:order|invoice|isbn|issn|serial|tracking|ticket|case|model|part|account|reference|ref|version|patent|doi|upc|sku|id|no|number of|coordinates?|latitude|longitude)\.?(?: (?:number|id|no\.?|code))?\s*(?:is|was|:|#|=)?\s*#?\s*$|[$€£¥#=+*/<>^]\s*$)");
  const size_t from = hit.begin > 32 ? hit.begin - 32 : 0;
  return matches(kOther, text.substr(from, hit.begin - from));
}

double phone_digits(std::string_view text, const Match& hit) {
  const std::string_view shape = text.substr(hit.begin, hit.end - hit.begin);
  const std::string digits = digits_of(shape);
  const char before = hit.begin > 0 ? text[hit.begin - 1] : ' ';
  const char after = hit.end < text.size() ? text[hit.end] : ' ';
  const char beyond = hit.end + 1 < text.size() ? text[hit.end + 1] : ' ';
  const bool part_of_number = is_digit(before) || is_alpha(before) || before == '-' ||
                              before == '.' || before == '/' || before == '_' || is_digit(after) ||
                              is_alpha(after) ||
                              ((after == '-' || after == '.' || after == '/') && is_digit(beyond));
  if (part_of_number || speaks_of_other(text, hit)) {
    return 0;
  }
  const auto value = static_cast<double>(digits.size());
  if (shape.front() == '+') {
    const bool north_american = digits.size() == 11 && digits.front() == '1';
    if (north_american) {
      return digits[1] > '1' && !is_toll_free(std::string_view(digits).substr(1, 3)) ? value : 0;
    }
    return digits.size() >= 9 && digits.size() <= 15 && digits.front() != '0' ? value : 0;
  }
  const bool long_distance = digits.size() == 11 && digits.front() == '1';
  if (digits.size() == 10 || long_distance) {
    const std::string_view ten = std::string_view(digits).substr(digits.size() - 10);
    const bool separated = shape.find_first_of("-. (") != std::string_view::npos;
    if (is_nanp(ten) && (separated || speaks_of_phone(text, hit))) {
      return value;
    }
    // "(555) 123-4567" is no assigned number, but nothing else is written so.
    if (shape.find('(') != std::string_view::npos && ten.substr(0, 1) > "1" &&
        !is_toll_free(ten.substr(0, 3))) {
      return value;
    }
  }
  if (digits.size() == 7) {
    return shape.front() > '1' && speaks_of_phone(text, hit) ? value : 0;
  }
  // National formats of other countries are told from other numbers by what stands around them.
  const bool national = digits.size() >= 9 && digits.size() <= 12 && digits.front() == '0';
  return national && speaks_of_phone(text, hit) ? value : 0;
}

}  // namespace

std::optional<Finding> check_phone(const Subject& subject, double threshold) {
  if (static_cast<double>(subject.digit_count()) < threshold) {
    return std::nullopt;
  }
  static const re2::RE2 kPhone(
      R"(\+\d{1,3}[ .\-]?(?:\(\d{1,4}\)[ .\-]?)?\d{1,8}(?:[ .\-]?\d{2,8}){0,4}|)"
      R"((?:1[ .\-])?\(\d{3}\) ?\d{3}[ .\-]\d{4}|(?:1[ .\-])?\d{3}[.\-]\d{3}[.\-]\d{4}|\d{3} \d{3} \d{4}|)"
      R"(\(?0\d{1,4}\)?[ \-/]?\d{2,4}(?:[ \-]?\d{2,4}){1,3}|\d{10}|\d{3}-\d{4})");
  return find_in_messages(subject, kPhone, [&](std::string_view text, const Match& hit) {
    const double digits = phone_digits(text, hit);
    return digits >= threshold ? digits : 0;
  });
}

namespace {

// A placeholder has few different characters ("xxxxxxxx") or says what it is.
bool is_placeholder(std::string_view key) {
  const std::string small = lower(key);
  for (const std::string_view word :
       {"your", "xxxx", "****", "....", "placeholder", "<", "insert"}) {
    if (small.find(word) != std::string::npos) {
      return true;
    }
  }
  return bytes_of(key).count() < 6;
}

bool looks_random(std::string_view key) {
  int digits = 0;
  int upper = 0;
  int small = 0;
  for (const char c : key) {
    digits += is_digit(c) ? 1 : 0;
    upper += c >= 'A' && c <= 'Z' ? 1 : 0;
    small += c >= 'a' && c <= 'z' ? 1 : 0;
  }
  return (digits > 0 ? 1 : 0) + (upper > 0 ? 1 : 0) + (small > 0 ? 1 : 0) >= 2 && digits > 0;
}

}  // namespace

std::optional<Finding> check_secret(const Subject& subject, double threshold) {
  if (subject.digit_count() == 0 && !subject.has('-')) {  // keys hold digits, headers dashes
    return std::nullopt;
  }
  static const re2::RE2 kShapes(
      R"(\b(?:AKIA|ASIA|AGPA|AROA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,255}|\bgithub_pat_[A-Za-z0-9_]{22,255}|)"
      R"(\bglpat-[A-Za-z0-9_\-]{20,}|\bsk-(?:ant-|proj-|live-|test-|or-)?[A-Za-z0-9_\-]{16,}|\bhf_[A-Za-z0-9]{24,}|\bxox[abeoprs]-[A-Za-z0-9\-]{10,}|)"
      R"(\bAIza[0-9A-Za-z_\-]{35}|\beyJ[A-Za-z0-9_\-]{6,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{6,}|-----BEGIN (?:[A-Z0-9]+ ){0,2}PRIVATE KEY(?: BLOCK)?-----|)"
      R"(\b[srp]k_(?:live|test)_[A-Za-z0-9]{10,}|\bnpm_[A-Za-z0-9]{30,}|\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}|\bya29\.[A-Za-z0-9_\-]{20,}|\bdop_v1_[a-f0-9]{40,}|\bAC[a-f0-9]{32}\b|\bpypi-[A-Za-z0-9_\-]{30,})");
  auto found = find_in_messages(subject, kShapes, [&](std::string_view text, const Match& hit) {
    const std::string_view key = text.substr(hit.begin, hit.end - hit.begin);
    const bool header = key.front() == '-';
    const auto size = static_cast<double>(key.size());
    return size >= threshold && (header || (looks_random(key) && !is_placeholder(key))) ? size : 0;
  });
  if (found) {
    return found;
  }
  if (!subject.has(':') && !subject.has('=') && !subject.has(' ')) {
    return std::nullopt;
  }
  // "api key: 8f3a…": a random-looking word behind a word that says what it is.
  static const re2::RE2 kNamed(
      R"((?i)(?:api[ _\-]?key|secret[ _\-]?key|access[ _\-]?key|access[ _\-]?token|auth[ _\-]?token|bearer|client[ _\-]?secret|api[ _\-]?token|api[ _\-]?secret|password|passwd|pwd|passphrase)["'`]?\s*(?:is|was|:|=|:=|=>)?\s*["'`]?[A-Za-z0-9_\-/+=.!@#$%^&*~]{10,128})");
  return find_in_messages(subject, kNamed, [&](std::string_view text, const Match& hit) {
    std::string_view key = text.substr(hit.begin, hit.end - hit.begin);
    key = key.substr(key.find_last_of(" \t\n\"'`:=") == std::string_view::npos
                         ? 0
                         : key.find_last_of(" \t\n\"'`:=") + 1);
    while (!key.empty() && (key.back() == '.' || key.back() == ',' || key.back() == '!')) {
      key.remove_suffix(1);
    }
    const bool letters = std::any_of(key.begin(), key.end(), is_alpha);
    const auto size = static_cast<double>(key.size());
    const bool named = key.size() >= 10 && letters && looks_random(key) && !is_placeholder(key) &&
                       key.find("http") == std::string_view::npos;
    return named && size >= threshold ? size : 0;
  });
}

namespace {

bool luhn_holds(std::string_view digits) {
  int sum = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    int digit = digits[digits.size() - 1 - i] - '0';
    if (i % 2 == 1) {
      digit = digit * 2 > 9 ? digit * 2 - 9 : digit * 2;
    }
    sum += digit;
  }
  return sum % 10 == 0;
}

// The ranges of Visa, Mastercard, American Express, Discover and JCB with their lengths.
bool is_card(std::string_view digits) {
  const int two = (digits[0] - '0') * 10 + (digits[1] - '0');
  const int four = two * 100 + (digits[2] - '0') * 10 + (digits[3] - '0');
  const bool known =
      (digits[0] == '4' && (digits.size() == 16 || digits.size() == 13)) ||
      (digits.size() == 16 && ((two >= 51 && two <= 55) || (four >= 2221 && four <= 2720) ||
                               four == 6011 || two == 65 || (four >= 3528 && four <= 3589))) ||
      (digits.size() == 15 && (two == 34 || two == 37));
  return known && luhn_holds(digits) && bytes_of(digits).count() > 1;
}

// ISO 13616: the first four characters go to the end, letters count 10..35, the rest mod 97 is 1.
bool is_iban(std::string_view shape) {
  std::string plain;
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(plain),
               [](char c) { return c != ' '; });
  if (plain.size() < 15 || plain.size() > 34) {
    return false;
  }
  std::rotate(plain.begin(), plain.begin() + 4, plain.end());
  int rest = 0;
  for (const char c : plain) {
    rest = is_digit(c) ? (rest * 10 + (c - '0')) % 97 : (rest * 100 + (c - 'A' + 10)) % 97;
  }
  return rest == 1;
}

bool is_social_security(std::string_view digits) {
  const std::string_view area = digits.substr(0, 3);
  return area != "000" && area != "666" && area[0] != '9' && digits.substr(3, 2) != "00" &&
         digits.substr(5) != "0000" && digits != "123456789" && digits != "078051120";
}

}  // namespace

std::optional<Finding> check_account_number(const Subject& subject, double threshold) {
  if (subject.digit_count() < 9) {  // the shortest, a social security number
    return std::nullopt;
  }
  static const re2::RE2 kCard(
      R"(\d{4}[ \-]?\d{4}[ \-]?\d{4}[ \-]?\d{4}|\d{4}[ \-]?\d{6}[ \-]?\d{5}|\d{13})");
  const auto at_least = [&](size_t size) {
    return static_cast<double>(size) >= threshold ? static_cast<double>(size) : 0;
  };
  auto found = find_in_messages(subject, kCard, [&](std::string_view text, const Match& hit) {
    const std::string digits = digits_of(text.substr(hit.begin, hit.end - hit.begin));
    return !glued(text, hit) && is_card(digits) ? at_least(digits.size()) : 0;
  });
  if (found) {
    return found;
  }
  static const re2::RE2 kIban(R"([A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)");
  found = find_in_messages(subject, kIban, [&](std::string_view text, const Match& hit) {
    // A following word in capitals may have been taken along: try the shorter forms as well.
    for (size_t end = hit.end; end >= hit.begin + 15; --end) {
      const std::string_view shape = text.substr(hit.begin, end - hit.begin);
      if (shape.back() != ' ' && is_iban(shape)) {
        return at_least(shape.size());
      }
    }
    return 0.0;
  });
  if (found) {
    return found;
  }
  static const re2::RE2 kSocialSecurity(R"(\d{3}-\d{2}-\d{4})");
  return find_in_messages(subject, kSocialSecurity, [&](std::string_view text, const Match& hit) {
    const std::string digits = digits_of(text.substr(hit.begin, hit.end - hit.begin));
    const bool alone = !glued(text, hit) && (hit.begin == 0 || text[hit.begin - 1] != '-');
    return alone && is_social_security(digits) ? at_least(digits.size()) : 0;
  });
}

}  // namespace graft::data
