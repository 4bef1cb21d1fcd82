#include "data/text/tokenizer/normalizer.h"

#include <algorithm>

#include "data/text/utf8.h"

namespace graft::data {

EditedText::EditedText(std::string_view text, ByteRange part)
    : text_(
          text.substr(static_cast<size_t>(part.begin), static_cast<size_t>(part.end - part.begin))),
      begin_(static_cast<uint32_t>(part.begin)),
      end_(static_cast<uint32_t>(part.end)) {
  bytes_.reserve(text_.size());
  const auto shift = static_cast<uint32_t>(part.begin);
  for (size_t at = 0; at < text_.size();) {
    const size_t length = utf8_length(text_[at]);
    const uint32_t begin = shift + static_cast<uint32_t>(at);
    for (size_t i = 0; i < length; ++i) {
      bytes_.push_back(
          {begin + static_cast<uint32_t>(i), begin, begin + static_cast<uint32_t>(length)});
    }
    at += length;
  }
}

EditedText EditedText::slice(size_t begin, size_t end) const {
  EditedText part;
  part.text_ = text_.substr(begin, end - begin);
  part.bytes_.assign(bytes_.begin() + static_cast<std::ptrdiff_t>(begin),
                     bytes_.begin() + static_cast<std::ptrdiff_t>(end));
  part.begin_ = begin == 0 ? begin_ : source_at(begin);
  part.end_ = source_at(end);
  return part;
}

ByteRange EditedText::source(size_t begin, size_t end) const {
  return {begin == 0 ? begin_ : source_at(begin), source_at(end)};
}

ByteRange EditedText::reference(size_t begin, size_t end) const {
  return {bytes_[begin].reference_begin, bytes_[end - 1].reference_end};
}

void EditedText::transform(const std::vector<NormalizedCharacter>& characters,
                           size_t removed,
                           size_t reference_removed) {
  // Where the characters that are not yet replaced begin, for the sources and for the references.
  size_t from = 0;
  size_t reference = 0;
  const auto skip = [&](size_t& at, int64_t count) {
    for (; count > 0 && at < text_.size(); --count) at += utf8_length(text_[at]);
  };
  skip(reference, static_cast<int64_t>(reference_removed));
  std::string text;
  std::vector<Byte> bytes;
  text.reserve(text_.size());
  bytes.reserve(text_.size());
  skip(from, static_cast<int64_t>(removed));
  for (const auto& [character, change] : characters) {
    const size_t begin = text.size();
    append_utf8(text, character);
    const size_t length = text.size() - begin;
    const size_t replaced = from;
    if (change <= 0) skip(from, 1 - change);
    // An unchanged character keeps the place of each of its bytes, another one has it all on the
    // first.
    const bool is_same = change == 0 && from - replaced == length &&
                         text_.compare(replaced, length, text, begin, length) == 0;
    Byte byte{source_at(replaced), 0, 0};
    const size_t aligned = change > 0 ? reference - std::min<size_t>(reference, 1)
                                      : std::min(reference, bytes_.size() - 1);
    if (!bytes_.empty() && (change <= 0 || reference > 0)) {
      byte.reference_begin = bytes_[aligned].reference_begin;
      byte.reference_end = bytes_[aligned].reference_end;
    }
    if (change <= 0) skip(reference, 1 - change);
    for (size_t i = 0; i < length; ++i) {
      if (i > 0) byte.source = is_same ? bytes_[replaced + i].source : source_at(from);
      bytes.push_back(byte);
    }
  }
  text_ = std::move(text);
  bytes_ = std::move(bytes);
}

void EditedText::edit(const std::vector<Edit>& edits) {
  std::string text;
  std::vector<Byte> bytes;
  text.reserve(text_.size());
  bytes.reserve(text_.size());
  size_t done = 0;
  const auto copy_until = [&](size_t end) {
    text.append(text_, done, end - done);
    bytes.insert(bytes.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(done),
                 bytes_.begin() + static_cast<std::ptrdiff_t>(end));
    done = end;
  };
  for (const auto& [range, content] : edits) {
    const auto begin = static_cast<size_t>(range.begin);
    const auto end = static_cast<size_t>(range.end);
    copy_until(begin);
    text.append(content);
    const Byte& neighbour = bytes_[begin == end ? begin : end - 1];
    for (size_t i = 0; i < content.size(); ++i) {
      const uint32_t source = i == 0 ? bytes_[begin].source : source_at(end);
      bytes.push_back({source, neighbour.reference_begin, neighbour.reference_end});
    }
    done = end;
  }
  copy_until(text_.size());
  text_ = std::move(text);
  bytes_ = std::move(bytes);
}

namespace {

void apply_replace(const ReplaceStep& step, EditedText& text) {
  std::vector<ByteRange> ranges;
  if (step.pattern) {
    step.pattern->find_all(text.text(), 0, text.text().size(), ranges);
  } else {
    find_text(text.text(), step.text, 0, text.text().size(), ranges);
  }
  std::vector<EditedText::Edit> edits;
  edits.reserve(ranges.size());
  for (const ByteRange& range : ranges) edits.push_back({range, step.content});
  if (!edits.empty()) text.edit(edits);
}

bool is_white(char32_t character) {
  return (character_flags(character) & kSpaceFlag) != 0;
}

void apply_strip(const StripStep& step, EditedText& text) {
  std::vector<char32_t> characters;
  const std::string& all = text.text();
  for (size_t at = 0; at < all.size(); at += utf8_length(all[at])) {
    characters.push_back(utf8_at(all, at));
  }
  size_t begin = 0;
  size_t end = characters.size();
  while (step.left && begin < end && is_white(characters[begin])) ++begin;
  while (step.right && begin < end && is_white(characters[end - 1])) --end;
  if (begin == 0 && end == characters.size()) return;
  std::vector<NormalizedCharacter> kept;
  for (size_t i = begin; i < end; ++i) kept.push_back({characters[i], 0});
  if (!kept.empty()) kept.back().change = -static_cast<int64_t>(characters.size() - end);
  text.transform(kept, begin, begin);
}

// src/normalizer.cc of sentencepiece, Normalizer::Normalize.
void apply_sentencepiece(const SentencePieceStep& step, EditedText& edited) {
  const std::string text = edited.text();
  const std::string_view mark = step.escape_spaces ? kWordMark : " ";
  std::vector<EditedText::Edit> edits;
  std::vector<std::string> contents;  // of the edits, in order
  // What stands for text[begin, end), where it is something else.
  const auto become = [&](size_t begin, size_t end, std::string content) {
    const auto range = ByteRange{static_cast<int64_t>(begin), static_cast<int64_t>(end)};
    if (std::string_view(text).substr(begin, end - begin) == content) return;
    edits.push_back({range, {}});
    contents.push_back(std::move(content));
  };
  const auto prefix_at = [&](size_t at, std::string_view& content) {
    const std::string_view rest = std::string_view(text).substr(at);
    const size_t known = step.map ? step.map->longest_prefix(rest, content) : 0;
    if (known > 0) return known;
    const size_t size = utf8_length(text[at]);
    content = rest.substr(0, size);
    return size;
  };
  size_t first = 0;  // behind the white space at the front
  std::string_view content;
  while (step.remove_extra_spaces && first < text.size()) {
    const size_t size = prefix_at(first, content);
    if (content != " ") break;
    first += size;
  }
  if (first > 0) become(0, first, "");
  bool is_after_space = step.remove_extra_spaces;
  if (first < text.size() && step.add_dummy_prefix) become(first, first, std::string(mark));
  for (size_t at = first; at < text.size();) {
    const size_t size = prefix_at(at, content);
    while (is_after_space && content.starts_with(' ')) content.remove_prefix(1);
    std::string out;
    for (const char c : content) {
      if (c == ' ') {
        out += mark;
      } else {
        out += c;
      }
    }
    if (!content.empty()) is_after_space = content.ends_with(' ');
    if (!step.remove_extra_spaces) is_after_space = false;
    become(at, at + size, std::move(out));
    at += size;
  }
  for (size_t i = 0; i < edits.size(); ++i) edits[i].content = contents[i];
  if (!edits.empty()) edited.edit(edits);
  if (!step.remove_extra_spaces) return;
  size_t kept = edited.text().size();
  while (std::string_view(edited.text()).substr(0, kept).ends_with(mark)) kept -= mark.size();
  if (kept < edited.text().size()) {
    edited.edit({{{static_cast<int64_t>(kept), static_cast<int64_t>(edited.text().size())}, ""}});
  }
}

}  // namespace

void find_text(std::string_view text,
               std::string_view wanted,
               size_t begin,
               size_t end,
               std::vector<ByteRange>& out) {
  const std::string_view part = text.substr(0, end);
  for (size_t at = part.find(wanted, begin); at != std::string_view::npos;
       at = part.find(wanted, at + wanted.size())) {
    out.push_back({static_cast<int64_t>(at), static_cast<int64_t>(at + wanted.size())});
  }
}

void run_steps(const std::vector<NormalizerStep>& steps, EditedText& text) {
  struct Visitor {
    EditedText& text;
    void operator()(NormalForm form) { text.transform(normalize(text.text(), form), 0, 0); }
    void operator()(const ReplaceStep& step) { apply_replace(step, text); }
    void operator()(const PrependStep& step) {
      if (!text.text().empty()) text.edit({{{0, 0}, step.prefix}});
    }
    void operator()(const StripStep& step) { apply_strip(step, text); }
    void operator()(const SentencePieceStep& step) { apply_sentencepiece(step, text); }
    void operator()(const std::shared_ptr<const CharacterMap>& map) {
      const CharacterMap::Mapped mapped = map->map(text.text());
      if (mapped.changed) text.transform(mapped.characters, mapped.removed, 0);
    }
  };
  for (const NormalizerStep& step : steps) std::visit(Visitor{text}, step);
}

bool is_unchanged(const std::vector<NormalizerStep>& steps,
                  std::string_view text,
                  size_t begin,
                  size_t end) {
  if (steps.empty()) return true;
  for (const NormalizerStep& step : steps) {
    const NormalForm* form = std::get_if<NormalForm>(&step);
    if (!form || *form != NormalForm::kC) return false;
  }
  const FlagTable& table = flag_table();
  for (size_t at = begin; at < end;) {
    const auto byte = static_cast<unsigned char>(text[at]);
    // Nothing below U+0300 is changed by NFC, or changes what stands before it.
    if (byte < 0xCC) {
      ++at;
      continue;
    }
    if ((table.of(utf8_at(text, at)) & kUnstableFlag) != 0) return false;
    at += utf8_length(text[at]);
  }
  return true;
}

}  // namespace graft::data
