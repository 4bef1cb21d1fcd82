#include "data/curate/examples.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "core/error.h"
#include "data/curate/normalize.h"

namespace graft::data {
namespace {

bool continues_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

std::string escape_byte(unsigned char c) {
  std::array<char, 8> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "\\x%02x", c);
  return buffer.data();
}

// Marks without width, which a reader could not see: zero width spaces and joiners, direction marks
// and overrides (U+200B-F, U+202A-E, U+2060-F) and the byte order mark.
std::string escape_invisible(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.size() < 3 || (byte(0) != 0xE2 && byte(0) != 0xEF)) {
    return "";
  }
  const int point = (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  const bool invisible = (point >= 0x200B && point <= 0x200F) ||
                         (point >= 0x202A && point <= 0x202E) ||
                         (point >= 0x2060 && point <= 0x206F) || point == 0xFEFF;
  std::array<char, 8> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "\\u%04x", static_cast<unsigned>(point));
  return invisible ? buffer.data() : "";
}

std::string one_line(std::string_view text) {
  const bool valid = is_utf8(text);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        valid && c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7F || (c >= 0x80 && !valid)) {
      out += escape_byte(c);
    } else if (c1) {
      out += escape_byte(static_cast<unsigned char>(text[++i]));
    } else if (const std::string mark = valid ? escape_invisible(text.substr(i)) : "";
               !mark.empty()) {
      out += mark;
      i += 2;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out;
}

}  // namespace

Excerpt excerpt(std::string_view text, size_t begin, size_t end, size_t width) {
  begin = std::min(begin, text.size());
  end = std::clamp(end, begin, text.size());
  const size_t shown_end = std::min(end, begin + width);
  const size_t spare = width - (shown_end - begin);
  size_t from = begin - std::min(begin, spare / 3);
  size_t to = std::min(text.size(), shown_end + (spare - (begin - from)));
  const auto align = [&](size_t at) {
    while (at > 0 && at < text.size() && continues_character(text[at])) {
      --at;
    }
    return at;
  };
  from = align(from);
  to = align(to);
  const size_t marked_end = std::max(align(shown_end), begin);
  Excerpt out;
  out.before = (from > 0 ? "…" : "") + one_line(text.substr(from, begin - from));
  out.marked = one_line(text.substr(begin, marked_end - begin));
  out.after = one_line(text.substr(marked_end, std::max(to, marked_end) - marked_end)) +
              (to < text.size() ? "…" : "");
  return out;
}

namespace {

constexpr std::string_view kBlank = "(blank)";

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

// What was asked and, marked, that there is no answer.
Excerpt without_answer(const Record& record, size_t width) {
  const std::string prompt = record.prompt();
  return {(is_blank(prompt) ? std::string(kBlank) : excerpt(prompt, 0, 0, width).line()) + " → ",
          std::string(kBlank), ""};
}

}  // namespace

Excerpt example_of(const RecordSource& source,
                   const CleanResult& result,
                   size_t item,
                   const Verdict& verdict,
                   size_t width) {
  const RawItem& raw = result.items[item];
  try {
    const Record record = read_record(source, raw);
    const auto message = static_cast<size_t>(std::max(0, verdict.span.message));
    if (verdict.span.message >= 0 && message < record.messages.size()) {
      if (is_blank(record.messages[message].content)) {
        return without_answer(record, width - 2 * kBlank.size());
      }
      return excerpt(record.messages[message].content, static_cast<size_t>(verdict.span.begin),
                     static_cast<size_t>(verdict.span.end), width);
    }
    const std::string prompt = record.prompt();
    const bool asked = record.schema != Schema::kText;
    const std::string text = (is_blank(prompt) && asked ? std::string(kBlank) : prompt) +
                             (asked ? " → " : "") + std::string(record.answer());
    return excerpt(text, 0, 0, width);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) {
      throw;
    }
    return raw.raw.empty() ? Excerpt{"", "", "(the end of the file)"}
                           : excerpt(raw.raw, 0, 0, width);
  }
}

}  // namespace graft::data
