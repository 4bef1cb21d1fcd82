#include "data/text/tokenizer/json_merges.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <span>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace graft::data {
namespace {

struct MergeIds {
  int32_t left;
  int32_t right;
  int32_t whole;
};

[[noreturn]] void fail_too_many(const std::string& name) {
  fail(ExitCode::kData,
       "a model must have at most " + std::to_string(MergeTable::kMaxMerges) + " merges", name);
}

void append(MergeTable& table, std::span<const MergeIds> merges) {
  for (const MergeIds& merge : merges) table.prefetch(merge.left, merge.right);
  for (const MergeIds& merge : merges) table.add(merge.left, merge.right, merge.whole);
}

// Where a list ends: a half of one has no bracket behind it.
enum class End { kBracket, kText };

// Merges are looked up in groups, so that the cache misses of a group overlap.
class Reader {
 public:
  Reader(JsonScanner& scanner, End end, const Vocabulary& vocabulary, const std::string& name)
      : scanner_(scanner), end_(end), vocabulary_(vocabulary), name_(name), text_(scanner.rest()) {}

  // The next merges; fewer than kGroup at the end.
  std::span<const MergeIds> next_group() {
    size_t count = 0;
    for (; count < kGroup && !is_at_end() && scanner_.next_item(); ++count) {
      Merge& merge = group_[count];
      read(merge);
      join(merge);
      merge.left_hash = hash_bytes(merge.left);
      merge.right_hash = hash_bytes(merge.right);
      merge.whole_hash = hash_bytes(merge.whole);
      vocabulary_.prefetch_entry(merge.left_hash);
      vocabulary_.prefetch_entry(merge.right_hash);
      vocabulary_.prefetch_entry(merge.whole_hash);
    }
    look_up(count);
    count_ += count;
    if (count_ > MergeTable::kMaxMerges) fail_too_many(name_);
    return {ids_.data(), count};
  }

  static constexpr size_t kGroup = 32;

 private:
  struct Merge {
    std::string_view left;
    std::string_view right;
    std::string_view whole;
    std::array<char, 32> short_whole;
    std::string long_whole;
    std::string buffers[2];
    uint64_t left_hash = 0;
    uint64_t right_hash = 0;
    uint64_t whole_hash = 0;
  };

  bool is_at_end() { return end_ == End::kText && scanner_.peek() == '\0'; }

  void read(Merge& merge) {
    if (scanner_.peek() == '[') {
      scanner_.enter('[');
      if (!scanner_.next_item()) scanner_.refuse("a merge must be two tokens");
      merge.left = scanner_.string(merge.buffers[0]);
      if (!scanner_.next_item()) scanner_.refuse("a merge must be two tokens");
      merge.right = scanner_.string(merge.buffers[1]);
      if (scanner_.next_item()) scanner_.refuse("a merge must be two tokens");
      return;
    }
    const std::string_view text = scanner_.string(merge.buffers[0]);
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      scanner_.refuse("a merge must be two tokens apart by one space, got \"" + std::string(text) +
                      "\"");
    }
    merge.left = text.substr(0, space);
    merge.right = text.substr(space + 1);
  }

  // Nearly every merge is of two short strings that stand in the file: 16 bytes of each are copied
  // whatever their sizes are.
  void join(Merge& merge) const {
    constexpr size_t kShort = 16;
    const char* end = text_.data() + text_.size();
    const auto is_short = [&](std::string_view part) {
      const bool is_in_file = part.data() >= text_.data() && part.data() < end;
      return part.size() <= kShort && is_in_file &&
             static_cast<size_t>(end - part.data()) >= kShort;
    };
    if (!is_short(merge.left) || !is_short(merge.right)) {
      merge.long_whole.assign(merge.left).append(merge.right);
      merge.whole = merge.long_whole;
      return;
    }
    std::memcpy(merge.short_whole.data(), merge.left.data(), kShort);
    std::memcpy(merge.short_whole.data() + merge.left.size(), merge.right.data(), kShort);
    merge.whole = {merge.short_whole.data(), merge.left.size() + merge.right.size()};
  }

  void look_up(size_t count) {
    const std::span<const Merge> merges(group_.data(), count);
    for (const Merge& merge : merges) {
      vocabulary_.prefetch_token(merge.left_hash);
      vocabulary_.prefetch_token(merge.right_hash);
      vocabulary_.prefetch_token(merge.whole_hash);
    }
    for (size_t i = 0; i < count; ++i) {
      const Merge& merge = merges[i];
      ids_[i] = {vocabulary_.find(merge.left, merge.left_hash),
                 vocabulary_.find(merge.right, merge.right_hash),
                 vocabulary_.find(merge.whole, merge.whole_hash)};
      const bool is_known = ids_[i].left >= 0 && ids_[i].right >= 0 && ids_[i].whole >= 0;
      if (is_known && !merge.left.empty() && !merge.right.empty()) continue;
      fail(ExitCode::kData,
           "merge " + std::to_string(count_ + i) + " (\"" + std::string(merge.left) + "\", \"" +
               std::string(merge.right) +
               "\") has a part or a result that is not in the vocabulary",
           name_);
    }
  }

  JsonScanner& scanner_;
  const End end_;
  const Vocabulary& vocabulary_;
  const std::string& name_;
  const std::string_view text_;  // what the views of merges stand in
  size_t count_ = 0;
  std::vector<Merge> group_ = std::vector<Merge>(kGroup);
  std::array<MergeIds, kGroup> ids_{};
};

template <class See>
void read_all(Reader& reader, const See& see) {
  for (bool has_more = true; has_more;) {
    const std::span<const MergeIds> merges = reader.next_group();
    see(merges);
    has_more = merges.size() == Reader::kGroup;
  }
}

// Where a long list that begins with `first` can be cut: the comma behind a merge near its middle,
// found at the end of a line, which is never inside a string. 0 = nowhere.
size_t middle_of(std::string_view list, char first) {
  // A thread takes 50 us to start, which is what 20 KB take to read.
  constexpr size_t kLong = size_t{1} << 20;
  if (list.size() < kLong) return 0;
  const char closing = first == '[' ? ']' : '"';
  size_t at = list.size() / 2;
  for (int lines = 0; lines < 8; ++lines) {
    const size_t line_end = list.find('\n', at);
    if (line_end == std::string_view::npos) return 0;
    const size_t comma = line_end - 1;
    if (list[comma] == ',' && list[comma - 1] == closing) return comma;
    at = line_end + 1;
  }
  return 0;
}

// Reads the list on two threads, parted at `cut`. False: something is wrong with it, or it was no
// place to part it; the scanner is where it was.
bool read_halves(JsonScanner& scanner,
                 size_t cut,
                 const Vocabulary& vocabulary,
                 const std::string& name,
                 MergeTable& table) {
  std::future<bool> first_half = std::async(std::launch::async, [&, part = scanner.until(cut)] {
    JsonScanner first = part;
    Reader reader(first, End::kText, vocabulary, name);
    read_all(reader, [&](std::span<const MergeIds> merges) { append(table, merges); });
    return first.rest().empty();
  });
  JsonScanner second = scanner;
  second.skip_to_comma(cut);
  std::vector<MergeIds> later;
  bool is_good = true;
  try {
    Reader reader(second, End::kBracket, vocabulary, name);
    later.reserve(static_cast<size_t>(vocabulary.count()) * 9 / 8);
    read_all(reader, [&](std::span<const MergeIds> merges) {
      later.insert(later.end(), merges.begin(), merges.end());
    });
  } catch (const Error&) {
    is_good = false;
  }
  try {
    is_good = first_half.get() && is_good;
  } catch (const Error&) {
    is_good = false;
  }
  if (!is_good || table.size() + later.size() > MergeTable::kMaxMerges) return false;
  for (size_t at = 0; at < later.size(); at += Reader::kGroup) {
    append(table, std::span(later).subspan(at, std::min(Reader::kGroup, later.size() - at)));
  }
  scanner = second;
  return true;
}

MergeTable empty_table(const Vocabulary& vocabulary) {
  MergeTable table;
  // From one (GPT-2) to 2.2 (Llama 3) merges a token in the known models.
  table.reserve(std::min(static_cast<size_t>(vocabulary.count()) * 9 / 4, MergeTable::kMaxMerges));
  return table;
}

}  // namespace

MergeTable read_json_merges(JsonScanner& scanner,
                            const Vocabulary& vocabulary,
                            const std::string& name) {
  scanner.enter('[');
  const char first = scanner.peek();
  MergeTable table = empty_table(vocabulary);
  const size_t cut = middle_of(scanner.rest(), first);
  if (cut > 0 && read_halves(scanner, cut, vocabulary, name, table)) return table;
  // Also to say what is wrong and where.
  if (table.size() > 0) table = empty_table(vocabulary);
  Reader reader(scanner, End::kBracket, vocabulary, name);
  read_all(reader, [&](std::span<const MergeIds> merges) { append(table, merges); });
  return table;
}

}  // namespace graft::data
