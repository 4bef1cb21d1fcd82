#include "data/text/encode_lines.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "core/error.h"
#include "data/text/json_scanner.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

constexpr size_t kMaxDigits = 20;

// The digits of 0..9999 without leading zeros: ids and offsets are the larger half of the output,
// and nearly all are below.
struct ShortNumber {
  std::array<char, 4> digits;
  uint8_t size;
};
constexpr auto kShortNumbers = [] {
  std::array<ShortNumber, 10000> numbers{};
  for (size_t n = 0; n < numbers.size(); ++n) {
    const uint8_t size = n < 10 ? 1 : n < 100 ? 2 : n < 1000 ? 3 : 4;
    numbers[n].size = size;
    size_t rest = n;
    for (size_t at = size; at-- > 0; rest /= 10) {
      numbers[n].digits[at] = static_cast<char>('0' + rest % 10);
    }
  }
  return numbers;
}();

// Writes up to kMaxDigits bytes at `at`; gives the place behind the number.
char* write_number(char* at, int64_t number) {
  if (number >= 0 && number < static_cast<int64_t>(kShortNumbers.size())) {
    const ShortNumber& known = kShortNumbers[static_cast<size_t>(number)];
    std::memcpy(at, known.digits.data(), known.digits.size());
    return at + known.size;
  }
  return std::to_chars(at, at + kMaxDigits, number).ptr;
}

}  // namespace

LineEncoder::LineEncoder(const Tokenizer& tokenizer, const EncodeOptions& options)
    : tokenizer_(tokenizer), options_(options) {}

bool LineEncoder::answer(std::string_view line, std::string& out) {
  if (!is_valid_utf8(line)) return false;
  std::string_view text;
  bool has_text = false;
  try {
    JsonScanner scanner(line, std::string_view("stdin"));
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
  const std::vector<ByteRange> offsets = reference_offsets(text, encoding);
  constexpr std::string_view kIds = "{\"ids\":[";
  constexpr std::string_view kOffsets = "],\"offsets\":[";
  constexpr std::string_view kEnd = "]}\n";
  const size_t before = out.size();
  // Each number with the brackets and commas round it.
  out.resize(before + kIds.size() + kOffsets.size() + kEnd.size() +
             encoding.ids.size() * (kMaxDigits + 1) + offsets.size() * 2 * (kMaxDigits + 2));
  char* at = std::copy(kIds.begin(), kIds.end(), out.data() + before);
  for (const int32_t id : encoding.ids) {
    at = write_number(at, id);
    *at++ = ',';
  }
  if (!encoding.ids.empty()) --at;
  at = std::copy(kOffsets.begin(), kOffsets.end(), at);
  for (const ByteRange& range : offsets) {
    *at++ = '[';
    at = write_number(at, range.begin);
    *at++ = ',';
    at = write_number(at, range.end);
    *at++ = ']';
    *at++ = ',';
  }
  if (!offsets.empty()) --at;
  at = std::copy(kEnd.begin(), kEnd.end(), at);
  out.resize(static_cast<size_t>(at - out.data()));
  return true;
}

}  // namespace graft::data
