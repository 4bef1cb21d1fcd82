// Unigram models: the segmentation with the highest sum of scores (Viterbi).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer.h"
#include "data/text/tokenizer/vocabulary.h"

namespace graft::data {

class UnigramModel {
 public:
  struct Rules {
    bool byte_fallback = false;
    int32_t unk = -1;  // -1 = none: unknown characters are an error
    // sentencepiece keeps sums as float32, and never takes unknown characters side by side for a
    // token; `tokenizers` computes in float64, and does.
    bool is_sentencepiece = false;
    std::vector<bool> left_out;  // by id: tokens that text never becomes; empty = none
  };
  // `scores` by id. Errors: kData.
  UnigramModel(std::shared_ptr<const Vocabulary> vocabulary,
               std::vector<double> scores,
               Rules rules,
               const std::string& name);

  struct Token {
    int32_t id;
    ByteRange span;       // disjoint; a byte token has its byte
    ByteRange reference;  // as `tokenizers` says it: a byte token has its whole unknown run
  };
  // Appends the tokens of text[begin, end). Thread-safe. Errors: kData (unknown character without
  // an unknown token).
  void encode(std::string_view text, size_t begin, size_t end, std::vector<Token>& out) const;

 private:
  int32_t child(int32_t node, unsigned char byte) const;
  int32_t add_child(int32_t node, unsigned char byte);
  void emit_unknown(std::string_view text, size_t begin, size_t end, std::vector<Token>& out) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<double> scores_;
  Rules rules_;
  std::string name_;
  double unknown_score_ = 0;
  std::vector<int32_t> byte_ids_;  // empty unless all 256 exist
  // A trie over the tokens: edges (node << 8 | byte) -> node in open addressing, id of each node.
  std::vector<uint64_t> edges_;
  std::vector<int32_t> targets_;
  uint64_t mask_ = 0;
  size_t edge_count_ = 0;
  std::vector<int32_t> node_ids_ = {-1};
};

}  // namespace graft::data
