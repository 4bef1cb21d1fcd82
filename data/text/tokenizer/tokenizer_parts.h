// What a tokenizer is made of, whichever file it came from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/json.h"
#include "data/text/tokenizer.h"
#include "data/text/tokenizer/added_tokens.h"
#include "data/text/tokenizer/bpe.h"
#include "data/text/tokenizer/normalizer.h"
#include "data/text/tokenizer/pre_tokenizer.h"
#include "data/text/tokenizer/unigram.h"
#include "data/text/tokenizer/vocabulary.h"

namespace graft::data {

// When the dummy prefix U+2581 stands in front of a part of the text.
enum class PrefixRule {
  kNever,
  kAlways,            // Prepend normalizer: every part between added tokens
  kAlwaysUnlessMark,  // Metaspace "always": unless the part starts with a space or U+2581
  kFirstUnlessMark,   // Metaspace "first": the same, and only at the start of the text
};

struct Decoding {
  std::vector<std::pair<std::string, std::string>> replace;  // per token
  bool byte_level = false;  // tokens are in the byte alphabet; nothing else happens
  bool byte_fallback = false;
  bool metaspace = false;  // the first token loses its marks, the others' become spaces
  bool fuse = true;        // false: tokens are joined by " " (a file without decoder)
  std::string strip;       // this character is removed from the start, strip_count times
  int64_t strip_count = 0;
};

// The post-processor ByteLevel(trim_offsets): reference offsets without white space.
struct TrimOffsets {
  bool enabled = false;
  bool add_prefix_space = true;
};

struct Tokenizer::Parts {
  std::string name;  // for error messages
  std::string digest;
  std::shared_ptr<Vocabulary> vocabulary = std::make_shared<Vocabulary>();
  // One of the two.
  std::shared_ptr<const BpeModel> bpe;
  std::shared_ptr<const UnigramModel> unigram;

  // What stands before the model, step by step.
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  // SentencePiece-style BPE: the steps above are not run, the model reads spaces as U+2581 itself.
  bool reads_spaces = false;
  PrefixRule prefix = PrefixRule::kNever;
  bool normalizer_prepends = false;        // as added tokens with `normalized` see it
  bool normalizer_replaces_space = false;  // the same

  std::vector<bool> special;  // by id
  std::vector<AddedToken> added;
  // Added tokens with `normalized` are decoded from their normalized text ("▁graft▁word").
  std::unordered_map<int32_t, std::string> normalized_texts;
  TokenFinder raw_finder;  // values index `added`
  TokenFinder normalized_finder;

  Decoding decoding;
  TrimOffsets trim;
  std::vector<int32_t> front;  // what EncodeOptions::special adds
  std::vector<int32_t> back;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::optional<int32_t> unk;
  std::optional<int32_t> pad;

  // Adds an added token and its vocabulary entry; the last one with an id counts. Errors: kData.
  void add_added_token(AddedToken token);
  bool is_added(int32_t id) const { return added_by_id_.count(id) > 0; }
  // The token's text as the decoder sees it.
  std::string_view decoder_text(int32_t id) const;
  // Builds the finders; call after the last token.
  void finish();

 private:
  std::unordered_map<int32_t, size_t> added_by_id_;
};

// SHA-256 (hex) of what a tokenizer does: `file_digest` is that of its vocabulary file.
std::string digest_of(const std::string& file_digest, const Tokenizer::Parts& parts);

// tokenizer.json. Errors: kData.
void read_tokenizer_json(std::string_view text, const std::string& name, Tokenizer::Parts& parts);

// tokenizer.model. Legacy: the dummy prefix comes again after each added token (`legacy` of
// tokenizer_config.json, true when absent). Errors: kData.
enum class Legacy { kNo, kYes };
void read_sentencepiece_model(const std::string& bytes,
                              const std::string& name,
                              Legacy legacy,
                              Tokenizer::Parts& parts);

// A piece of a SentencePiece vocabulary, whichever file it came from.
struct ScoredPiece {
  std::string_view text;
  float score = 0.0F;
  bool is_normal = true;  // takes part in merges
};
// The merges of SentencePiece BPE pieces, best first; ids are the places in `pieces`, which
// `vocabulary` knows. Errors: kData (too many).
MergeTable merges_of_pieces(const std::vector<ScoredPiece>& pieces,
                            const Vocabulary& vocabulary,
                            const std::string& name);

// The vocabulary of a GGUF file: SentencePiece ("llama") and byte-level ("gpt2") ones of the
// families that graft knows. Errors: kData.
void read_gguf_vocabulary(std::string_view bytes, const std::string& name, Tokenizer::Parts& parts);

}  // namespace graft::data
