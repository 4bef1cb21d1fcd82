// Text to token ids and back, exactly as Hugging Face `tokenizers` does it for the same directory.
//
// What a model directory may hold:
//   tokenizer.json         byte-level BPE, SentencePiece-style BPE, Unigram, with the normalizers,
//                          pre-tokenizers, post-processors and decoders of the model families that
//                          graft knows; others are refused by name. It wins over tokenizer.model.
//   tokenizer.model        SentencePiece: BPE and Unigram, with or without a character map
//   tokenizer_config.json  add_bos_token, add_eos_token, bos/eos/unk/pad tokens, added tokens,
//                          legacy
// or a GGUF file, of which only the vocabulary is read (SentencePiece and byte-level ones).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace graft::data {

// Bytes [begin, end) of a text.
struct ByteRange {
  int64_t begin = 0;
  int64_t end = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

// What happens to the text of a special token ("</s>") that stands in the input.
enum class SpecialText {
  kParse,    // it becomes that token (what Hugging Face does)
  kLiteral,  // it is text like any other
};

struct EncodeOptions {
  bool special = false;  // add BOS/EOS as the tokenizer's own settings say
  SpecialText special_text = SpecialText::kParse;
  // With kParse: ranges in which special-token text is literal all the same, sorted and disjoint.
  // A special token that only partly lies in a range is literal too.
  std::span<const ByteRange> literal = {};
};

struct Encoding {
  std::vector<int32_t> ids;
  // Where each token comes from: byte ranges of the text, disjoint, in order, and together the
  // whole text except white space that an added token's lstrip/rstrip swallows (it belongs to that
  // token) or that the pre-tokenizer drops. Tokens that no text stands behind (BOS, EOS, the dummy
  // prefix) have an empty range. A character that the normalizer made from others belongs to the
  // token with its first byte.
  std::vector<ByteRange> spans;
  // Filled where the normalizer changed the text: what reference_offsets() gives, {-1, -1} where it
  // follows from the span.
  std::vector<ByteRange> references;
  // Places in `ids` of the special tokens whose text stood in the input, in order.
  std::vector<int32_t> specials;
  int64_t front = 0;  // tokens that EncodeOptions::special put in front of the text (BOS)
  int64_t back = 0;   // and behind it (EOS)
};

// Hugging Face's view of the same offsets: widened to whole characters, the dummy prefix lies on
// the first character of its part; so neighbours may overlap. BOS and EOS are {0, 0}.
std::vector<ByteRange> reference_offsets(std::string_view text, const Encoding& encoding);

// A token to add to a tokenizer that is already trained.
struct AddedTokenSpec {
  std::string content;
  bool special = false;                 // left out by SkipSpecial::kYes
  std::optional<bool> normalized = {};  // matched on the normalized text; default: not special
  bool lstrip = false;                  // swallows white space on its left
  bool rstrip = false;                  // and on its right
  bool single_word = false;             // only where no word character stands beside it
};

class Tokenizer {
 public:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Thread-safe. `text` must be UTF-8. Errors: kData (not UTF-8, over 256 MiB).
  Encoding encode(std::string_view text, const EncodeOptions& options = {}) const;
  // The ids alone; faster.
  std::vector<int32_t> encode_ids(std::string_view text, const EncodeOptions& options = {}) const;

  enum class SkipSpecial { kNo, kYes };
  // Always UTF-8: bytes that are none become U+FFFD. Errors: kData (id outside the vocabulary).
  std::string decode(std::span<const int32_t> ids, SkipSpecial skip = SkipSpecial::kNo) const;

  // The same tokenizer with more tokens, as `add_tokens` of `tokenizers` adds them: a token that
  // the vocabulary has keeps its id, others get the ids behind the last one. Errors: kData (empty,
  // not UTF-8, no ids left).
  std::unique_ptr<Tokenizer> with_added_tokens(std::span<const AddedTokenSpec> tokens) const;

  int64_t vocab_size() const;  // highest id + 1
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> unk_id() const;
  std::optional<int32_t> pad_id() const;
  bool adds_bos() const;  // EncodeOptions::special puts BOS in front
  bool adds_eos() const;
  // The token as it stands in the vocabulary ("▁the", "<0x0A>"). Errors: kData (no such id).
  std::string token(int32_t id) const;
  std::optional<int32_t> id(std::string_view token) const;
  bool is_special(int32_t id) const;  // an added token with the special flag, or a control piece
  // "bpe" or "unigram".
  std::string_view kind() const;
  // SHA-256 (hex) over the bytes of the vocabulary file and the settings that tokenizer_config.json
  // and its like gave; other members of those files do not change it.
  const std::string& digest() const;

 private:
  friend class StreamDecoder;
  std::unique_ptr<Parts> parts_;
};

// Text of a growing id sequence, in pieces that are always complete UTF-8. The pieces joined equal
// decode() of all ids, except that bytes which form no character are replaced one by one where
// decode() follows Hugging Face and replaces their whole run.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer,
                         Tokenizer::SkipSpecial skip = Tokenizer::SkipSpecial::kNo);
  // What `id` adds to the text; "" while a character is incomplete. Errors: kData (no such id).
  std::string next(int32_t id);
  // The rest: U+FFFD for the bytes of an incomplete character.
  std::string finish();

 private:
  std::string flush_pending();
  std::string take_complete();
  std::string strip(std::string text);
  const Tokenizer& tokenizer_;
  Tokenizer::SkipSpecial skip_;
  std::string pending_;  // bytes of an incomplete character
  bool at_start_ = true;
  int64_t strip_left_ = 0;
};

// `path`: a model directory, a tokenizer.json, a tokenizer.model or a GGUF file.
// tokenizer_config.json is read when it stands beside. Errors: kIo, kData (damaged, or a kind that
// graft does not know, by name).
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);

}  // namespace graft::data
