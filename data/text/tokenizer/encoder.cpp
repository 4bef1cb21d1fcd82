// One call of encode: added tokens, normalizer, pre-tokenizer, model.
#include "data/text/tokenizer/encoder.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// A text of this size needs about 4 GiB while it is merged; larger input is no training example.
constexpr size_t kMaxTextBytes = size_t{1} << 28;
constexpr ByteRange kFromSpan = {-1, -1};

ByteRange range_of(size_t begin, size_t end) {
  return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
}

bool overlaps(std::span<const ByteRange> ranges, int64_t begin, int64_t end) {
  const auto first =
      std::upper_bound(ranges.begin(), ranges.end(), begin,
                       [](int64_t at, const ByteRange& range) { return at < range.end; });
  return first != ranges.end() && first->begin < end;
}

class Encoder {
 public:
  Encoder(const Tokenizer::Parts& parts,
          std::string_view text,
          const EncodeOptions& options,
          Encoding& out,
          bool with_spans)
      : parts_(parts),
        text_(text),
        options_(options),
        out_(out),
        spans_(with_spans ? &out.spans : nullptr) {
    if (parts_.bpe) lease_.emplace(*parts_.bpe);
    // The usual byte-level tokenizer: one known splitter that keeps everything.
    if (parts_.bpe && parts_.bpe->is_byte_level() && parts_.pre_tokenizer.size() == 1) {
      const SplitStep* split = std::get_if<SplitStep>(&parts_.pre_tokenizer[0]);
      if (split) splitter_ = split->known;
    }
  }

  void run() {
    split(
        text_, parts_.raw_finder, [](size_t at) { return at; },
        [&](size_t begin, size_t end, int32_t added) {
          if (added >= 0) {
            emit_added(added, begin, end);
          } else if (parts_.reads_spaces) {
            encode_spaces(begin, end);
          } else {
            encode_steps(begin, end);
          }
        });
  }

 private:
  void emit(int32_t id, size_t begin, size_t end) {
    out_.ids.push_back(id);
    if (spans_) spans_->push_back(range_of(begin, end));
  }

  void emit_added(int32_t added, size_t begin, size_t end) {
    const AddedToken& token = parts_.added[static_cast<size_t>(added)];
    if (token.special) out_.specials.push_back(static_cast<int32_t>(out_.ids.size()));
    emit(token.id, begin, end);
  }

  // A token of edited text; its reference differs from what its span would give.
  void emit_edited(int32_t id, ByteRange span, ByteRange reference) {
    out_.ids.push_back(id);
    if (!spans_) return;
    spans_->push_back(span);
    out_.references.resize(spans_->size() - 1, kFromSpan);
    out_.references.push_back(reference);
  }

  bool is_literal(const AddedToken& token, size_t begin, size_t end) const {
    if (!token.special) return false;
    return options_.special_text == SpecialText::kLiteral ||
           overlaps(options_.literal, static_cast<int64_t>(begin), static_cast<int64_t>(end));
  }

  // Calls part(begin, end, index of the added token or -1) for the parts of `text`. `source_of`
  // maps its positions to positions of the original text.
  template <class Map, class Part>
  void split(std::string_view text,
             const TokenFinder& finder,
             const Map& source_of,
             const Part& part) {
    size_t done = 0;
    if (!finder.empty()) {
      for (auto match = finder.find(text, 0); match.value >= 0;
           match = finder.find(text, match.end)) {
        const AddedToken& token = parts_.added[static_cast<size_t>(match.value)];
        if (is_literal(token, source_of(match.begin), source_of(match.end))) continue;
        if (token.single_word && (ends_with_word(text.substr(0, match.begin)) ||
                                  begins_with_word(text.substr(match.end)))) {
          continue;
        }
        size_t begin = std::max(match.begin, done);
        size_t end = std::max(match.end, done);
        if (token.lstrip) {
          begin = std::max(done, done + end_without_blank(text.substr(done, begin - done)));
        }
        if (token.rstrip) end += leading_blank(text.substr(end));
        if (done < begin) part(done, begin, -1);
        part(begin, end, match.value);
        done = end;
      }
    }
    if (done < text.size()) part(done, text.size(), -1);
  }

  // ---- SentencePiece-style BPE, on the text as it is

  bool starts_with_mark(size_t begin, size_t end) const {
    return text_[begin] == ' ' || (end - begin >= kWordMark.size() &&
                                   text_.compare(begin, kWordMark.size(), kWordMark) == 0);
  }

  BpeModel::Prefix prefix_of(size_t begin, size_t end) const {
    const bool wanted =
        parts_.prefix == PrefixRule::kAlways ||
        (parts_.prefix == PrefixRule::kAlwaysUnlessMark && !starts_with_mark(begin, end)) ||
        (parts_.prefix == PrefixRule::kFirstUnlessMark && begin == 0 &&
         !starts_with_mark(begin, end));
    return wanted ? BpeModel::Prefix::kYes : BpeModel::Prefix::kNo;
  }

  void encode_marks(size_t begin, size_t end, BpeModel::Prefix prefix) {
    parts_.bpe->encode_part(text_, range_of(begin, end), prefix, **lease_, out_.ids, spans_);
  }

  void encode_spaces(size_t begin, size_t end) {
    if (parts_.normalized_finder.empty()) {
      encode_marks(begin, end, prefix_of(begin, end));
      return;
    }
    // The normalized text, and where each of its bytes comes from.
    std::string normalized;
    std::vector<size_t> source;
    if (parts_.normalizer_prepends) {
      normalized.append(kWordMark);
      source.insert(source.end(), kWordMark.size(), begin);
    }
    for (size_t at = begin; at < end; ++at) {
      if (text_[at] == ' ' && parts_.normalizer_replaces_space) {
        // The second and third byte of the mark lie behind the space.
        normalized.append(kWordMark);
        source.insert(source.end(), {at, at + 1, at + 1});
      } else {
        normalized.push_back(text_[at]);
        source.push_back(at);
      }
    }
    source.push_back(end);
    split(
        normalized, parts_.normalized_finder, [&](size_t at) { return source[at]; },
        [&](size_t from, size_t to, int32_t added) {
          if (added >= 0) {
            emit_added(added, source[from], source[to]);
          } else if (parts_.normalizer_prepends) {
            encode_marks(source[from], source[to],
                         from == 0 ? BpeModel::Prefix::kYes : BpeModel::Prefix::kNo);
          } else {
            encode_marks(source[from], source[to], prefix_of(source[from], source[to]));
          }
        });
  }

  // ---- everything else: normalizer, pre-tokenizer, model

  void encode_steps(size_t begin, size_t end) {
    if (is_unchanged(parts_.normalizer, text_, begin, end)) {
      encode_unchanged(begin, end);
      return;
    }
    EditedText edited(text_, range_of(begin, end));
    run_steps(parts_.normalizer, edited);
    if (edited.text() == text_.substr(begin, end - begin)) {
      encode_unchanged(begin, end);
      return;
    }
    split(
        edited.text(), parts_.normalized_finder,
        [&](size_t at) { return static_cast<size_t>(edited.source(at, at).begin); },
        [&](size_t from, size_t to, int32_t added) {
          if (added >= 0) {
            const AddedToken& token = parts_.added[static_cast<size_t>(added)];
            if (token.special) out_.specials.push_back(static_cast<int32_t>(out_.ids.size()));
            emit_edited(token.id, edited.source(from, to), edited.reference(from, to));
          } else {
            encode_edited(edited, from, to);
          }
        });
  }

  void encode_unchanged(size_t begin, size_t end) {
    if (parts_.normalized_finder.empty()) {
      encode_plain(begin, end);
      return;
    }
    split(
        text_.substr(begin, end - begin), parts_.normalized_finder,
        [&](size_t at) { return begin + at; },
        [&](size_t from, size_t to, int32_t added) {
          if (added >= 0) {
            emit_added(added, begin + from, begin + to);
          } else {
            encode_plain(begin + from, begin + to);
          }
        });
  }

  // A part that the normalizer leaves as it is.
  void encode_plain(size_t begin, size_t end) {
    if (splitter_) {
      parts_.bpe->encode_words(*splitter_, text_, begin, end, **lease_, out_.ids, spans_);
      return;
    }
    if (std::any_of(parts_.pre_tokenizer.begin(), parts_.pre_tokenizer.end(), edits_text)) {
      encode_edited(EditedText(text_, range_of(begin, end)), 0, end - begin);
      return;
    }
    std::vector<ByteRange> pieces = {range_of(begin, end)};
    for (const PreTokenizerStep& step : parts_.pre_tokenizer) cut(step, text_, pieces);
    for (const ByteRange& piece : pieces) {
      const auto from = static_cast<size_t>(piece.begin);
      const auto to = static_cast<size_t>(piece.end);
      if (parts_.bpe) {
        parts_.bpe->encode_word(text_, from, to, **lease_, out_.ids, spans_);
        continue;
      }
      tokens_.clear();
      parts_.unigram->encode(text_, from, to, tokens_);
      for (const auto& [id, span, reference] : tokens_) {
        if (span == reference) {
          emit(id, static_cast<size_t>(span.begin), static_cast<size_t>(span.end));
        } else {
          emit_edited(id, span, reference);
        }
      }
    }
  }

  void encode_edited(const EditedText& whole, size_t begin, size_t end) {
    EditedText edited = whole.slice(begin, end);
    std::vector<ByteRange> pieces = {range_of(0, edited.text().size())};
    for (const PreTokenizerStep& step : parts_.pre_tokenizer) cut_edited(step, edited, pieces);
    const std::string_view text = edited.text();
    std::vector<int32_t> ids;
    std::vector<ByteRange> spans;
    for (const ByteRange& piece : pieces) {
      const auto from = static_cast<size_t>(piece.begin);
      const auto to = static_cast<size_t>(piece.end);
      if (from == to) continue;
      tokens_.clear();
      if (parts_.bpe) {
        ids.clear();
        spans.clear();
        parts_.bpe->encode_word(text, from, to, **lease_, ids, &spans);
        for (size_t i = 0; i < ids.size(); ++i) tokens_.push_back({ids[i], spans[i], spans[i]});
      } else {
        parts_.unigram->encode(text, from, to, tokens_);
      }
      for (const auto& [id, span, reference] : tokens_) {
        emit_edited(id,
                    edited.source(static_cast<size_t>(span.begin), static_cast<size_t>(span.end)),
                    edited.reference(static_cast<size_t>(reference.begin),
                                     static_cast<size_t>(reference.end)));
      }
    }
  }

  const Tokenizer::Parts& parts_;
  std::string_view text_;
  const EncodeOptions& options_;
  Encoding& out_;
  std::vector<ByteRange>* spans_;
  std::optional<BpeModel::Lease> lease_;
  std::optional<SplitterKind> splitter_;
  std::vector<UnigramModel::Token> tokens_;
};

// White space at the ends of a token, in characters.
struct Blanks {
  int64_t leading = 0;
  int64_t trailing = 0;
};

// A token of the model writes a space in the byte alphabet.
Blanks blanks_of_token(std::string_view token) {
  const std::string_view blank = byte_level_text(' ');
  Blanks blanks;
  for (std::string_view rest = token; rest.starts_with(blank); rest.remove_prefix(blank.size())) {
    ++blanks.leading;
  }
  for (std::string_view rest = token; rest.ends_with(blank); rest.remove_suffix(blank.size())) {
    ++blanks.trailing;
  }
  return blanks;
}

// An added token is the text that it matched, with what lstrip and rstrip took.
Blanks blanks_of_text(std::string_view text) {
  return {static_cast<int64_t>(utf8_count(text.substr(0, leading_blank(text)))),
          static_cast<int64_t>(utf8_count(text.substr(end_without_blank(text))))};
}

// What ByteLevel(trim_offsets) makes of the offsets: tokens lose the white space at their ends.
void trim(const Tokenizer::Parts& parts, std::string_view text, Encoding& encoding) {
  encoding.references = reference_offsets(text, encoding);
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    ByteRange& offset = encoding.references[i];
    const auto part = text.substr(static_cast<size_t>(offset.begin),
                                  static_cast<size_t>(offset.end - offset.begin));
    Blanks blanks = parts.is_added(encoding.ids[i])
                        ? blanks_of_text(part)
                        : blanks_of_token(parts.vocabulary->text(encoding.ids[i]));
    const bool is_first = i == 0 || offset.begin == 0;
    if (is_first && parts.trim.add_prefix_space && blanks.leading == 1) blanks.leading = 0;
    for (; blanks.leading > 0 && offset.begin < offset.end; --blanks.leading) {
      offset.begin += static_cast<int64_t>(utf8_length(text[static_cast<size_t>(offset.begin)]));
    }
    for (; blanks.trailing > 0 && offset.end > offset.begin; --blanks.trailing) {
      --offset.end;
      while (offset.end > offset.begin &&
             is_utf8_continuation(text[static_cast<size_t>(offset.end)])) {
        --offset.end;
      }
    }
  }
}

}  // namespace

void encode_into(const Tokenizer::Parts& parts,
                 std::string_view text,
                 const EncodeOptions& options,
                 bool with_spans,
                 Encoding& out) {
  if (text.size() > kMaxTextBytes) {
    fail(ExitCode::kData,
         "text to encode must have at most " + std::to_string(kMaxTextBytes) + " bytes, got " +
             std::to_string(text.size()),
         parts.name);
  }
  if (!is_valid_utf8(text)) fail(ExitCode::kData, "text to encode is not UTF-8", parts.name);
  out.ids.reserve(text.size() / 3 + 8);
  if (with_spans) out.spans.reserve(text.size() / 3 + 8);
  Encoder(parts, text, options, out, with_spans).run();
  if (with_spans) {
    if (!out.references.empty()) out.references.resize(out.ids.size(), kFromSpan);
    if (parts.trim.enabled) trim(parts, text, out);
  }
  if (!options.special) return;
  out.front = static_cast<int64_t>(parts.front.size());
  out.back = static_cast<int64_t>(parts.back.size());
  for (int32_t& place : out.specials) place += static_cast<int32_t>(out.front);
  out.ids.insert(out.ids.begin(), parts.front.begin(), parts.front.end());
  out.ids.insert(out.ids.end(), parts.back.begin(), parts.back.end());
  if (!with_spans) return;
  out.spans.insert(out.spans.begin(), parts.front.size(), ByteRange{0, 0});
  const auto end = static_cast<int64_t>(text.size());
  out.spans.resize(out.ids.size(), {end, end});
  if (out.references.empty()) return;
  out.references.insert(out.references.begin(), parts.front.size(), kFromSpan);
  out.references.resize(out.ids.size(), kFromSpan);
}

std::vector<ByteRange> reference_offsets(std::string_view text, const Encoding& encoding) {
  std::vector<ByteRange> offsets = encoding.spans;
  const auto size = static_cast<int64_t>(text.size());
  const auto is_inside = [&](int64_t at) {
    return at > 0 && at < size && is_utf8_continuation(text[static_cast<size_t>(at)]);
  };
  for (size_t i = 0; i < offsets.size(); ++i) {
    ByteRange& range = offsets[i];
    const auto index = static_cast<int64_t>(i);
    if (index < encoding.front || index + encoding.back >= static_cast<int64_t>(offsets.size())) {
      range = {0, 0};
      continue;
    }
    if (!encoding.references.empty() && !(encoding.references[i] == kFromSpan)) {
      range = encoding.references[i];
      continue;
    }
    if (range.begin == range.end && range.end < size) ++range.end;
    while (is_inside(range.begin)) --range.begin;
    while (is_inside(range.end)) ++range.end;
  }
  return offsets;
}

}  // namespace graft::data
