// Normalizers and the edits that they make, so that every token knows the bytes it comes from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "data/text/tokenizer.h"
#include "data/text/tokenizer/charsmap.h"
#include "data/text/tokenizer/pattern.h"
#include "data/text/tokenizer/unicode.h"

namespace graft::data {

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581

// A part of a text, changed step by step, and where each of its bytes comes from.
class EditedText {
 public:
  // Starts as text[part.begin, part.end).
  EditedText(std::string_view text, ByteRange part);

  const std::string& text() const { return text_; }
  // The range [begin, end) alone.
  EditedText slice(size_t begin, size_t end) const;
  // Where a range of the edited text comes from: disjoint ranges give disjoint ranges, and the
  // whole gives the whole part. What was removed belongs to the character before it, what was
  // inserted to nothing.
  ByteRange source(size_t begin, size_t end) const;
  // The same as `tokenizers` sees it: whole characters, a composed character comes from the first
  // of its parts, an inserted one from its neighbour. The range must not be empty.
  ByteRange reference(size_t begin, size_t end) const;

  // Replaces the whole text. `removed` characters at the front are gone; `tokenizers` knows of
  // `reference_removed` of them.
  void transform(const std::vector<NormalizedCharacter>& characters,
                 size_t removed,
                 size_t reference_removed);
  // Replaces ranges by texts: ranges in order and disjoint, an empty one inserts in front of a
  // character. A replacement has all of its range's source on its first byte.
  struct Edit {
    ByteRange range;
    std::string_view content;
  };
  void edit(const std::vector<Edit>& edits);

 private:
  struct Byte {
    uint32_t source;  // where the byte begins in the original text
    uint32_t reference_begin;
    uint32_t reference_end;
  };
  EditedText() = default;
  uint32_t source_at(size_t at) const { return at < bytes_.size() ? bytes_[at].source : end_; }

  std::string text_;
  std::vector<Byte> bytes_;
  uint32_t begin_ = 0;  // of the part in the original text
  uint32_t end_ = 0;
};

// "content" for every match of a pattern, or of a plain string.
struct ReplaceStep {
  std::string text;  // used without a pattern
  std::shared_ptr<const Pattern> pattern;
  std::string content;
};
struct PrependStep {
  std::string prefix;  // nothing happens to an empty text
};
struct StripStep {
  bool left = false;
  bool right = false;
};
// The normalizer of a tokenizer.model, as sentencepiece runs it.
struct SentencePieceStep {
  std::shared_ptr<const CharacterMap> map;  // nullptr = characters stay as they are
  bool remove_extra_spaces = false;         // at both ends, and all but one of a run
  bool add_dummy_prefix = false;
  bool escape_spaces = false;  // as U+2581
};
using NormalizerStep = std::variant<NormalForm,
                                    ReplaceStep,
                                    PrependStep,
                                    StripStep,
                                    std::shared_ptr<const CharacterMap>,
                                    SentencePieceStep>;

// The places of `wanted`, which is not empty, in text[begin, end), from left to right.
void find_text(std::string_view text,
               std::string_view wanted,
               size_t begin,
               size_t end,
               std::vector<ByteRange>& out);

// Applies the steps. Errors: kData (a pattern reached its limit).
void run_steps(const std::vector<NormalizerStep>& steps, EditedText& text);
// Whether the steps cannot change text[begin, end). May say no although they would not.
bool is_unchanged(const std::vector<NormalizerStep>& steps,
                  std::string_view text,
                  size_t begin,
                  size_t end);

}  // namespace graft::data
