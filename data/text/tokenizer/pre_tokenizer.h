// Pre-tokenizers: how a normalized text is cut into the pieces that the model sees one by one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "data/text/tokenizer/normalizer.h"
#include "data/text/tokenizer/pattern.h"
#include "data/text/tokenizer/splitter.h"

namespace graft::data {

// What becomes of the text that a splitter matched.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  std::optional<SplitterKind> known;  // one of the three
  std::shared_ptr<const Pattern> pattern;
  std::string text;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what matches and what does not change places
};
struct DigitsStep {
  bool individual = false;
};
struct WhitespaceSplitStep {};
struct PrefixSpaceStep {};  // ByteLevel(add_prefix_space): " " in front of every piece without one
enum class PrependScheme { kNever, kFirst, kAlways };
struct MetaspaceStep {
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;
};
using PreTokenizerStep =
    std::variant<SplitStep, DigitsStep, WhitespaceSplitStep, PrefixSpaceStep, MetaspaceStep>;

// Whether a step changes the text, not only cuts it.
bool edits_text(const PreTokenizerStep& step);

// Cuts `pieces` of the text further; steps that edit it need cut_edited.
void cut(const PreTokenizerStep& step, std::string_view text, std::vector<ByteRange>& pieces);
// Any step; `pieces` follow the edits.
void cut_edited(const PreTokenizerStep& step, EditedText& text, std::vector<ByteRange>& pieces);

}  // namespace graft::data
