// tokenizer.model of SentencePiece: BPE and Unigram models on the same code as tokenizer.json's.
#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// A reader of the protobuf wire format (varint, 64-bit, length-delimited, 32-bit).
class WireReader {
 public:
  WireReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  struct Field {
    uint64_t number = 0;
    uint64_t integer = 0;    // varint, or the bits of a fixed one
    std::string_view bytes;  // length-delimited
  };
  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    const uint64_t key = varint();
    field = {.number = key >> 3, .integer = 0, .bytes = {}};
    switch (key & 7U) {
      case 0:
        field.integer = varint();
        return true;
      case 1:
        field.integer = fixed(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.integer = fixed(4);
        return true;
      default:
        damaged();
    }
  }

 private:
  [[noreturn]] void damaged() const {
    fail(ExitCode::kData, "not a SentencePiece model, or a truncated one",
         name_ + ": byte " + std::to_string(at_), "copy the file again");
  }
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) damaged();
    const std::string_view taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
  }
  uint64_t fixed(size_t count) {
    uint64_t value = 0;
    const std::string_view taken = take(count);
    for (size_t i = 0; i < count; ++i) {
      value |= uint64_t{static_cast<unsigned char>(taken[i])} << (8 * i);
    }
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }
  std::string_view bytes_;
  const std::string& name_;
  size_t at_ = 0;
};

// 256,000 real pieces sum to 16 million; this takes a second.
constexpr uint64_t kMaxMergeWork = uint64_t{1} << 30;

// sentencepiece_model.proto
enum PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};
enum ModelType { kUnigram = 1, kBpe = 2 };

struct Piece {
  std::string text;
  float score = 0.0F;
  int type = kNormal;
};

struct Model {
  std::vector<Piece> pieces;
  int type = kUnigram;
  bool byte_fallback = false;
  int64_t unk = 0;
  int64_t bos = 1;
  int64_t eos = 2;
  int64_t pad = -1;
  std::string_view character_map;
  bool add_dummy_prefix = true;
  bool remove_extra_spaces = true;
  bool escape_spaces = true;
};

Piece read_piece(std::string_view bytes, const std::string& name) {
  Piece piece;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.integer));
    if (field.number == 3) piece.type = static_cast<int>(field.integer);
  }
  return piece;
}

void read_trainer_spec(std::string_view bytes, const std::string& name, Model& model) {
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    const auto id = static_cast<int64_t>(static_cast<int32_t>(field.integer));
    if (field.number == 3) model.type = static_cast<int>(field.integer);
    if (field.number == 24 && field.integer != 0) {
      fail(ExitCode::kData, "SentencePiece models with white space as suffix are not supported",
           name);
    }
    if (field.number == 35) model.byte_fallback = field.integer != 0;
    if (field.number == 40) model.unk = id;
    if (field.number == 41) model.bos = id;
    if (field.number == 42) model.eos = id;
    if (field.number == 43) model.pad = id;
  }
}

void read_normalizer_spec(std::string_view bytes, const std::string& name, Model& model) {
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 2) model.character_map = field.bytes;
    if (field.number == 3) model.add_dummy_prefix = field.integer != 0;
    if (field.number == 4) model.remove_extra_spaces = field.integer != 0;
    if (field.number == 5) model.escape_spaces = field.integer != 0;
  }
}

Model read_model(const std::string& bytes, const std::string& name) {
  Model model;
  WireReader reader(bytes, name);
  for (WireReader::Field field; reader.next(field);) {
    if (field.number == 1) {
      if (static_cast<int64_t>(model.pieces.size()) > kMaxTokenId) {
        fail(ExitCode::kData, "the model has more than " + std::to_string(kMaxTokenId) + " pieces",
             name);
      }
      model.pieces.push_back(read_piece(field.bytes, name));
    }
    if (field.number == 2) read_trainer_spec(field.bytes, name, model);
    if (field.number == 3) read_normalizer_spec(field.bytes, name, model);
  }
  if (model.pieces.empty()) fail(ExitCode::kData, "the model has no pieces", name);
  for (const Piece& piece : model.pieces) {
    if (!is_valid_utf8(piece.text)) fail(ExitCode::kData, "a piece is not UTF-8", name);
    if (std::isnan(piece.score)) fail(ExitCode::kData, "the score of a piece is no number", name);
  }
  return model;
}

}  // namespace

// Every way to make a normal piece from two pieces, the best score first; among equals the
// lexically longer (left, right) lengths, as Hugging Face's converter orders them.
MergeTable merges_of_pieces(const std::vector<ScoredPiece>& pieces,
                            const Vocabulary& vocabulary,
                            const std::string& name) {
  // Each cut of a piece looks up both parts: longer pieces than real ones cost their square.
  uint64_t work = 0;
  for (const ScoredPiece& piece : pieces) {
    work += uint64_t{piece.is_normal} * piece.text.size() * piece.text.size();
  }
  if (work > kMaxMergeWork) {
    fail(ExitCode::kData,
         "the pieces are too long: the sum of their squared lengths is " + std::to_string(work) +
             ", at most " + std::to_string(kMaxMergeWork) + " is allowed",
         name);
  }
  struct Candidate {
    float score;
    uint32_t left_characters;
    uint32_t right_characters;
    int32_t piece;
    int32_t left;
    int32_t right;
  };
  std::vector<Candidate> candidates;
  for (size_t index = 0; index < pieces.size(); ++index) {
    const ScoredPiece& piece = pieces[index];
    if (!piece.is_normal) continue;
    const size_t first = candidates.size();
    const auto characters = static_cast<uint32_t>(utf8_count(piece.text));
    uint32_t left_characters = 0;
    for (size_t cut = 0; cut < piece.text.size();) {
      cut += utf8_length(piece.text[cut]);
      ++left_characters;
      if (cut >= piece.text.size()) break;
      const int32_t left = vocabulary.find(piece.text.substr(0, cut));
      const int32_t right = vocabulary.find(piece.text.substr(cut));
      if (left < 0 || right < 0) continue;
      candidates.push_back({piece.score, left_characters, characters - left_characters,
                            static_cast<int32_t>(index), left, right});
    }
    std::sort(candidates.begin() + static_cast<std::ptrdiff_t>(first), candidates.end(),
              [](const Candidate& a, const Candidate& b) {
                return std::pair(a.left, a.right) < std::pair(b.left, b.right);
              });
    if (candidates.size() > MergeTable::kMaxMerges) {
      fail(
          ExitCode::kData,
          "the pieces can be made in more than " + std::to_string(MergeTable::kMaxMerges) + " ways",
          name);
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return std::tuple(a.score, a.left_characters, a.right_characters) >
                            std::tuple(b.score, b.left_characters, b.right_characters);
                   });
  MergeTable merges;
  merges.reserve(candidates.size());
  for (const Candidate& candidate : candidates) {
    merges.add(candidate.left, candidate.right, candidate.piece);
  }
  return merges;
}

namespace {

// White space as it is becomes U+2581 and nothing else happens: the model does it itself, faster.
void read_spaces_directly(const Model& model, Legacy legacy, Tokenizer::Parts& parts) {
  const bool again = legacy == Legacy::kYes;
  if (model.add_dummy_prefix) {
    parts.prefix = again ? PrefixRule::kAlways : PrefixRule::kFirstUnlessMark;
  }
  parts.reads_spaces = true;
  parts.normalizer_prepends = again && model.add_dummy_prefix;
  parts.normalizer_replaces_space = again;
  // What added tokens with `normalized` go through.
  if (parts.normalizer_prepends) {
    parts.normalizer.emplace_back(PrependStep{std::string(kWordMark)});
  }
  if (again) parts.normalizer.emplace_back(ReplaceStep{" ", nullptr, std::string(kWordMark)});
}

void make_unigram(const Model& model, const std::string& name, Tokenizer::Parts& parts) {
  UnigramModel::Rules rules;
  rules.is_sentencepiece = true;
  rules.byte_fallback = model.byte_fallback;
  rules.unk = parts.unk.value_or(-1);
  std::vector<double> scores;
  for (const Piece& piece : model.pieces) {
    scores.push_back(piece.score);
    rules.left_out.push_back(piece.type != kNormal);
  }
  parts.unigram =
      std::make_shared<UnigramModel>(parts.vocabulary, std::move(scores), std::move(rules), name);
}

}  // namespace

void read_sentencepiece_model(const std::string& bytes,
                              const std::string& name,
                              Legacy legacy,
                              Tokenizer::Parts& parts) {
  const Model model = read_model(bytes, name);
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const auto number = static_cast<int64_t>(id);
    parts.vocabulary->add(piece.text, number, name);
    const bool special = piece.type == kControl || piece.type == kUnknown;
    if (special || piece.type == kUserDefined) {
      parts.add_added_token({.id = static_cast<int32_t>(id),
                             .content = piece.text,
                             .special = special,
                             .normalized = false,
                             .lstrip = false,
                             .rstrip = false});
    }
  }
  const auto known = [&](int64_t id) -> std::optional<int32_t> {
    if (id < 0 || id >= static_cast<int64_t>(model.pieces.size())) return std::nullopt;
    return static_cast<int32_t>(id);
  };
  parts.unk = known(model.unk);
  parts.bos = known(model.bos);
  parts.eos = known(model.eos);
  parts.pad = known(model.pad);
  if (parts.bos) parts.front = {*parts.bos};  // LlamaTokenizer's default
  parts.decoding.replace = {{std::string(kWordMark), " "}};
  parts.decoding.byte_fallback = true;
  if (model.add_dummy_prefix) {
    parts.decoding.strip = " ";
    parts.decoding.strip_count = 1;
  }

  if (model.type != kBpe && model.type != kUnigram) {
    fail(ExitCode::kData,
         "SentencePiece models of type " + std::to_string(model.type) + " are not supported", name,
         "graft reads BPE (2) and Unigram (1)");
  }
  const bool is_plain = model.type == kBpe && model.character_map.empty() &&
                        !model.remove_extra_spaces && model.escape_spaces;
  if (!is_plain) {
    SentencePieceStep step;
    if (!model.character_map.empty()) {
      step.map = std::make_shared<const CharacterMap>(std::string(model.character_map),
                                                      name + ": precompiled_charsmap");
    }
    step.remove_extra_spaces = model.remove_extra_spaces;
    step.add_dummy_prefix = model.add_dummy_prefix;
    step.escape_spaces = model.escape_spaces;
    parts.normalizer.emplace_back(std::move(step));
  }
  if (model.type == kUnigram) {
    make_unigram(model, name, parts);
    return;
  }
  BpeRules rules;
  rules.byte_fallback = model.byte_fallback;
  rules.fuse_unk = true;
  rules.unk = parts.unk.value_or(-1);
  rules.space_is_mark = is_plain;
  if (is_plain) read_spaces_directly(model, legacy, parts);
  std::vector<ScoredPiece> pieces;
  pieces.reserve(model.pieces.size());
  for (const Piece& piece : model.pieces) {
    // User-defined pieces are added tokens.
    pieces.push_back({piece.text, piece.score, piece.type == kNormal});
  }
  parts.bpe = std::make_shared<BpeModel>(
      parts.vocabulary, merges_of_pieces(pieces, *parts.vocabulary, name), rules, name);
}

}  // namespace graft::data
