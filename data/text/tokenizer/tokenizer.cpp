#include "data/text/tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "data/text/tokenizer/encoder.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// All added tokens together: real files stay below 200 kB, and each byte may cost a node of 100.
constexpr size_t kMaxAddedBytes = size_t{1} << 20;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// The token's text as the decoder's per-token steps leave it.
std::string decoded_token(const Decoding& decoding, std::string_view token, bool is_first) {
  std::string text(token);
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

// 0..255 for a byte token ("<0x0A>"), else -1.
int byte_value(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  const int high = digit(token[3]);
  const int low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// The bytes of a token in the byte alphabet; one with any other character stands for itself.
void append_byte_level(std::string& bytes, std::string_view token) {
  const size_t start = bytes.size();
  for (size_t at = 0; at < token.size(); at += utf8_length(token[at])) {
    const int value = byte_level_value(utf8_at(token, at));
    if (value < 0) {
      bytes.resize(start);
      bytes += token;
      return;
    }
    bytes.push_back(static_cast<char>(value));
  }
}

enum class Lossy { kAll, kUntilIncomplete };

// Moves the characters at the front of `bytes` to `text`. What forms no character becomes U+FFFD,
// one for each longest beginning of a character (as Rust and the WHATWG do it); a beginning at the
// end stays with kUntilIncomplete, since it may still be completed.
void take_lossy(std::string& bytes, std::string& text, Lossy lossy) {
  size_t at = 0;
  while (at < bytes.size()) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xC2 && lead < 0xE0 ? 2
                          : lead >= 0xE0 && lead < 0xF0 ? 3
                          : lead >= 0xF0 && lead < 0xF5 ? 4
                                                        : 0;
    size_t have = 1;
    while (have < length && at + have < bytes.size()) {
      const auto next = static_cast<unsigned char>(bytes[at + have]);
      const unsigned lowest = have > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
      const unsigned highest = have > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
      if (next < lowest || next > highest) break;
      ++have;
    }
    if (length > 0 && have == length) {
      text.append(bytes, at, length);
    } else if (length > 0 && at + have == bytes.size() && lossy == Lossy::kUntilIncomplete) {
      break;
    } else {
      text += kReplacement;
    }
    at += have;
  }
  bytes.erase(0, at);
}

void strip_start(std::string& text, const Decoding& decoding) {
  size_t at = 0;
  for (int64_t i = 0; i < decoding.strip_count; ++i) {
    if (text.compare(at, decoding.strip.size(), decoding.strip) != 0) break;
    at += decoding.strip.size();
  }
  text.erase(0, at);
}

void check_id(const Tokenizer::Parts& parts, int32_t id) {
  if (parts.vocabulary->has(id)) return;
  fail(ExitCode::kData,
       "the vocabulary has ids 0.." + std::to_string(parts.vocabulary->size() - 1) + ", got " +
           std::to_string(id),
       parts.name, "use the tokenizer that made these ids");
}

}  // namespace

void Tokenizer::Parts::add_added_token(AddedToken token) {
  if (token.content.empty()) fail(ExitCode::kData, "an added token is empty", name);
  vocabulary->add(token.content, token.id, name);
  special.resize(static_cast<size_t>(vocabulary->size()));
  special[static_cast<size_t>(token.id)] = token.special;
  const auto [place, is_new] = added_by_id_.try_emplace(token.id, added.size());
  if (is_new) {
    added.push_back(std::move(token));
  } else {
    added[place->second] = std::move(token);
  }
}

void Tokenizer::Parts::finish() {
  special.resize(static_cast<size_t>(vocabulary->size()));
  size_t bytes = 0;
  for (const AddedToken& token : added) bytes += token.content.size();
  if (bytes > kMaxAddedBytes) {
    fail(ExitCode::kData,
         "added tokens must have at most " + std::to_string(kMaxAddedBytes) +
             " bytes together, got " + std::to_string(bytes),
         name);
  }
  raw_finder = {};
  normalized_finder = {};
  normalized_texts.clear();
  for (size_t i = 0; i < added.size(); ++i) {
    const auto value = static_cast<int32_t>(i);
    const std::string& content = added[i].content;
    if (!added[i].normalized) {
      raw_finder.add(content, value);
      continue;
    }
    EditedText edited(content, {0, static_cast<int64_t>(content.size())});
    run_steps(normalizer, edited);
    normalized_finder.add(edited.text(), value);
    if (edited.text() != content) normalized_texts[added[i].id] = edited.text();
  }
}

std::string_view Tokenizer::Parts::decoder_text(int32_t id) const {
  const auto normalized = normalized_texts.find(id);
  return normalized == normalized_texts.end() ? vocabulary->text(id)
                                              : std::string_view(normalized->second);
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  Encoding encoding;
  encode_into(*parts_, text, options, true, encoding);
  return encoding;
}

std::vector<int32_t> Tokenizer::encode_ids(std::string_view text,
                                           const EncodeOptions& options) const {
  Encoding encoding;
  encode_into(*parts_, text, options, false, encoding);
  return std::move(encoding.ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, SkipSpecial skip) const {
  const Decoding& decoding = parts_->decoding;
  std::string text;
  std::string bytes;  // of the current run of byte tokens
  bool is_first = true;
  for (const int32_t id : ids) {
    check_id(*parts_, id);
    if (skip == SkipSpecial::kYes && is_special(id)) continue;
    const std::string_view token = parts_->decoder_text(id);
    if (decoding.byte_level) {
      append_byte_level(bytes, token);
      continue;
    }
    const int byte = decoding.byte_fallback ? byte_value(token) : -1;
    if (!decoding.fuse && !is_first) text += ' ';
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      text += decoded_bytes(bytes);
      bytes.clear();
      text += decoded_token(decoding, token, is_first);
    }
    is_first = false;
  }
  if (decoding.byte_level) {
    take_lossy(bytes, text, Lossy::kAll);
    return text;
  }
  text += decoded_bytes(bytes);
  strip_start(text, decoding);
  return text;
}

std::unique_ptr<Tokenizer> Tokenizer::with_added_tokens(
    std::span<const AddedTokenSpec> tokens) const {
  auto parts = std::make_unique<Parts>(*parts_);
  parts->vocabulary = std::make_shared<Vocabulary>(*parts_->vocabulary);
  for (const AddedTokenSpec& token : tokens) {
    const int32_t known = parts->vocabulary->find(token.content);
    const int64_t id = known >= 0 ? known : parts->vocabulary->size();
    if (id > kMaxTokenId || !is_valid_utf8(token.content)) {
      fail(ExitCode::kData,
           "token \"" + token.content + "\" cannot be added: " +
               (id > kMaxTokenId ? "there are no ids left" : "it is not UTF-8"),
           parts->name);
    }
    parts->add_added_token({.id = static_cast<int32_t>(id),
                            .content = token.content,
                            .special = token.special,
                            .normalized = token.normalized.value_or(!token.special),
                            .lstrip = token.lstrip,
                            .rstrip = token.rstrip,
                            .single_word = token.single_word});
  }
  parts->finish();
  parts->digest = digest_of(parts_->digest, *parts);
  return std::make_unique<Tokenizer>(std::move(parts));
}

int64_t Tokenizer::vocab_size() const {
  return parts_->vocabulary->size();
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

std::string Tokenizer::token(int32_t id) const {
  check_id(*parts_, id);
  return std::string(parts_->vocabulary->text(id));
}

std::optional<int32_t> Tokenizer::id(std::string_view token) const {
  const int32_t found = parts_->vocabulary->find(token);
  return found < 0 ? std::nullopt : std::optional<int32_t>(found);
}

bool Tokenizer::is_special(int32_t id) const {
  const std::vector<bool>& special = parts_->special;  // as long as the vocabulary
  return id >= 0 && static_cast<size_t>(id) < special.size() && special[static_cast<size_t>(id)];
}

std::string_view Tokenizer::kind() const {
  return parts_->bpe ? "bpe" : "unigram";
}
const std::string& Tokenizer::digest() const {
  return parts_->digest;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, Tokenizer::SkipSpecial skip)
    : tokenizer_(tokenizer), skip_(skip), strip_left_(tokenizer.parts_->decoding.strip_count) {}

std::string StreamDecoder::next(int32_t id) {
  const Tokenizer::Parts& parts = *tokenizer_.parts_;
  check_id(parts, id);
  if (skip_ == Tokenizer::SkipSpecial::kYes && tokenizer_.is_special(id)) return "";
  const std::string_view token = parts.decoder_text(id);
  std::string text;
  if (parts.decoding.byte_level) {
    append_byte_level(pending_, token);
    take_lossy(pending_, text, Lossy::kUntilIncomplete);
    return text;
  }
  const bool is_first = at_start_;
  at_start_ = false;
  if (!parts.decoding.fuse && !is_first) text += ' ';
  const int byte = parts.decoding.byte_fallback ? byte_value(token) : -1;
  if (byte >= 0) {
    pending_.push_back(static_cast<char>(byte));
    text += take_complete();
  } else {
    text += flush_pending();
    text += decoded_token(parts.decoding, token, is_first);
  }
  return strip(std::move(text));
}

std::string StreamDecoder::finish() {
  std::string text;
  if (tokenizer_.parts_->decoding.byte_level) {
    take_lossy(pending_, text, Lossy::kAll);
    return text;
  }
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
