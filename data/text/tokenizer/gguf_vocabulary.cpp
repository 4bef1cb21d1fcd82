// The vocabulary in the metadata of a GGUF file (tokenizer.ggml.*). Tensors are never looked at.
#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/hash.h"
#include "data/text/tokenizer/gguf_words.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

enum GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
  kTypeCount
};

// Bytes of a value; 0 for strings and arrays.
constexpr size_t kSizes[kTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// A value of the metadata, still in the file.
struct Value {
  uint32_t type = kUint8;  // of the items for an array
  bool is_array = false;
  uint64_t count = 1;
  std::string_view bytes;  // the value, or all items
};

class MetadataReader {
 public:
  MetadataReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  std::map<std::string, Value, std::less<>> read() {
    if (take(4) != "GGUF") damaged("is not a GGUF file");
    const auto version = number<uint32_t>();
    if (version != 2 && version != 3) {
      fail(ExitCode::kData, "GGUF version " + std::to_string(version) + " is not supported", name_,
           "graft reads versions 2 and 3");
    }
    number<uint64_t>();  // tensors
    const auto count = number<uint64_t>();
    std::map<std::string, Value, std::less<>> values;
    for (uint64_t i = 0; i < count; ++i) {
      const std::string_view key = string();
      const Value value = read_value();
      // Only what the vocabulary needs is kept, so a million keys cost nothing.
      if (!key.starts_with("tokenizer.ggml.")) continue;
      if (!values.emplace(key, value).second) damaged("has a key twice: " + std::string(key));
    }
    return values;
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view string() { return take(number<uint64_t>()); }
  [[noreturn]] void damaged(const std::string& what) const {
    fail(ExitCode::kData, "the file " + what, name_ + ": byte " + std::to_string(at_),
         "copy the file again");
  }

 private:
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) damaged("ends too early");
    const std::string_view taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
  }

  Value read_value() {
    Value value;
    value.type = number<uint32_t>();
    if (value.type == kArray) {
      value.is_array = true;
      value.type = number<uint32_t>();
      value.count = number<uint64_t>();
    }
    if (value.type >= kTypeCount || value.type == kArray) {
      damaged("has a value of type " + std::to_string(value.type));
    }
    const size_t begin = at_;
    if (value.type == kString) {
      for (uint64_t i = 0; i < value.count; ++i) string();
    } else {
      if (value.count > bytes_.size() / kSizes[value.type]) damaged("ends too early");
      take(value.count * kSizes[value.type]);
    }
    value.bytes = bytes_.substr(begin, at_ - begin);
    return value;
  }

  std::string_view bytes_;
  const std::string& name_;
  size_t at_ = 0;
};

class Metadata {
 public:
  Metadata(std::string_view bytes, const std::string& name)
      : name_(name), values_(MetadataReader(bytes, name).read()) {}

  // Absent = nothing.
  std::optional<int64_t> integer(const std::string& key) const {
    const Value* value = find(key);
    if (!value) return std::nullopt;
    if (value->is_array || value->type == kString || value->type == kFloat32 ||
        value->type == kFloat64) {
      wrong(key, "an integer");
    }
    int64_t result = 0;
    std::memcpy(&result, value->bytes.data(), value->bytes.size());
    if (value->type == kInt32) result = static_cast<int32_t>(result);
    return result;
  }
  std::string_view text(const std::string& key) const {
    const Value* value = find(key);
    if (!value) return {};
    if (value->is_array || value->type != kString) wrong(key, "a string");
    return value->bytes.substr(8);
  }
  std::vector<std::string_view> texts(const std::string& key) const {
    const Value* value = find(key);
    if (!value || !value->is_array || value->type != kString) wrong(key, "a list of strings");
    std::vector<std::string_view> result;
    result.reserve(value->count);
    MetadataReader reader(value->bytes, name_);
    for (uint64_t i = 0; i < value->count; ++i) {
      result.push_back(reader.string());
      if (!is_valid_utf8(result.back())) wrong(key, "UTF-8");
    }
    return result;
  }
  // A list of 4-byte numbers, one a token.
  template <class T>
  std::vector<T> numbers(const std::string& key, uint32_t type, size_t count) const {
    const Value* value = find(key);
    if (!value || !value->is_array || value->type != type || value->count != count) {
      wrong(key, "a list of one number a token");
    }
    std::vector<T> result(count);
    std::memcpy(result.data(), value->bytes.data(), value->bytes.size());
    return result;
  }
  // What the digest of the vocabulary is made of.
  std::string digest() const {
    Sha256 hash;
    for (const auto& [key, value] : values_) {
      hash.update(key);
      hash.update(":" + std::to_string(value.type) + ":" + std::to_string(value.count) + ":");
      hash.update(value.bytes);
    }
    return hash.hex_digest();
  }

 private:
  const Value* find(const std::string& key) const {
    const auto found = values_.find("tokenizer.ggml." + key);
    return found == values_.end() ? nullptr : &found->second;
  }
  [[noreturn]] void wrong(const std::string& key, const std::string& expected) const {
    fail(ExitCode::kData, "tokenizer.ggml." + key + " must be " + expected, name_);
  }

  const std::string& name_;
  std::map<std::string, Value, std::less<>> values_;
};

enum TokenType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

MergeTable read_merges(const std::vector<std::string_view>& lines,
                       const Vocabulary& vocabulary,
                       const std::string& name) {
  MergeTable merges;
  if (lines.size() > MergeTable::kMaxMerges) {
    fail(ExitCode::kData,
         "a model must have at most " + std::to_string(MergeTable::kMaxMerges) + " merges", name);
  }
  merges.reserve(lines.size());
  std::string whole;
  for (const std::string_view line : lines) {
    const size_t space = line.find(' ', 1);
    const std::string_view left = line.substr(0, space);
    const std::string_view right =
        space == std::string_view::npos ? std::string_view() : line.substr(space + 1);
    whole.assign(left);
    whole.append(right);
    const int32_t left_id = vocabulary.find(left);
    const int32_t right_id = vocabulary.find(right);
    const int32_t whole_id = vocabulary.find(whole);
    if (right.empty() || left_id < 0 || right_id < 0 || whole_id < 0) {
      fail(ExitCode::kData,
           "merge " + std::to_string(merges.size()) + " (\"" + std::string(line) +
               "\") has a part or a result that is not in the vocabulary",
           name);
    }
    merges.add(left_id, right_id, whole_id);
  }
  return merges;
}

}  // namespace

void read_gguf_vocabulary(std::string_view bytes,
                          const std::string& name,
                          Tokenizer::Parts& parts) {
  const Metadata metadata(bytes, name);
  const std::string_view model = metadata.text("model");
  if (model != "llama" && model != "gpt2") {
    fail(ExitCode::kData, "tokenizer.ggml.model \"" + std::string(model) + "\" is not supported",
         name, "graft reads llama (SentencePiece) and gpt2 (byte-level) vocabularies");
  }
  const std::vector<std::string_view> tokens = metadata.texts("tokens");
  const std::vector<int32_t> types = metadata.numbers<int32_t>("token_type", kInt32, tokens.size());
  if (static_cast<int64_t>(tokens.size()) > kMaxTokenId) {
    fail(ExitCode::kData, "the vocabulary has " + std::to_string(tokens.size()) + " tokens", name);
  }
  parts.vocabulary->reserve(tokens.size(), tokens.size() * 8);
  for (size_t id = 0; id < tokens.size(); ++id) {
    parts.vocabulary->add(tokens[id], static_cast<int64_t>(id), name);
  }
  const auto token_id = [&](const std::string& key) -> std::optional<int32_t> {
    const std::optional<int64_t> id = metadata.integer(key);
    if (!id || !parts.vocabulary->has(*id)) return std::nullopt;
    return static_cast<int32_t>(*id);
  };
  parts.bos = token_id("bos_token_id");
  parts.eos = token_id("eos_token_id");
  parts.unk = token_id("unknown_token_id");
  parts.pad = token_id("padding_token_id");
  BpeRules rules;
  bool adds_bos = model == "llama";  // llama.cpp's defaults
  if (model == "gpt2") {
    GgufWords words = gguf_words(metadata.text("pre"), name);
    parts.normalizer = std::move(words.normalizer);
    parts.pre_tokenizer = std::move(words.pre_tokenizer);
    adds_bos = words.adds_bos;
    rules.byte_level = true;
    rules.ignore_merges = words.ignore_merges;
    parts.decoding.byte_level = true;
    parts.bpe = std::make_shared<BpeModel>(
        parts.vocabulary, read_merges(metadata.texts("merges"), *parts.vocabulary, name), rules,
        name);
  } else {
    const auto scores = metadata.numbers<float>("scores", kFloat32, tokens.size());
    std::vector<ScoredPiece> pieces;
    pieces.reserve(tokens.size());
    for (size_t id = 0; id < tokens.size(); ++id) {
      if (std::isnan(scores[id])) fail(ExitCode::kData, "a score is no number", name);
      pieces.push_back({tokens[id], scores[id], types[id] == kNormal});
    }
    rules.byte_fallback = true;
    rules.fuse_unk = true;
    rules.unk = parts.unk.value_or(-1);
    parts.reads_spaces = true;
    const bool has_prefix = metadata.integer("add_space_prefix").value_or(1) != 0;
    parts.prefix = has_prefix ? PrefixRule::kAlways : PrefixRule::kNever;
    parts.normalizer_prepends = has_prefix;
    parts.normalizer_replaces_space = true;
    parts.decoding.replace = {{std::string(kWordMark), " "}};
    parts.decoding.byte_fallback = true;
    if (has_prefix) {
      parts.decoding.strip = " ";
      parts.decoding.strip_count = 1;
    }
    parts.bpe = std::make_shared<BpeModel>(
        parts.vocabulary, merges_of_pieces(pieces, *parts.vocabulary, name), rules, name);
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    const bool special = types[id] == kControl || types[id] == kUnknown;
    if (!special && types[id] != kUserDefined) continue;
    parts.add_added_token({.id = static_cast<int32_t>(id),
                           .content = std::string(tokens[id]),
                           .special = special,
                           .normalized = false,
                           .lstrip = false,
                           .rstrip = false,
                           .single_word = false});
  }
  adds_bos = metadata.integer("add_bos_token").value_or(adds_bos ? 1 : 0) != 0;
  if (adds_bos && parts.bos) parts.front = {*parts.bos};
  if (metadata.integer("add_eos_token").value_or(0) != 0 && parts.eos) parts.back = {*parts.eos};
  parts.digest = metadata.digest();
}

}  // namespace graft::data
