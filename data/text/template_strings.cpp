#include "data/text/template_strings.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <utf8proc.h>

#include "data/text/utf8.h"

namespace graft::data::jinja {
namespace {

std::vector<Value> split_at_space(const Text& text, int64_t most) {
  const std::string& bytes = text.bytes();
  std::vector<Value> parts;
  size_t at = leading_space(bytes);
  while (at < bytes.size()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(Value::string(text.part(at, end_without_space(bytes))));
      break;
    }
    size_t end = at;
    while (end < bytes.size() && !is_space(utf8_at(bytes, end))) end += utf8_length(bytes[end]);
    parts.push_back(Value::string(text.part(at, end)));
    at = end + leading_space(std::string_view(bytes).substr(end));
  }
  return parts;
}

// Characters whose Python mapping is longer than one character or depends on their place.
bool has_special_case(char32_t c, bool upper) {
  if (!upper) return c == 0x130 || c == 0x3A3;
  return c == 0x149 || c == 0x1F0 || c == 0x390 || c == 0x3B0 || c == 0x587 ||
         (c >= 0x1E96 && c <= 0x1E9E) || (c >= 0x1F50 && c <= 0x1FFC) ||
         (c >= 0xFB00 && c <= 0xFB17) || (c >= 0x1C4 && c <= 0x1CC) || (c >= 0x1F1 && c <= 0x1F3);
}

}  // namespace

Text strip(const Text& text, Sides sides, const Value* chars) {
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  size_t end = bytes.size();
  const auto is_unwanted = [&](size_t at) {
    if (!chars) return is_space(utf8_at(bytes, at));
    const std::string& set = chars->text()->bytes();
    return set.find(bytes.substr(at, utf8_length(bytes[at]))) != std::string::npos;
  };
  if (chars && chars->is_none()) chars = nullptr;
  if (chars && !chars->text()) bad("strip needs a string");
  if (sides != Sides::kRight) {
    while (begin < end && is_unwanted(begin)) begin += utf8_length(bytes[begin]);
  }
  while (sides != Sides::kLeft && end > begin) {
    size_t last = end - 1;
    while (is_utf8_continuation(bytes[last])) --last;
    if (!is_unwanted(last)) break;
    end = last;
  }
  return text.part(begin, end);
}

Value split(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(2, {"sep", "maxsplit"});
  const Text& text = *self.text();
  const Value* separator = arguments.find(0, "sep");
  const Value* count = arguments.find(1, "maxsplit");
  if (count && !count->is_integer()) bad("split needs an integer maxsplit");
  const int64_t most = count ? count->as_integer() : -1;
  std::vector<Value> parts;
  if (!separator || separator->is_none()) {
    parts = split_at_space(text, most);
  } else {
    const std::string& between = need_text(*separator, "the separator of split").bytes();
    if (between.empty()) bad("empty separator");
    size_t begin = 0;
    for (size_t at = text.bytes().find(between);
         at != std::string::npos && (most < 0 || static_cast<int64_t>(parts.size()) < most);
         at = text.bytes().find(between, begin)) {
      parts.push_back(Value::string(text.part(begin, at)));
      begin = at + between.size();
    }
    parts.push_back(Value::string(text.part(begin, text.size())));
  }
  budget.charge_items(parts.size());
  return Value::list(std::move(parts));
}

Value split_lines(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(0);
  const Text& text = *self.text();
  std::vector<Value> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = utf8_at(text.bytes(), at);
    const size_t length = utf8_length(text.bytes()[at]);
    const bool is_end =
        (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    size_t next = at + length;
    if (is_end) {
      lines.push_back(Value::string(text.part(begin, at)));
      if (c == '\r' && next < text.size() && text.bytes()[next] == '\n') ++next;
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back(Value::string(text.part(begin, text.size())));
  budget.charge_items(lines.size());
  return Value::list(std::move(lines));
}

Value replace(Budget& budget, const Text& text, const Value& from, const Value& to, int64_t most) {
  const std::string& old = need_text(from, "replace").bytes();
  const Text& fresh = need_text(to, "replace");
  Text result;
  size_t begin = 0;
  int64_t done = 0;
  const auto add_fresh = [&] {
    budget.charge_text(fresh.size());
    if (result.size() + fresh.size() > kMaxTextBytes) budget.charge_text(kMaxTextBytes + 1);
    result.append(fresh);
  };
  if (old.empty()) {  // before every character and at the end, as Python does
    for (size_t at = 0; at < text.size() && (most < 0 || done < most); ++done) {
      add_fresh();
      const size_t next = at + utf8_length(text.bytes()[at]);
      result.append(text, at, next);
      begin = at = next;
    }
    if (begin == text.size() && (most < 0 || done < most)) add_fresh();
  } else {
    for (size_t at = text.bytes().find(old); at != std::string::npos && (most < 0 || done < most);
         at = text.bytes().find(old, begin), ++done) {
      result.append(text, begin, at);
      add_fresh();
      begin = at + old.size();
    }
  }
  result.append(text, begin, text.size());
  return budget.string(std::move(result));
}

Value change_case(Budget& budget, const Text& text, Case change) {
  Text result;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text.bytes()[at]);
    const char32_t c = utf8_at(text.bytes(), at);
    const auto point = static_cast<utf8proc_int32_t>(c);
    const bool is_letter = utf8proc_toupper(point) != point || utf8proc_tolower(point) != point;
    const bool upper = change == Case::kUpper || (change == Case::kCapitalize && at == 0) ||
                       (change == Case::kTitle && !in_word);
    if (has_special_case(c, upper)) bad("changing the case of this character is not supported");
    if (c == 0xDF && upper) {  // sharp s
      result.append(change == Case::kUpper ? "SS" : "Ss", text.tag_at(at));
    } else {
      std::string changed;
      append_utf8(changed,
                  static_cast<char32_t>(upper ? utf8proc_toupper(point) : utf8proc_tolower(point)));
      result.append(changed, text.tag_at(at));
    }
    in_word = is_letter;
    at += length;
  }
  return budget.string(std::move(result));
}

Value join(Budget& budget, const std::vector<Value>& items, const Text& between) {
  Text result;
  for (size_t i = 0; i < items.size(); ++i) {
    const Text text = to_text(items[i]);
    budget.charge_text(text.size() + between.size());
    if (i > 0) result.append(between);
    result.append(text);
    if (result.size() > kMaxTextBytes) budget.charge_text(result.size());
  }
  return budget.string(std::move(result));
}

bool has_affix(const Value& self, const Arguments& arguments, bool at_end) {
  arguments.allow(1);
  if (arguments.positional.empty()) bad("startswith and endswith need a string");
  const std::string& text = self.text()->bytes();
  const auto matches = [&](const Value& affix) {
    const std::string& bytes = need_text(affix, "startswith or endswith").bytes();
    return at_end ? text.ends_with(bytes) : text.starts_with(bytes);
  };
  const Value& affix = arguments.positional[0];
  if (const List* list = affix.list(); list && list->is_tuple) {
    return std::any_of(list->items.begin(), list->items.end(), matches);
  }
  return matches(affix);
}

Value format(Budget& budget, const Value& self, const Arguments& arguments) {
  arguments.allow(64);
  const Text& pattern = *self.text();
  Text result;
  size_t next = 0;
  for (size_t at = 0; at < pattern.size();) {
    const std::string two = pattern.bytes().substr(at, 2);
    if (two == "{}") {
      if (next == arguments.positional.size()) bad("format has fewer arguments than fields");
      result.append(to_text(arguments.positional[next++]));
    } else if (two == "{{" || two == "}}") {
      result.append(pattern, at, at + 1);
    } else if (two[0] == '{' || two[0] == '}') {
      bad("format fields other than {} are not supported");
    } else {
      result.append(pattern, at, at + 1);
      ++at;
      continue;
    }
    at += 2;
  }
  return budget.string(std::move(result));
}

}  // namespace graft::data::jinja
