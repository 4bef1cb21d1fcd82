#include "data/text/encode_lines.h"

#include <charconv>

#include "core/error.h"
#include "data/text/json_scanner.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

void append_number(std::string& out, int64_t number) {
  char digits[20];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), number).ptr;
  out.append(digits, static_cast<size_t>(end - digits));
}

}  // namespace

LineEncoder::LineEncoder(const Tokenizer& tokenizer, const EncodeOptions& options)
    : tokenizer_(tokenizer), options_(options) {}

bool LineEncoder::answer(std::string_view line, std::string& out) {
  if (!is_valid_utf8(line)) return false;
  std::string_view text;
  bool has_text = false;
  try {
    JsonScanner scanner(line, "stdin");
    std::string_view key;
    for (scanner.enter('{'); scanner.next_key(key, key_);) {
      if (key == "text") {
        if (has_text) return false;
        text = scanner.string(text_);
        has_text = true;
      } else {
        scanner.raw_value();
      }
    }
    scanner.end();
  } catch (const Error&) {
    return false;
  }
  if (!has_text) return false;
  const Encoding encoding = tokenizer_.encode(text, options_);
  out += "{\"ids\":[";
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    if (i > 0) out += ',';
    append_number(out, encoding.ids[i]);
  }
  out += "],\"offsets\":[";
  bool is_first = true;
  for (const ByteRange& range : reference_offsets(text, encoding)) {
    out += is_first ? "[" : ",[";
    is_first = false;
    append_number(out, range.begin);
    out += ',';
    append_number(out, range.end);
    out += ']';
  }
  out += "]}\n";
  return true;
}

}  // namespace graft::data
