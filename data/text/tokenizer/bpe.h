// Byte-pair encoding: of bytes (GPT-2 and its like) or of characters (SentencePiece and its like).
//
// Characters: the text is never copied into its normalized form: a space counts as U+2581, and the
// dummy prefix is a symbol of length 0. Where no token has U+2581 behind another character (checked
// when the model is built), cutting before each run of U+2581 is exact. Each word is merged once
// and kept in a cache; the parts that cannot be cut are merged with a heap in O(n log n).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/text/tokenizer.h"
#include "data/text/tokenizer/merge_table.h"
#include "data/text/tokenizer/splitter.h"
#include "data/text/tokenizer/vocabulary.h"

namespace graft::data {

struct BpeRules {
  bool byte_level = false;     // symbols are bytes; the rest of the rules is for characters
  bool ignore_merges = false;  // a word that is a token is that token
  bool space_is_mark = true;   // " " is read as U+2581
  bool byte_fallback = false;
  bool fuse_unk = false;
  bool split_at_each_mark = false;  // Metaspace(split = true)
  int32_t unk = -1;                 // -1 = none
};

class BpeModel {
 public:
  // Errors: kData (bytes that would vanish).
  BpeModel(std::shared_ptr<const Vocabulary> vocabulary,
           MergeTable merges,
           BpeRules rules,
           const std::string& name);
  ~BpeModel();

  enum class Prefix { kNo, kYes };
  // One a thread.
  class Workspace;
  // Appends the tokens of text[begin, end); `spans` may be nullptr. Thread-safe through the
  // workspace. encode_part cuts at U+2581 first, encode_words with a splitter (byte level only);
  // encode_word takes the range as it is.
  void encode_part(std::string_view text,
                   ByteRange part,
                   Prefix prefix,
                   Workspace& workspace,
                   std::vector<int32_t>& ids,
                   std::vector<ByteRange>* spans) const;
  void encode_words(SplitterKind splitter,
                    std::string_view text,
                    size_t begin,
                    size_t end,
                    Workspace& workspace,
                    std::vector<int32_t>& ids,
                    std::vector<ByteRange>* spans) const;
  void encode_word(std::string_view text,
                   size_t begin,
                   size_t end,
                   Workspace& workspace,
                   std::vector<int32_t>& ids,
                   std::vector<ByteRange>* spans) const;
  bool is_byte_level() const { return rules_.byte_level; }

  // A workspace of its own for the length of a call, returned to the pool at the end.
  class Lease {
   public:
    explicit Lease(const BpeModel& model);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& operator*() { return *workspace_; }

   private:
    const BpeModel& model_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  int32_t character_id(std::string_view character) const;
  void find_characters(const std::string& name);
  void find_bytes(const std::string& name);
  void add_bytes(std::string_view word, Workspace& workspace) const;
  void add_characters(std::string_view word, Prefix prefix, Workspace& workspace) const;
  void merge_bytes(std::string_view word, Workspace& workspace) const;
  template <SplitterKind kKind>
  void encode_split(std::string_view text,
                    size_t begin,
                    size_t end,
                    Workspace& workspace,
                    std::vector<int32_t>& ids,
                    std::vector<ByteRange>* spans) const;
  // Valid until the next call with this workspace.
  std::span<const int32_t> byte_word_tokens(std::string_view text,
                                            size_t begin,
                                            size_t end,
                                            Workspace& workspace) const;
  void encode_uncached(std::string_view word, Prefix prefix, Workspace& workspace) const;
  void emit_mark_word(std::string_view text,
                      size_t begin,
                      size_t end,
                      Prefix prefix,
                      bool has_literal_mark,
                      Workspace& workspace,
                      std::vector<int32_t>& ids,
                      std::vector<ByteRange>* spans) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  MergeTable merges_;
  BpeRules rules_;
  bool words_are_exact_ = false;
  // Bytes of the text behind each token of a word whose marks are all spaces.
  std::vector<uint32_t> lengths_;
  bool lengths_are_exact_ = true;
  std::vector<uint32_t> byte_pair_ranks_;  // byte level: by (left byte, right byte)
  std::vector<int32_t> basic_plane_;       // id of each character below U+10000, -1 = none
  std::unordered_map<char32_t, int32_t> other_planes_;
  std::array<int32_t, 256> byte_ids_{};
  int32_t mark_id_ = -1;
  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> pool_;
};

// The byte alphabet of GPT-2: how a token file writes each byte, and back (-1 = it writes none).
std::string_view byte_level_text(unsigned char byte);
int byte_level_value(char32_t character);

}  // namespace graft::data
