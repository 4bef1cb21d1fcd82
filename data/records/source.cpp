#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "data/records/record.h"
#include "data/records/scan.h"

namespace graft::data {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr int64_t kMaxItemBytes = int64_t{64} << 20;

struct Input {
  MappedFile map;
  size_t first;  // after the byte order mark and leading white space
  bool is_array;
};

// An array file begins with '[' and then an object or its end. A line of JSONL that happens to
// begin with '[' is a malformed record, not an array of records.
bool looks_like_array(std::string_view text, size_t first) {
  if (first >= text.size() || text[first] != '[') {
    return false;
  }
  const size_t next = skip_json_space(text, first + 1);
  return next < text.size() && (text[next] == '{' || text[next] == ']');
}

Input open_input(const std::string& path) {
  if (directory_exists(path)) {
    fail(ExitCode::kIo, "this is a directory, not a file", path,
         "name its files, for example " + join_path(path, "*.jsonl"));
  }
  MappedFile map(path);
  const std::string_view text = map.text();
  const size_t mark = text.substr(0, kByteOrderMark.size()) == kByteOrderMark ? 3 : 0;
  const size_t first = skip_json_space(text, mark);
  if (first >= text.size()) {
    fail(ExitCode::kData, text.empty() ? "the file is empty" : "the file holds only white space",
         path, "give a JSONL file or a JSON array of records");
  }
  const bool is_array = looks_like_array(text, first);
  return {std::move(map), first, is_array};
}

}  // namespace

struct RecordSource::State {
  std::vector<std::string> names;
  std::vector<Input> inputs;
  // Where the reading stands.
  size_t file = 0;
  size_t at = 0;
  int64_t index = 0;
  int64_t line = 1;
  size_t line_counted_to = 0;
  bool started = false;
  bool array_closed = false;

  void begin_file() {
    at = inputs[file].is_array ? inputs[file].first + 1 : 0;
    if (!inputs[file].is_array && text().substr(0, 3) == kByteOrderMark) {
      at = 3;
    }
    index = 0;
    line = 1;
    line_counted_to = 0;
    array_closed = false;
    started = true;
  }
  std::string_view text() const { return inputs[file].map.text(); }

  void emit(size_t begin, size_t end, RawItem& item) {
    const std::string_view whole = text();
    line += std::count(whole.begin() + static_cast<std::ptrdiff_t>(line_counted_to),
                       whole.begin() + static_cast<std::ptrdiff_t>(begin), '\n');
    line_counted_to = begin;
    item.file = static_cast<int>(file);
    item.index = index++;
    item.line = line;
    item.begin = static_cast<int64_t>(begin);
    item.end = static_cast<int64_t>(end);
    item.raw = whole.substr(begin, end - begin);
  }

  bool next_line(RawItem& item) {
    const std::string_view whole = text();
    while (at < whole.size()) {
      const void* newline = std::memchr(whole.data() + at, '\n', whole.size() - at);
      const size_t line_end =
          newline == nullptr
              ? whole.size()
              : static_cast<size_t>(static_cast<const char*>(newline) - whole.data());
      const size_t begin = std::min(skip_json_space(whole, at), line_end);
      size_t end = line_end;
      while (end > begin && is_json_space(whole[end - 1])) {
        --end;
      }
      at = std::min(line_end + 1, whole.size());
      if (begin < end) {
        emit(begin, end, item);
        return true;
      }
    }
    return false;
  }

  // What is left from `begin` on, without its trailing white space, as one item.
  bool rest(size_t begin, RawItem& item) {
    const std::string_view whole = text();
    size_t end = whole.size();
    while (end > begin && is_json_space(whole[end - 1])) {
      --end;
    }
    at = whole.size();
    array_closed = true;  // what is wrong with the end is in the item
    if (begin >= end) {
      return false;
    }
    emit(begin, end, item);
    return true;
  }

  // `at` stands behind '[' or behind an item, or behind the closing ']'.
  bool next_element(RawItem& item) {
    const std::string_view whole = text();
    size_t begin = skip_json_space(whole, at);
    if (begin >= whole.size()) {
      const size_t expected_bracket = std::exchange(at, whole.size());
      if (array_closed) {
        return false;
      }
      array_closed = true;
      emit(expected_bracket, expected_bracket, item);
      return true;
    }
    if (array_closed) {
      return rest(begin, item);
    }
    if (whole[begin] == ']') {
      array_closed = true;
      at = begin + 1;
      return next_element(item);
    }
    if (index > 0) {
      if (whole[begin] != ',') {
        return rest(begin, item);
      }
      const size_t comma = begin;
      begin = skip_json_space(whole, begin + 1);
      if (begin >= whole.size() || whole[begin] == ']' || whole[begin] == ',') {
        return rest(comma, item);
      }
    }
    const size_t end = json_value_end(whole, begin);
    if (end == std::string_view::npos || end == begin) {
      return rest(begin, item);
    }
    at = end;
    emit(begin, end, item);
    return true;
  }
};

RecordSource::RecordSource(std::vector<std::string> files) : state_(new State) {
  try {
    state_->names = std::move(files);
    state_->inputs.reserve(state_->names.size());
    for (const std::string& path : state_->names) {
      state_->inputs.push_back(open_input(path));
    }
  } catch (...) {
    delete state_;
    throw;
  }
}

RecordSource::~RecordSource() {
  delete state_;
}

const std::vector<std::string>& RecordSource::files() const {
  return state_->names;
}

bool RecordSource::is_array(int file) const {
  return state_->inputs[static_cast<size_t>(file)].is_array;
}

std::string_view RecordSource::file_bytes(int file) const {
  return state_->inputs[static_cast<size_t>(file)].map.text();
}

bool RecordSource::next(RawItem& item) {
  State& state = *state_;
  for (; state.file < state.inputs.size(); ++state.file, state.started = false) {
    if (!state.started) {
      state.begin_file();
    }
    if (state.inputs[state.file].is_array ? state.next_element(item) : state.next_line(item)) {
      return true;
    }
  }
  return false;
}

namespace {

// parse_json counts lines and columns from the item's first byte; readers want the file's.
[[noreturn]] void fail_in_file(const Error& error,
                               const RecordSource& source,
                               const RawItem& item,
                               std::string_view name) {
  ErrorText text = error.text();
  int64_t line = 1;
  int64_t column = 1;
  std::string member;
  if (text.where.rfind(name, 0) == 0 && text.where.size() > name.size() &&
      text.where[name.size()] == ':') {
    size_t at = name.size() + 1;
    const auto number = [&](int64_t fallback) {
      int64_t value = 0;
      bool any = false;
      for (; at < text.where.size() && text.where[at] >= '0' && text.where[at] <= '9'; ++at) {
        value = value * 10 + (text.where[at] - '0');
        any = true;
      }
      at += at < text.where.size() && text.where[at] == ':' ? 1 : 0;
      return any ? value : fallback;
    };
    line = number(1);
    column = number(1);
    member = text.where.substr(std::min(at, text.where.size()));
  }
  if (line == 1) {
    const std::string_view before =
        source.file_bytes(item.file).substr(0, static_cast<size_t>(item.begin));
    const size_t newline = before.rfind('\n');
    column += static_cast<int64_t>(newline == std::string_view::npos ? before.size()
                                                                     : before.size() - newline - 1);
  }
  std::string where =
      std::string(name) + ":" + std::to_string(item.line + line - 1) + ":" + std::to_string(column);
  if (!member.empty()) {
    where += (member.front() == ' ' ? ":" : ": ") + member;
  }
  fail(error.code(), text.what, where, text.fix);
}

}  // namespace

Record read_record(const RecordSource& source,
                   const RawItem& item,
                   const FieldMapping& mapping,
                   Pairs pairs) {
  const std::string& name = source.files()[static_cast<size_t>(item.file)];
  if (item.end - item.begin > kMaxItemBytes) {
    fail(ExitCode::kData,
         "one record may hold at most 64 MiB, got " + std::to_string(item.end - item.begin) +
             " bytes",
         name + ":" + std::to_string(item.line), "split the record");
  }
  if (item.raw.empty()) {
    fail(ExitCode::kData, "the JSON array is not closed: its final ] is missing",
         name + ":" + std::to_string(item.line),
         "compare the file with its origin, it may be cut; if nothing is lost, add the ]");
  }
  try {
    return parse_record(parse_json(item.raw, name), name, mapping, pairs);
  } catch (const Error& error) {
    fail_in_file(error, source, item, name);
  }
}

}  // namespace graft::data
