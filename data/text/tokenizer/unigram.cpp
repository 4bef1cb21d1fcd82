#include "data/text/tokenizer/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

constexpr uint64_t kNoEdge = ~uint64_t{0};
// Below the worst token, as in SentencePiece.
constexpr double kUnknownPenalty = 10.0;
// The largest real vocabularies (250,000 tokens) have a million; each costs 24 bytes.
constexpr size_t kMaxEdges = size_t{1} << 23;

size_t slot_of(uint64_t edge) {
  const uint64_t mixed = edge * 0x9E3779B97F4A7C15ULL;
  return static_cast<size_t>(mixed ^ mixed >> 32);
}

}  // namespace

UnigramModel::UnigramModel(std::shared_ptr<const Vocabulary> vocabulary,
                           std::vector<double> scores,
                           Rules rules,
                           const std::string& name)
    : vocabulary_(std::move(vocabulary)),
      scores_(std::move(scores)),
      rules_(std::move(rules)),
      name_(name) {
  edges_.assign(1024, kNoEdge);
  targets_.resize(edges_.size());
  mask_ = edges_.size() - 1;
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < scores_.size(); ++id) {
    if (!std::isfinite(scores_[id])) {
      fail(ExitCode::kData, "the score of token " + std::to_string(id) + " is not finite", name);
    }
    if (!rules_.left_out.empty() && rules_.left_out[id]) continue;
    lowest = std::min(lowest, scores_[id]);
    int32_t node = 0;
    for (const char c : vocabulary_->text(static_cast<int32_t>(id))) {
      node = add_child(node, static_cast<unsigned char>(c));
    }
    if (edge_count_ > kMaxEdges) {
      fail(ExitCode::kData,
           "the tokens of a Unigram model share too little: their tree has more than " +
               std::to_string(kMaxEdges) + " edges",
           name);
    }
    if (node != 0) node_ids_[static_cast<size_t>(node)] = static_cast<int32_t>(id);
  }
  unknown_score_ = lowest - kUnknownPenalty;
  if (!rules_.byte_fallback) return;
  for (size_t byte = 0; byte < 256; ++byte) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    const std::string token = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15U], '>'};
    byte_ids_.push_back(vocabulary_->find(token));
  }
}

int32_t UnigramModel::child(int32_t node, unsigned char byte) const {
  const uint64_t edge = static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | byte;
  for (size_t slot = slot_of(edge) & mask_;; slot = (slot + 1) & mask_) {
    if (edges_[slot] == edge) return targets_[slot];
    if (edges_[slot] == kNoEdge) return -1;
  }
}

int32_t UnigramModel::add_child(int32_t node, unsigned char byte) {
  const int32_t known = child(node, byte);
  if (known >= 0) return known;
  const auto insert = [&](uint64_t edge, int32_t target) {
    size_t slot = slot_of(edge) & mask_;
    while (edges_[slot] != kNoEdge) slot = (slot + 1) & mask_;
    edges_[slot] = edge;
    targets_[slot] = target;
  };
  if (++edge_count_ * 2 > edges_.size()) {
    const std::vector<uint64_t> edges = std::move(edges_);
    const std::vector<int32_t> targets = std::move(targets_);
    edges_.assign(edges.size() * 2, kNoEdge);
    targets_.assign(edges_.size(), 0);
    mask_ = edges_.size() - 1;
    for (size_t slot = 0; slot < edges.size(); ++slot) {
      if (edges[slot] != kNoEdge) insert(edges[slot], targets[slot]);
    }
  }
  const auto target = static_cast<int32_t>(node_ids_.size());
  node_ids_.push_back(-1);
  insert(static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | byte, target);
  return target;
}

void UnigramModel::emit_unknown(std::string_view text,
                                size_t begin,
                                size_t end,
                                std::vector<Token>& out) const {
  const ByteRange whole = {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  const std::string_view bytes = text.substr(begin, end - begin);
  // Unknown characters side by side may be a token together.
  const int32_t token = rules_.is_sentencepiece ? -1 : vocabulary_->find(bytes);
  if (token >= 0 && static_cast<size_t>(token) < scores_.size()) {
    out.push_back({token, whole, whole});
    return;
  }
  const bool has_bytes = !byte_ids_.empty() && std::all_of(bytes.begin(), bytes.end(), [&](char c) {
    return byte_ids_[static_cast<unsigned char>(c)] >= 0;
  });
  if (has_bytes) {
    for (size_t at = begin; at < end; ++at) {
      out.push_back({byte_ids_[static_cast<unsigned char>(text[at])],
                     {static_cast<int64_t>(at), static_cast<int64_t>(at + 1)},
                     whole});
    }
    return;
  }
  out.push_back({rules_.unk, whole, whole});
}

void UnigramModel::encode(std::string_view text,
                          size_t begin,
                          size_t end,
                          std::vector<Token>& out) const {
  struct Node {
    double score = 0;
    int32_t id = -1;
    uint32_t length = 0;  // of the last token; 0 = not reached
  };
  thread_local std::vector<Node> best;
  const size_t size = end - begin;
  best.assign(size + 1, Node{});
  const auto offer = [&](size_t from, size_t to, int32_t id, double score) {
    double total = best[from].score + score;
    if (rules_.is_sentencepiece) total = static_cast<float>(total);
    Node& node = best[to];
    if (node.length == 0 || total > node.score) {
      node = {total, id, static_cast<uint32_t>(to - from)};
    }
  };
  for (size_t at = 0; at < size;) {
    const size_t character = utf8_length(text[begin + at]);
    bool has_single = false;
    int32_t node = 0;
    for (size_t to = at; to < size;) {
      node = child(node, static_cast<unsigned char>(text[begin + to]));
      if (node < 0) break;
      ++to;
      const int32_t id = node_ids_[static_cast<size_t>(node)];
      if (id < 0) continue;
      offer(at, to, id, scores_[static_cast<size_t>(id)]);
      has_single = has_single || to - at == character;
    }
    if (!has_single) {
      if (rules_.unk < 0) {
        fail(ExitCode::kData, "the text has a character without a token, and there is no unk_id",
             name_);
      }
      offer(at, at + character, rules_.unk, unknown_score_);
    }
    at += character;
  }
  const size_t first = out.size();
  for (size_t to = size; to > 0;) {
    size_t from = to - best[to].length;
    const int32_t id = best[to].id;
    if (id == rules_.unk) {  // neighbours are one unknown
      while (from > 0 && best[from].id == rules_.unk) from -= best[from].length;
      std::vector<Token> tokens;
      emit_unknown(text, begin + from, begin + to, tokens);
      out.insert(out.end(), tokens.rbegin(), tokens.rend());
    } else {
      const ByteRange span = {static_cast<int64_t>(begin + from), static_cast<int64_t>(begin + to)};
      out.push_back({id, span, span});
    }
    to = from;
  }
  std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
}

}  // namespace graft::data
