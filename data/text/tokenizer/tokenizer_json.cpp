// tokenizer.json of Hugging Face `tokenizers`.
//
// The vocabulary and the merges are nearly all of the file: they are read in one pass into flat
// tables. Everything else is small and goes through the tree of core/json.h.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "core/error.h"
#include "data/text/json_scanner.h"
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
    file_begin_ = text.data();
    file_end_ = text.data() + text.size();
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
    JsonScanner merges(merges_text_, name_ + ": model.merges");
    read_merges(merges);
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
          read_merges(scanner);
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
    const auto size = static_cast<size_t>(file_end_ - file_begin_);
    vocabulary_.reserve(std::min(size_t{1} << 17, size / 60), std::min(size_t{1} << 20, size));
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

  // Tokens and merges are looked up in groups, so that the cache misses of a group overlap.
  static constexpr size_t kGroup = 32;
  struct Merge {
    std::string_view left;
    std::string_view right;
    std::string_view whole;
    std::array<char, 32> short_whole;
    std::string long_whole;
    std::string buffers[2];
    uint64_t left_hash = 0;
    uint64_t right_hash = 0;
    uint64_t whole_hash = 0;
    int32_t left_id = -1;
    int32_t right_id = -1;
    int32_t whole_id = -1;
  };

  void read_merges(JsonScanner& scanner) {
    // From one (GPT-2) to 2.2 (Llama 3) merges a token in the known models.
    file_.merges.reserve(
        std::min(static_cast<size_t>(vocabulary_.count()) * 9 / 4, MergeTable::kMaxMerges));
    std::vector<Merge> group(kGroup);
    size_t count = 0;
    for (scanner.enter('['); scanner.next_item();) {
      Merge& merge = group[count];
      read_merge(scanner, merge);
      join(merge);
      merge.left_hash = hash_bytes(merge.left);
      merge.right_hash = hash_bytes(merge.right);
      merge.whole_hash = hash_bytes(merge.whole);
      vocabulary_.prefetch_entry(merge.left_hash);
      vocabulary_.prefetch_entry(merge.right_hash);
      vocabulary_.prefetch_entry(merge.whole_hash);
      if (++count == kGroup) {
        add_merges({group.data(), count});
        count = 0;
      }
    }
    add_merges({group.data(), count});
  }

  // Nearly every merge is of two short strings that stand in the file: 16 bytes of each are copied
  // whatever their sizes are.
  void join(Merge& merge) const {
    constexpr size_t kShort = 16;
    const auto is_short = [&](std::string_view part) {
      const bool is_in_file = part.data() >= file_begin_ && part.data() < file_end_;
      return part.size() <= kShort && is_in_file &&
             static_cast<size_t>(file_end_ - part.data()) >= kShort;
    };
    if (!is_short(merge.left) || !is_short(merge.right)) {
      merge.long_whole.assign(merge.left).append(merge.right);
      merge.whole = merge.long_whole;
      return;
    }
    std::memcpy(merge.short_whole.data(), merge.left.data(), kShort);
    std::memcpy(merge.short_whole.data() + merge.left.size(), merge.right.data(), kShort);
    merge.whole = {merge.short_whole.data(), merge.left.size() + merge.right.size()};
  }

  static void read_merge(JsonScanner& scanner, Merge& merge) {
    if (scanner.peek() == '[') {
      scanner.enter('[');
      if (!scanner.next_item()) scanner.refuse("a merge must be two tokens");
      merge.left = scanner.string(merge.buffers[0]);
      if (!scanner.next_item()) scanner.refuse("a merge must be two tokens");
      merge.right = scanner.string(merge.buffers[1]);
      if (scanner.next_item()) scanner.refuse("a merge must be two tokens");
      return;
    }
    const std::string_view text = scanner.string(merge.buffers[0]);
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      scanner.refuse("a merge must be two tokens apart by one space, got \"" + std::string(text) +
                     "\"");
    }
    merge.left = text.substr(0, space);
    merge.right = text.substr(space + 1);
  }

  void add_merges(std::span<Merge> merges) {
    for (const Merge& merge : merges) {
      vocabulary_.prefetch_token(merge.left_hash);
      vocabulary_.prefetch_token(merge.right_hash);
      vocabulary_.prefetch_token(merge.whole_hash);
    }
    for (Merge& merge : merges) {
      merge.left_id = vocabulary_.find(merge.left, merge.left_hash);
      merge.right_id = vocabulary_.find(merge.right, merge.right_hash);
      merge.whole_id = vocabulary_.find(merge.whole, merge.whole_hash);
      if (merge.left.empty() || merge.right.empty() || merge.left_id < 0 || merge.right_id < 0 ||
          merge.whole_id < 0) {
        fail(ExitCode::kData,
             "merge " + std::to_string(file_.merges.size()) + " (\"" + std::string(merge.left) +
                 "\", \"" + std::string(merge.right) +
                 "\") has a part or a result that is not in the vocabulary",
             name_);
      }
      file_.merges.prefetch(merge.left_id, merge.right_id);
    }
    if (file_.merges.size() + merges.size() > MergeTable::kMaxMerges) {
      fail(ExitCode::kData,
           "a model must have at most " + std::to_string(MergeTable::kMaxMerges) + " merges",
           name_);
    }
    for (const Merge& merge : merges) {
      file_.merges.add(merge.left_id, merge.right_id, merge.whole_id);
    }
  }

  const std::string& name_;
  Vocabulary& vocabulary_;
  File& file_;
  std::string key_;  // of a string with escapes
  std::string_view merges_text_;
  const char* file_begin_ = nullptr;
  const char* file_end_ = nullptr;
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
