#include "data/text/tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "data/text/utf8.h"

namespace graft::data {
namespace {

#include "data/text/tokenizer/unicode_tables.inc"

constexpr size_t kPlanes = 0x110000;
constexpr size_t kBlocks = kPlanes / 256;

// Values by code point in blocks of 256; equal blocks are stored once.
class BlockTable {
 public:
  explicit BlockTable(const std::vector<uint8_t>& values) : blocks_(kBlocks) {
    std::unordered_map<std::string_view, uint16_t> known;
    const std::string_view all(reinterpret_cast<const char*>(values.data()), values.size());
    for (size_t block = 0; block < kBlocks; ++block) {
      const std::string_view content = all.substr(block * 256, 256);
      const auto [entry, is_new] = known.try_emplace(content, static_cast<uint16_t>(known.size()));
      blocks_[block] = entry->second;
      if (is_new) values_.insert(values_.end(), content.begin(), content.end());
    }
  }
  const uint8_t* values() const { return values_.data(); }
  const uint16_t* blocks() const { return blocks_.data(); }

 private:
  std::vector<uint8_t> values_;
  std::vector<uint16_t> blocks_;
};

// Runs of (first code point << 8 | value) as one value a code point.
template <size_t Count>
BlockTable expand_runs(const uint32_t (&runs)[Count]) {
  std::vector<uint8_t> values(kPlanes);
  for (size_t run = 0; run < Count; ++run) {
    const size_t end = run + 1 < Count ? runs[run + 1] >> 8 : kPlanes;
    for (size_t point = runs[run] >> 8; point < end; ++point) {
      values[point] = static_cast<uint8_t>(runs[run] & 0xFFU);
    }
  }
  return BlockTable(values);
}

uint8_t look_up(const BlockTable& table, char32_t character) {
  if (character >= kPlanes) return 0;
  return table
      .values()[static_cast<size_t>(table.blocks()[character >> 8]) << 8 | (character & 0xFFU)];
}

struct Decomposition {
  const uint32_t* parts = nullptr;
  size_t count = 0;
};
using Decompositions = std::unordered_map<char32_t, Decomposition>;

template <size_t Count>
Decompositions read_decompositions(const uint32_t (&table)[Count]) {
  Decompositions result;
  for (size_t at = 0; at < Count;) {
    const size_t length = table[at] & 0xFFU;
    result[table[at] >> 8] = {table + at + 1, length};
    at += 1 + length;
  }
  return result;
}

constexpr char32_t kHangulFirst = 0xAC00;
constexpr char32_t kHangulCount = 11172;
constexpr char32_t kLeadFirst = 0x1100;
constexpr char32_t kLeadCount = 19;
constexpr char32_t kVowelFirst = 0x1161;
constexpr char32_t kVowelCount = 21;
constexpr char32_t kTailBase = 0x11A7;  // one below the first
constexpr char32_t kTailCount = 28;

// The composed character, or 0.
char32_t compose(char32_t first, char32_t second) {
  if (first - kLeadFirst < kLeadCount && second - kVowelFirst < kVowelCount) {
    return kHangulFirst +
           ((first - kLeadFirst) * kVowelCount + (second - kVowelFirst)) * kTailCount;
  }
  if (first - kHangulFirst < kHangulCount && (first - kHangulFirst) % kTailCount == 0 &&
      second > kTailBase && second - kTailBase < kTailCount) {
    return first + (second - kTailBase);
  }
  static const auto pairs = [] {
    std::unordered_map<uint64_t, char32_t> result;
    for (size_t at = 0; at + 2 < std::size(kCompositions); at += 3) {
      result[uint64_t{kCompositions[at]} << 32 | kCompositions[at + 1]] = kCompositions[at + 2];
    }
    return result;
  }();
  const auto found = pairs.find(uint64_t{first} << 32 | second);
  return found == pairs.end() ? 0 : found->second;
}

std::vector<NormalizedCharacter> decompose(std::string_view text, bool is_compatible) {
  static const Decompositions canonical = read_decompositions(kCanonical);
  static const Decompositions compatible = read_decompositions(kCompatible);
  std::vector<NormalizedCharacter> out;
  std::vector<uint8_t> classes;
  size_t pending = 0;  // where the characters begin that are not yet in canonical order
  const auto sort_pending = [&] {
    if (out.size() - pending > 1) {
      std::vector<std::pair<uint8_t, NormalizedCharacter>> part;
      for (size_t i = pending; i < out.size(); ++i) part.emplace_back(classes[i], out[i]);
      std::stable_sort(part.begin(), part.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      for (size_t i = pending; i < out.size(); ++i) {
        classes[i] = part[i - pending].first;
        out[i] = part[i - pending].second;
      }
    }
    pending = out.size();
  };
  const auto push = [&](char32_t character, bool is_first) {
    const uint8_t ccc = combining_class(character);
    if (ccc == 0) sort_pending();
    out.push_back({character, is_first ? 0 : 1});
    classes.push_back(ccc);
    if (ccc == 0) pending = out.size();
  };
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    const char32_t character = utf8_at(text, at);
    if (character < 0x80) {
      push(character, true);
      continue;
    }
    if (character - kHangulFirst < kHangulCount) {
      const char32_t index = character - kHangulFirst;
      push(kLeadFirst + index / (kVowelCount * kTailCount), true);
      push(kVowelFirst + index % (kVowelCount * kTailCount) / kTailCount, false);
      if (index % kTailCount != 0) push(kTailBase + index % kTailCount, false);
      continue;
    }
    Decomposition parts;
    if (is_compatible) {
      if (const auto found = compatible.find(character); found != compatible.end()) {
        parts = found->second;
      }
    }
    if (!parts.parts) {
      if (const auto found = canonical.find(character); found != canonical.end()) {
        parts = found->second;
      }
    }
    if (!parts.parts) push(character, true);
    for (size_t i = 0; i < parts.count; ++i) push(parts.parts[i], i == 0);
  }
  sort_pending();
  return out;
}

// The changes of a composed character follow `tokenizers`: those of its parts, less one.
std::vector<NormalizedCharacter> recompose(const std::vector<NormalizedCharacter>& input) {
  std::vector<NormalizedCharacter> out;
  std::vector<NormalizedCharacter> behind;  // marks that wait behind the starter
  bool has_starter = false;
  NormalizedCharacter starter{};
  int last_class = -1;  // of the last mark in `behind`
  const auto flush = [&] {
    if (has_starter) out.push_back(starter);
    out.insert(out.end(), behind.begin(), behind.end());
    behind.clear();
    last_class = -1;
  };
  for (const NormalizedCharacter& next : input) {
    const int ccc = combining_class(next.character);
    if (!has_starter) {
      if (ccc != 0) {
        out.push_back(next);
      } else {
        starter = next;
        has_starter = true;
      }
      continue;
    }
    const bool is_blocked = last_class >= ccc;
    const char32_t composed = is_blocked ? 0 : compose(starter.character, next.character);
    if (composed != 0) {
      starter = {composed, starter.change + next.change - 1};
    } else if (ccc == 0) {
      flush();
      starter = next;
    } else {
      behind.push_back(next);
      last_class = ccc;
    }
  }
  flush();
  return out;
}

}  // namespace

const FlagTable& flag_table() {
  static const BlockTable table = expand_runs(kFlagRuns);
  static const FlagTable view = {table.values(), table.blocks()};
  return view;
}

uint8_t character_flags(char32_t character) {
  return character < kPlanes ? flag_table().of(character) : 0;
}

char32_t unicode14_stand_in(char32_t character) {
  constexpr size_t kRuns = std::size(kStandInRuns) / 2;
  size_t low = 0;
  size_t high = kRuns;
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    (kStandInRuns[middle * 2] <= character ? low : high) = middle;
  }
  return kStandInRuns[low * 2 + 1];
}

uint8_t combining_class(char32_t character) {
  static const BlockTable table = expand_runs(kCombiningRuns);
  return look_up(table, character);
}

std::vector<NormalizedCharacter> normalize(std::string_view text, NormalForm form) {
  std::vector<NormalizedCharacter> parts =
      decompose(text, form == NormalForm::kKc || form == NormalForm::kKd);
  return form == NormalForm::kC || form == NormalForm::kKc ? recompose(parts) : parts;
}

}  // namespace graft::data
