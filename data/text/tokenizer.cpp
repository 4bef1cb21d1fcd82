#include "data/text/tokenizer.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "data/text/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// A text of this size needs about 4 GiB while it is merged; larger input is no training example.
constexpr size_t kMaxTextBytes = size_t{1} << 28;

bool overlaps(std::span<const ByteRange> ranges, int64_t begin, int64_t end) {
  const auto first =
      std::upper_bound(ranges.begin(), ranges.end(), begin,
                       [](int64_t at, const ByteRange& range) { return at < range.end; });
  return first != ranges.end() && first->begin < end;
}

// One call of encode.
class Encoder {
 public:
  Encoder(const Tokenizer::Parts& parts, std::string_view text, const EncodeOptions& options)
      : parts_(parts), text_(text), options_(options) {
    if (parts_.bpe) lease_.emplace(*parts_.bpe);
  }

  void run(std::vector<int32_t>& ids, std::vector<ByteRange>* spans) {
    ids_ = &ids;
    spans_ = spans;
    split(text_, 0, parts_.raw_finder, [&](size_t begin, size_t end, int32_t added) {
      if (added >= 0) {
        emit(parts_.added[static_cast<size_t>(added)].id, begin, end);
      } else {
        encode_between(begin, end);
      }
    });
  }

 private:
  void emit(int32_t id, size_t begin, size_t end) {
    ids_->push_back(id);
    if (spans_) spans_->push_back({static_cast<int64_t>(begin), static_cast<int64_t>(end)});
  }

  bool is_literal(const AddedToken& token, size_t begin, size_t end) const {
    if (!token.special) return false;
    return options_.special_text == SpecialText::kLiteral ||
           overlaps(options_.literal, static_cast<int64_t>(begin), static_cast<int64_t>(end));
  }

  // Calls part(begin, end, index of the added token or -1) for the parts of text[from, size).
  // `source_of` maps positions of `text` to positions of the original text.
  template <class Part>
  void split(std::string_view text, size_t from, const TokenFinder& finder, const Part& part) {
    split_mapped(
        text, from, finder, [](size_t at) { return at; }, part);
  }

  template <class Map, class Part>
  void split_mapped(std::string_view text,
                    size_t from,
                    const TokenFinder& finder,
                    const Map& source_of,
                    const Part& part) {
    size_t done = from;
    if (!finder.empty()) {
      for (auto match = finder.find(text, from); match.value >= 0;
           match = finder.find(text, match.end)) {
        const AddedToken& token = parts_.added[static_cast<size_t>(match.value)];
        if (is_literal(token, source_of(match.begin), source_of(match.end))) continue;
        size_t begin = std::max(match.begin, done);
        size_t end = std::max(match.end, done);
        if (token.lstrip) {
          begin = std::max(done, done + end_without_space(text.substr(done, begin - done)));
        }
        if (token.rstrip) end += leading_space(text.substr(end));
        if (done < begin) part(done, begin, -1);
        part(begin, end, match.value);
        done = end;
      }
    }
    if (done < text.size()) part(done, text.size(), -1);
  }

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

  void encode_model(size_t begin, size_t end, BpeModel::Prefix prefix) {
    const ByteRange part = {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
    if (parts_.bpe) {
      parts_.bpe->encode(text_, part, prefix, **lease_, *ids_, spans_);
    } else {
      parts_.library->encode(text_, part, *ids_, spans_);
    }
  }

  // A part without raw added tokens: the normalizer, then the added tokens that are matched after
  // it, then the model.
  void encode_between(size_t begin, size_t end) {
    if (parts_.normalized_finder.empty()) {
      encode_model(begin, end, prefix_of(begin, end));
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
    const size_t prefix_bytes = parts_.normalizer_prepends ? kWordMark.size() : 0;
    split_mapped(
        normalized, 0, parts_.normalized_finder, [&](size_t at) { return source[at]; },
        [&](size_t from, size_t to, int32_t added) {
          if (added >= 0) {
            emit(parts_.added[static_cast<size_t>(added)].id, source[from], source[to]);
          } else if (prefix_bytes > 0) {
            encode_model(source[from], source[to],
                         from == 0 ? BpeModel::Prefix::kYes : BpeModel::Prefix::kNo);
          } else {
            encode_model(source[from], source[to], prefix_of(source[from], source[to]));
          }
        });
  }

  const Tokenizer::Parts& parts_;
  std::string_view text_;
  const EncodeOptions& options_;
  std::optional<BpeModel::Lease> lease_;
  std::vector<int32_t>* ids_ = nullptr;
  std::vector<ByteRange>* spans_ = nullptr;
};

void encode_into(const Tokenizer::Parts& parts,
                 std::string_view text,
                 const EncodeOptions& options,
                 std::vector<int32_t>& ids,
                 std::vector<ByteRange>* spans) {
  if (text.size() > kMaxTextBytes) {
    fail(ExitCode::kData,
         "text to encode must have at most " + std::to_string(kMaxTextBytes) + " bytes, got " +
             std::to_string(text.size()),
         parts.name);
  }
  if (!is_valid_utf8(text)) fail(ExitCode::kData, "text to encode is not UTF-8", parts.name);
  ids.reserve(text.size() / 4 + 4);
  if (spans) spans->reserve(text.size() / 4 + 4);
  if (options.special) ids.insert(ids.end(), parts.front.begin(), parts.front.end());
  if (spans) spans->resize(ids.size(), {0, 0});
  Encoder(parts, text, options).run(ids, spans);
  if (options.special) ids.insert(ids.end(), parts.back.begin(), parts.back.end());
  const auto end = static_cast<int64_t>(text.size());
  if (spans) spans->resize(ids.size(), {end, end});
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// The token's text as the decoder's per-token steps leave it.
std::string decoded_token(const Decoding& decoding, const std::string& token, bool is_first) {
  std::string text = token;
  for (const auto& [from, to] : decoding.replace) replace_all(text, from, to);
  if (decoding.metaspace) replace_all(text, kWordMark, is_first ? "" : " ");
  return text;
}

std::string decoded_bytes(const std::string& bytes) {
  if (is_valid_utf8(bytes)) return bytes;
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) text += kReplacement;
  return text;
}

void strip_start(std::string& text, const Decoding& decoding) {
  size_t at = 0;
  for (int64_t i = 0; i < decoding.strip_count; ++i) {
    if (text.compare(at, decoding.strip.size(), decoding.strip) != 0) break;
    at += decoding.strip.size();
  }
  text.erase(0, at);
}

}  // namespace

void Tokenizer::Parts::add_token(const std::string& token, int64_t id) {
  if (id < 0 || id > kMaxTokenId) {
    fail(ExitCode::kData,
         "token ids must be in 0.." + std::to_string(kMaxTokenId) + ", got " + std::to_string(id) +
             " for \"" + token + "\"",
         name);
  }
  const auto index = static_cast<size_t>(id);
  if (index >= tokens.size()) {
    tokens.resize(index + 1);
    present.resize(index + 1);
    special.resize(index + 1);
    byte_values.resize(index + 1, -1);
  }
  if (present[index] && tokens[index] != token) {
    fail(ExitCode::kData,
         "token id " + std::to_string(id) + " is given to both \"" + tokens[index] + "\" and \"" +
             token + "\"",
         name);
  }
  const auto [known, is_new] = ids.try_emplace(token, static_cast<int32_t>(id));
  if (!is_new && known->second != id) {
    fail(ExitCode::kData,
         "token \"" + token + "\" has both id " + std::to_string(known->second) + " and id " +
             std::to_string(id),
         name);
  }
  tokens[index] = token;
  present[index] = true;
  if (token.size() == 6 && token.starts_with("<0x") && token[5] == '>') {
    const auto digit = [](char c) {
      return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    if (digit(token[3]) >= 0 && digit(token[4]) >= 0) {
      byte_values[index] = digit(token[3]) * 16 + digit(token[4]);
    }
  }
}

void Tokenizer::Parts::add_added_token(AddedToken token) {
  if (token.content.empty()) fail(ExitCode::kData, "an added token is empty", name);
  add_token(token.content, token.id);
  if (token.special) special[static_cast<size_t>(token.id)] = true;
  const auto same = std::find_if(added.begin(), added.end(),
                                 [&](const AddedToken& other) { return other.id == token.id; });
  if (same != added.end()) {
    *same = std::move(token);
  } else {
    added.push_back(std::move(token));
  }
}

void Tokenizer::Parts::finish() {
  for (size_t i = 0; i < added.size(); ++i) {
    const auto value = static_cast<int32_t>(i);
    if (!added[i].normalized) {
      raw_finder.add(added[i].content, value);
      continue;
    }
    std::string pattern = added[i].content;
    if (normalizer_prepends) pattern.insert(0, kWordMark);
    if (normalizer_replaces_space) replace_all(pattern, " ", kWordMark);
    normalized_finder.add(pattern, value);
    normalized_texts[added[i].id] = pattern;
  }
}

const std::string& Tokenizer::Parts::decoder_text(int32_t id) const {
  const auto normalized = normalized_texts.find(id);
  return normalized == normalized_texts.end() ? tokens[static_cast<size_t>(id)]
                                              : normalized->second;
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  Encoding encoding;
  encode_into(*parts_, text, options, encoding.ids, &encoding.spans);
  if (options.special) {
    encoding.front = static_cast<int64_t>(parts_->front.size());
    encoding.back = static_cast<int64_t>(parts_->back.size());
  }
  return encoding;
}

std::vector<int32_t> Tokenizer::encode_ids(std::string_view text,
                                           const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  encode_into(*parts_, text, options, ids, nullptr);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, SkipSpecial skip) const {
  const Decoding& decoding = parts_->decoding;
  std::string text;
  std::string bytes;  // of the current run of byte tokens
  bool is_first = true;
  for (const int32_t id : ids) {
    token(id);  // refuses ids that do not exist
    if (skip == SkipSpecial::kYes && is_special(id)) continue;
    const int32_t byte = decoding.byte_fallback ? parts_->byte_values[static_cast<size_t>(id)] : -1;
    if (!decoding.fuse && !is_first) text += ' ';
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      text += decoded_bytes(bytes);
      bytes.clear();
      text += decoded_token(decoding, parts_->decoder_text(id), is_first);
    }
    is_first = false;
  }
  text += decoded_bytes(bytes);
  strip_start(text, decoding);
  return text;
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(parts_->tokens.size());
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return parts_->bos;
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return parts_->eos;
}
std::optional<int32_t> Tokenizer::unk_id() const {
  return parts_->unk;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return parts_->pad;
}

bool Tokenizer::adds_bos() const {
  return parts_->bos && std::count(parts_->front.begin(), parts_->front.end(), *parts_->bos) > 0;
}

bool Tokenizer::adds_eos() const {
  return parts_->eos && std::count(parts_->back.begin(), parts_->back.end(), *parts_->eos) > 0;
}

const std::string& Tokenizer::token(int32_t id) const {
  if (id < 0 || id >= vocab_size() || !parts_->present[static_cast<size_t>(id)]) {
    fail(ExitCode::kData,
         "the vocabulary has ids 0.." + std::to_string(vocab_size() - 1) + ", got " +
             std::to_string(id),
         parts_->name, "use the tokenizer that made these ids");
  }
  return parts_->tokens[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::id(std::string_view token) const {
  const auto found = parts_->ids.find(std::string(token));
  if (found == parts_->ids.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[static_cast<size_t>(id)];
}

std::string_view Tokenizer::kind() const {
  return parts_->bpe ? "bpe" : "sentencepiece";
}
const std::string& Tokenizer::digest() const {
  return parts_->digest;
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
    if (range.begin == range.end && range.end < size) ++range.end;
    while (is_inside(range.begin)) --range.begin;
    while (is_inside(range.end)) ++range.end;
  }
  return offsets;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, Tokenizer::SkipSpecial skip)
    : tokenizer_(tokenizer), skip_(skip), strip_left_(tokenizer.parts_->decoding.strip_count) {}

std::string StreamDecoder::next(int32_t id) {
  const Tokenizer::Parts& parts = *tokenizer_.parts_;
  tokenizer_.token(id);  // refuses ids that do not exist
  if (skip_ == Tokenizer::SkipSpecial::kYes && tokenizer_.is_special(id)) return "";
  const bool is_first = at_start_;
  at_start_ = false;
  std::string text;
  if (!parts.decoding.fuse && !is_first) text += ' ';
  const int32_t byte =
      parts.decoding.byte_fallback ? parts.byte_values[static_cast<size_t>(id)] : -1;
  if (byte >= 0) {
    pending_.push_back(static_cast<char>(byte));
    text += take_complete();
  } else {
    text += flush_pending();
    text += decoded_token(parts.decoding, parts.decoder_text(id), is_first);
  }
  return strip(std::move(text));
}

std::string StreamDecoder::finish() {
  return strip(flush_pending());
}

std::string StreamDecoder::flush_pending() {
  std::string text;
  for (size_t i = 0; i < pending_.size(); ++i) text += kReplacement;
  pending_.clear();
  return text;
}

// The complete characters at the front of the pending bytes; bytes that can begin none become
// U+FFFD. What may still become a character stays.
std::string StreamDecoder::take_complete() {
  std::string text;
  while (!pending_.empty()) {
    const auto lead = static_cast<unsigned char>(pending_[0]);
    const bool can_lead = lead < 0x80 || (lead >= 0xC2 && lead <= 0xF4);
    const size_t length = can_lead ? utf8_length(pending_[0]) : 1;
    size_t have = 1;
    while (have < std::min(length, pending_.size()) && is_utf8_continuation(pending_[have])) ++have;
    if (can_lead && have == pending_.size() && have < length) break;  // may still be completed
    if (can_lead && have == length && is_valid_utf8(std::string_view(pending_).substr(0, length))) {
      text += pending_.substr(0, length);
      pending_.erase(0, length);
    } else {
      text += kReplacement;
      pending_.erase(0, 1);
    }
  }
  return text;
}

std::string StreamDecoder::strip(std::string text) {
  const std::string& unwanted = tokenizer_.parts_->decoding.strip;
  while (strip_left_ > 0 && !text.empty()) {
    if (text.compare(0, unwanted.size(), unwanted) != 0) {
      strip_left_ = 0;
      break;
    }
    text.erase(0, unwanted.size());
    --strip_left_;
  }
  return text;
}

}  // namespace graft::data
