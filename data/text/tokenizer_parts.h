// What a tokenizer is made of, whichever file it came from.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/json.h"
#include "data/text/added_tokens.h"
#include "data/text/bpe.h"
#include "data/text/tokenizer.h"

namespace graft::data {

// Encodes through libsentencepiece: Unigram models and models with a character map.
class SentencePieceLibrary {
 public:
  // `model`: the bytes of a tokenizer.model. Errors: kData.
  SentencePieceLibrary(const std::string& model, const std::string& name);
  ~SentencePieceLibrary();
  SentencePieceLibrary(const SentencePieceLibrary&) = delete;
  SentencePieceLibrary& operator=(const SentencePieceLibrary&) = delete;
  // Appends the tokens of text[begin, end) with contiguous spans.
  void encode(std::string_view text,
              ByteRange part,
              std::vector<int32_t>& ids,
              std::vector<ByteRange>* spans) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// When the dummy prefix U+2581 stands in front of a part of the text.
enum class PrefixRule {
  kNever,
  kAlways,            // Prepend normalizer: every part between added tokens
  kAlwaysUnlessMark,  // Metaspace "always": unless the part starts with a space or U+2581
  kFirstUnlessMark,   // Metaspace "first": the same, and only at the start of the text
};

struct Decoding {
  std::vector<std::pair<std::string, std::string>> replace;  // per token
  bool byte_fallback = false;
  bool metaspace = false;  // the first token loses its marks, the others' become spaces
  bool fuse = true;        // false: tokens are joined by " " (a file without decoder)
  std::string strip;       // this character is removed from the start, strip_count times
  int64_t strip_count = 0;
};

struct Tokenizer::Parts {
  std::string name;  // for error messages
  std::string digest;
  std::unique_ptr<BpeModel> bpe;  // one of the two
  std::unique_ptr<SentencePieceLibrary> library;
  PrefixRule prefix = PrefixRule::kNever;
  // The normalizer, seen by added tokens with `normalized`: U+2581 in front, spaces to U+2581.
  bool normalizer_prepends = false;
  bool normalizer_replaces_space = false;

  std::vector<std::string> tokens;   // by id; empty = no such id
  std::vector<bool> present;         // by id
  std::vector<bool> special;         // by id
  std::vector<int32_t> byte_values;  // by id: 0..255 for byte tokens, else -1
  std::unordered_map<std::string, int32_t> ids;
  std::vector<AddedToken> added;
  // Added tokens with `normalized` are decoded from their normalized text ("▁graft▁word").
  std::unordered_map<int32_t, std::string> normalized_texts;
  TokenFinder raw_finder;  // values index `added`
  TokenFinder normalized_finder;

  Decoding decoding;
  std::vector<int32_t> front;  // what EncodeOptions::special adds
  std::vector<int32_t> back;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::optional<int32_t> unk;
  std::optional<int32_t> pad;

  // Adds a vocabulary entry. Errors: kData (id out of range or taken).
  void add_token(const std::string& token, int64_t id);
  // Adds an added token and its vocabulary entry. Errors: kData.
  void add_added_token(AddedToken token);
  // The token's text as the decoder sees it.
  const std::string& decoder_text(int32_t id) const;
  // Builds the finders; call after the last token.
  void finish();
};

// tokenizer.json. Errors: kData.
void read_tokenizer_json(const std::string& text, const std::string& name, Tokenizer::Parts& parts);

// tokenizer.model. Legacy: the dummy prefix comes again after each added token (`legacy` of
// tokenizer_config.json, true when absent). Errors: kData.
enum class Legacy { kNo, kYes };
void read_sentencepiece_model(const std::string& bytes,
                              const std::string& name,
                              Legacy legacy,
                              Tokenizer::Parts& parts);

}  // namespace graft::data
