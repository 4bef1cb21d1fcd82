#include "data/text/tokenizer/pre_tokenizer.h"

#include "data/text/tokenizer/unicode.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

struct Part {
  ByteRange range;
  bool is_match;
};

// The matches of a step in one piece, and what lies between them.
void find_parts(const std::vector<ByteRange>& matches, ByteRange piece, std::vector<Part>& parts) {
  parts.clear();
  int64_t done = piece.begin;
  for (const ByteRange& match : matches) {
    if (done < match.begin) parts.push_back({{done, match.begin}, false});
    parts.push_back({match, true});
    done = match.end;
  }
  if (done < piece.end) parts.push_back({{done, piece.end}, false});
}

void add_pieces(const std::vector<Part>& parts,
                SplitBehavior behavior,
                std::vector<ByteRange>& out) {
  const size_t first = out.size();
  bool was_match = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [range, is_match] = parts[i];
    const bool can_join = out.size() > first;
    switch (behavior) {
      case SplitBehavior::kIsolated:
        out.push_back(range);
        break;
      case SplitBehavior::kRemoved:
        if (!is_match) out.push_back(range);
        break;
      case SplitBehavior::kMergedWithPrevious:
        if (is_match && !was_match && can_join) {
          out.back().end = range.end;
        } else {
          out.push_back(range);
        }
        break;
      case SplitBehavior::kMergedWithNext:
        if (!is_match && was_match && can_join) {
          out.back().end = range.end;
        } else {
          out.push_back(range);
        }
        break;
      case SplitBehavior::kContiguous:
        if (is_match == was_match && can_join) {
          out.back().end = range.end;
        } else {
          out.push_back(range);
        }
        break;
    }
    was_match = is_match;
  }
}

void find_flagged(std::string_view text,
                  ByteRange piece,
                  uint8_t flag,
                  std::vector<ByteRange>& matches) {
  for (auto at = static_cast<size_t>(piece.begin); at < static_cast<size_t>(piece.end);) {
    const size_t length = utf8_length(text[at]);
    if ((character_flags(utf8_at(text, at)) & flag) != 0) {
      matches.push_back({static_cast<int64_t>(at), static_cast<int64_t>(at + length)});
    }
    at += length;
  }
}

void cut_known(SplitterKind kind,
               std::string_view text,
               ByteRange piece,
               std::vector<ByteRange>& out) {
  const auto add = [&](size_t begin, size_t end) {
    out.push_back({static_cast<int64_t>(begin), static_cast<int64_t>(end)});
  };
  const auto begin = static_cast<size_t>(piece.begin);
  const auto end = static_cast<size_t>(piece.end);
  switch (kind) {
    case SplitterKind::kGpt2:
      split_words<SplitterKind::kGpt2>(text, begin, end, add);
      break;
    case SplitterKind::kLlama3:
      split_words<SplitterKind::kLlama3>(text, begin, end, add);
      break;
    case SplitterKind::kQwen2:
      split_words<SplitterKind::kQwen2>(text, begin, end, add);
      break;
  }
}

class Cutter {
 public:
  Cutter(std::string_view text, std::vector<ByteRange>& pieces) : text_(text), pieces_(pieces) {}

  void operator()(const SplitStep& step) {
    each([&](ByteRange piece) {
      if (step.known) {
        cut_known(*step.known, text_, piece, out_);
        return;
      }
      const auto begin = static_cast<size_t>(piece.begin);
      const auto end = static_cast<size_t>(piece.end);
      if (step.pattern) {
        step.pattern->find_all(text_, begin, end, matches_);
      } else {
        find_text(text_, step.text, begin, end, matches_);
      }
      find_parts(matches_, piece, parts_);
      if (step.invert) {
        for (Part& part : parts_) part.is_match = !part.is_match;
      }
      add_pieces(parts_, step.behavior, out_);
    });
  }
  void operator()(const DigitsStep& step) {
    cut_flagged(kNumericFlag,
                step.individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  void operator()(const WhitespaceSplitStep&) { cut_flagged(kSpaceFlag, SplitBehavior::kRemoved); }
  void operator()(const PrefixSpaceStep&) {}
  void operator()(const MetaspaceStep& step) {
    if (!step.split) return;
    each([&](ByteRange piece) {
      find_text(text_, kWordMark, static_cast<size_t>(piece.begin), static_cast<size_t>(piece.end),
                matches_);
      find_parts(matches_, piece, parts_);
      add_pieces(parts_, SplitBehavior::kMergedWithNext, out_);
    });
  }

 private:
  template <class Cut>
  void each(const Cut& cut) {
    for (const ByteRange& piece : pieces_) {
      if (piece.begin == piece.end) continue;
      matches_.clear();
      cut(piece);
    }
    pieces_.swap(out_);
  }
  void cut_flagged(uint8_t flag, SplitBehavior behavior) {
    each([&](ByteRange piece) {
      find_flagged(text_, piece, flag, matches_);
      find_parts(matches_, piece, parts_);
      add_pieces(parts_, behavior, out_);
    });
  }

  std::string_view text_;
  std::vector<ByteRange>& pieces_;
  std::vector<ByteRange> out_;
  std::vector<ByteRange> matches_;
  std::vector<Part> parts_;
};

// Makes the edits of a step; the pieces move with them.
class Editor {
 public:
  Editor(EditedText& text, std::vector<ByteRange>& pieces) : text_(text), pieces_(pieces) {}

  void operator()(const PrefixSpaceStep&) {
    run([&](std::string_view piece, ByteRange range) {
      if (!piece.starts_with(' ')) insert(range.begin, " ");
    });
  }
  void operator()(const MetaspaceStep& step) {
    run([&](std::string_view piece, ByteRange range) {
      const bool wanted =
          step.scheme == PrependScheme::kAlways ||
          (step.scheme == PrependScheme::kFirst &&
           text_.reference(static_cast<size_t>(range.begin), static_cast<size_t>(range.end))
                   .begin == 0);
      if (wanted && !piece.starts_with(' ') && !piece.starts_with(kWordMark)) {
        insert(range.begin, kWordMark);
      }
      for (size_t at = piece.find(' '); at != std::string_view::npos;
           at = piece.find(' ', at + 1)) {
        const int64_t begin = range.begin + static_cast<int64_t>(at);
        edits_.push_back({{begin, begin + 1}, kWordMark});
        grown_ += static_cast<int64_t>(kWordMark.size()) - 1;
      }
    });
  }
  template <class Other>
  void operator()(const Other&) {}

 private:
  void insert(int64_t at, std::string_view content) {
    edits_.push_back({{at, at}, content});
    grown_ += static_cast<int64_t>(content.size());
  }
  template <class Edit>
  void run(const Edit& edit) {
    const std::string_view all = text_.text();
    for (ByteRange& piece : pieces_) {
      if (piece.begin == piece.end) continue;
      const ByteRange old = piece;
      piece.begin += grown_;
      edit(all.substr(static_cast<size_t>(old.begin), static_cast<size_t>(old.end - old.begin)),
           old);
      piece.end += grown_;
    }
    if (!edits_.empty()) text_.edit(edits_);
  }

  EditedText& text_;
  std::vector<ByteRange>& pieces_;
  std::vector<EditedText::Edit> edits_;
  int64_t grown_ = 0;
};

}  // namespace

bool edits_text(const PreTokenizerStep& step) {
  return std::holds_alternative<PrefixSpaceStep>(step) ||
         std::holds_alternative<MetaspaceStep>(step);
}

void cut(const PreTokenizerStep& step, std::string_view text, std::vector<ByteRange>& pieces) {
  std::visit(Cutter(text, pieces), step);
}

void cut_edited(const PreTokenizerStep& step, EditedText& text, std::vector<ByteRange>& pieces) {
  std::visit(Editor(text, pieces), step);
  cut(step, text.text(), pieces);
}

}  // namespace graft::data
