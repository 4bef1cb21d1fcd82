// tokenizer.json of Hugging Face `tokenizers`.
//
// The vocabulary and the merges are nearly all of the file: they are read in one pass into flat
// tables. Everything else is small and goes through the tree of core/json.h.
#include <algorithm>
#include <array>
#include <set>

#include "core/error.h"
#include "data/text/json_scanner.h"
#include "data/text/tokenizer/json_merges.h"
#include "data/text/tokenizer/json_steps.h"
#include "data/text/tokenizer/tokenizer_parts.h"
#include "data/text/utf8.h"

namespace graft::data {
namespace {

// What the fast pass leaves: the small members, and the big ones in tables.
struct File {
  Json root = Json::object();   // without model
  Json model = Json::object();  // without vocab and merges
  bool has_vocabulary = false;
  bool has_merges = false;
  bool is_unigram = false;  // the vocabulary is a list of (token, score)
  std::vector<double> scores;
  MergeTable merges;
};

class Reader {
 public:
  Reader(const std::string& name, Vocabulary& vocabulary, File& file)
      : name_(name), vocabulary_(vocabulary), file_(file) {}

  void read(std::string_view text) {
    file_bytes_ = text.size();
    JsonScanner scanner(text, name_);
    std::set<std::string, std::less<>> seen;
    std::string_view key;
    for (scanner.enter('{'); scanner.next_key(key, key_);) {
      const std::string member(key);
      check_new(seen, member, scanner);
      if (member == "model") {
        read_model(scanner);
      } else {
        file_.root.set(member, parse_small(scanner, member));
      }
    }
    scanner.end();
    if (merges_text_.empty()) return;
    // Merges that stand before the vocabulary.
    const std::string name = name_ + ": model.merges";
    JsonScanner merges(merges_text_, name);
    file_.merges = read_json_merges(merges, vocabulary_, name_);
  }

 private:
  static void check_new(std::set<std::string, std::less<>>& seen,
                        const std::string& key,
                        const JsonScanner& scanner) {
    if (!seen.insert(key).second) scanner.refuse("duplicate key \"" + key + "\"");
  }

  // A member that becomes a tree: real ones stay below 2 MB, and a byte may cost 30 of memory.
  Json parse_small(JsonScanner& scanner, const std::string& member) const {
    constexpr size_t kMaxBytes = size_t{8} << 20;
    const std::string_view text = scanner.raw_value();
    if (text.size() > kMaxBytes) {
      scanner.refuse("\"" + member + "\" must have at most " + std::to_string(kMaxBytes) +
                     " bytes, got " + std::to_string(text.size()));
    }
    return parse_json(text, name_ + ": " + member);
  }

  void read_model(JsonScanner& scanner) {
    std::set<std::string, std::less<>> seen;
    std::string_view key;
    for (scanner.enter('{'); scanner.next_key(key, key_);) {
      const std::string member(key);
      check_new(seen, member, scanner);
      if (member == "vocab") {
        file_.has_vocabulary = true;
        file_.is_unigram = scanner.peek() == '[';
        file_.is_unigram ? read_scores(scanner) : read_vocabulary(scanner);
      } else if (member == "merges") {
        file_.has_merges = true;
        if (file_.has_vocabulary) {
          file_.merges = read_json_merges(scanner, vocabulary_, name_);
        } else {
          merges_text_ = scanner.raw_value();
        }
      } else {
        file_.model.set(member, parse_small(scanner, "model." + member));
      }
    }
  }

  void read_scores(JsonScanner& scanner) {
    int64_t id = 0;
    for (scanner.enter('['); scanner.next_item(); ++id) {
      scanner.enter('[');
      if (!scanner.next_item()) scanner.refuse("expected [token, score]");
      vocabulary_.add(scanner.string(key_), id, name_);
      if (!scanner.next_item()) scanner.refuse("expected [token, score]");
      file_.scores.push_back(scanner.number());
      if (scanner.next_item()) scanner.refuse("expected [token, score]");
    }
  }

  void read_vocabulary(JsonScanner& scanner) {
    // The known models have 32,000 to 262,144 tokens of 6 bytes, and need 60 bytes a token with
    // their merges.
    vocabulary_.reserve(std::min(size_t{1} << 17, file_bytes_ / 60),
                        std::min(size_t{1} << 20, file_bytes_));
    struct Token {
      std::string_view text;
      std::string buffer;
      uint64_t hash;
      int64_t id;
    };
    std::array<Token, kGroup> group;
    size_t count = 0;
    const auto add_group = [&] {
      for (size_t i = 0; i < count; ++i) {
        vocabulary_.add(group[i].text, group[i].hash, group[i].id, name_);
      }
      count = 0;
    };
    for (scanner.enter('{'); scanner.next_key(group[count].text, group[count].buffer);) {
      Token& token = group[count];
      token.hash = hash_bytes(token.text);
      token.id = scanner.integer();
      vocabulary_.prefetch_entry(token.hash);
      if (++count == kGroup) add_group();
    }
    add_group();
  }

  // Tokens are looked up in groups, so that the cache misses of a group overlap.
  static constexpr size_t kGroup = 32;

  const std::string& name_;
  Vocabulary& vocabulary_;
  File& file_;
  std::string key_;  // of a string with escapes
  std::string_view merges_text_;
  size_t file_bytes_ = 0;
};

// A member that is absent or null reads as `fallback`.
bool flag(const Json& object, std::string_view key, bool fallback) {
  const Json* value = object.find(key);
  return value && !value->is_null() ? value->as_bool() : fallback;
}

bool is_set(const Json* value) {
  return value && !value->is_null();
}

void check_model_options(const File& file, const std::string& name) {
  const Json& model = file.model;
  const Json* type = model.find("type");
  const std::string expected = file.is_unigram ? "Unigram" : "BPE";
  if (is_set(type) && type->as_string() != expected) {
    refuse_step("model " + type->as_string(), name);
  }
  if (!file.has_vocabulary || (!file.is_unigram && !file.has_merges)) {
    fail(ExitCode::kData, std::string("model has no ") + (file.has_vocabulary ? "merges" : "vocab"),
         name);
  }
  const Json* dropout = model.find("dropout");
  if (is_set(dropout) && dropout->as_double() != 0.0) refuse_step("model.dropout", name);
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = model.find(key);
    if (is_set(value) && !value->as_string().empty()) {
      refuse_step("model." + std::string(key), name);
    }
  }
}

void make_unigram(File& file, const std::string& name, Tokenizer::Parts& parts) {
  UnigramModel::Rules rules;
  rules.byte_fallback = flag(file.model, "byte_fallback", false);
  if (const Json* unk = file.model.find("unk_id"); is_set(unk)) {
    const int64_t id = unk->as_int();
    if (!parts.vocabulary->has(id)) {
      fail(ExitCode::kData, "model.unk_id " + std::to_string(id) + " is not in the vocabulary",
           name);
    }
    rules.unk = static_cast<int32_t>(id);
    parts.unk = rules.unk;
  }
  parts.unigram =
      std::make_shared<UnigramModel>(parts.vocabulary, std::move(file.scores), rules, name);
}

void make_bpe(File& file, const std::string& name, bool is_byte_level, Tokenizer::Parts& parts) {
  BpeRules rules;
  rules.byte_level = is_byte_level;
  rules.ignore_merges = flag(file.model, "ignore_merges", false);
  rules.byte_fallback = flag(file.model, "byte_fallback", false);
  rules.fuse_unk = flag(file.model, "fuse_unk", false);
  if (const Json* unk = file.model.find("unk_token"); is_set(unk)) {
    rules.unk = parts.vocabulary->find(unk->as_string());
    if (rules.unk < 0) {
      fail(ExitCode::kData, "unk_token \"" + unk->as_string() + "\" is not in the vocabulary",
           name);
    }
    parts.unk = rules.unk;
  }
  if (!is_byte_level) {
    if (rules.ignore_merges) refuse_step("model.ignore_merges without ByteLevel", name);
    take_space_rules(parts, rules);
  }
  parts.bpe = std::make_shared<BpeModel>(parts.vocabulary, std::move(file.merges), rules, name);
}

void read_added_tokens(const Json* added, Tokenizer::Parts& parts) {
  if (!is_set(added)) return;
  for (const Json& item : added->as_array()) {
    const int64_t id = item.at("id").as_int();
    // Refuses ids that AddedToken cannot hold.
    parts.vocabulary->add(item.at("content").as_string(), id, parts.name);
    parts.add_added_token({.id = static_cast<int32_t>(id),
                           .content = item.at("content").as_string(),
                           .special = flag(item, "special", false),
                           .normalized = flag(item, "normalized", true),
                           .lstrip = flag(item, "lstrip", false),
                           .rstrip = flag(item, "rstrip", false),
                           .single_word = flag(item, "single_word", false)});
  }
}

}  // namespace

void read_tokenizer_json(std::string_view text, const std::string& name, Tokenizer::Parts& parts) {
  File file;
  if (!is_valid_utf8(text)) fail(ExitCode::kData, "a tokenizer.json must be UTF-8", name);
  Reader(name, *parts.vocabulary, file).read(text);
  check_model_options(file, name);
  read_normalizer(file.root.find("normalizer"), name, parts);
  const bool is_byte_level = read_pre_tokenizer(file.root.find("pre_tokenizer"), name, parts);
  read_decoder(file.root.find("decoder"), name, parts.decoding);
  if (file.is_unigram) {
    make_unigram(file, name, parts);
  } else {
    make_bpe(file, name, is_byte_level, parts);
  }
  read_added_tokens(file.root.find("added_tokens"), parts);
  read_post_processor(file.root.find("post_processor"), name, parts);
}

}  // namespace graft::data
