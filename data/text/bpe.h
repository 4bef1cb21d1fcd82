// SentencePiece-style byte-pair encoding: characters, byte fallback, merges by rank.
//
// The text is never copied into its normalized form: a space counts as U+2581, and the dummy prefix
// is a symbol of length 0. Where no token has U+2581 behind another character (checked when the
// model is built), cutting before each run of U+2581 is exact, and each word is merged once and
// kept in a cache; otherwise the whole part is merged with a heap in O(n log n).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/text/tokenizer.h"

namespace graft::data {

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581
// Above every real vocabulary (262,144 today); bounds the memory that a hostile file can ask for.
constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;

struct BpeRules {
  bool space_is_mark = true;  // " " is read as U+2581
  bool byte_fallback = false;
  bool fuse_unk = false;
  bool split_at_each_mark = false;  // Metaspace(split = true)
  int32_t unk = -1;                 // -1 = none
};

class BpeModel {
 public:
  // `vocabulary`: token -> id. `merges`: pairs of tokens, best first; a pair given twice counts
  // with its last rank, as in `tokenizers`. Errors: kData (part or result not in the vocabulary).
  BpeModel(const std::unordered_map<std::string, int32_t>& vocabulary,
           const std::vector<std::pair<std::string, std::string>>& merges,
           BpeRules rules,
           const std::string& name);
  ~BpeModel();

  enum class Prefix { kNo, kYes };
  // Appends the tokens of text[begin, end); `spans` may be nullptr. Thread-safe through the
  // workspace: one a thread.
  class Workspace;
  void encode(std::string_view text,
              ByteRange part,
              Prefix prefix,
              Workspace& workspace,
              std::vector<int32_t>& ids,
              std::vector<ByteRange>* spans) const;

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
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr uint32_t kNoRank = ~uint32_t{0};

  const Merge* find_merge(int32_t left, int32_t right) const;
  int32_t character_id(std::string_view character) const;
  void add_symbols(std::string_view word, Prefix prefix, Workspace& workspace) const;
  void merge_short(Workspace& workspace) const;
  void merge_long(Workspace& workspace) const;
  void merge_word(std::string_view word, Prefix prefix, Workspace& workspace) const;
  void emit_word(std::string_view text,
                 ByteRange word,
                 Prefix prefix,
                 Workspace& workspace,
                 std::vector<int32_t>& ids,
                 std::vector<ByteRange>* spans) const;

  BpeRules rules_;
  bool words_are_exact_ = false;
  std::vector<Merge> merges_;  // open addressing, a power of two
  uint64_t merge_mask_ = 0;
  std::vector<int32_t> basic_plane_;  // id of each character below U+10000, -1 = none
  std::unordered_map<char32_t, int32_t> other_planes_;
  std::array<int32_t, 256> byte_ids_{};
  int32_t mark_id_ = -1;
  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> pool_;
};

}  // namespace graft::data
