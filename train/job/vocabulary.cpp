#include "train/job/vocabulary.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/text/extend_tokenizer.h"
#include "train/model/new_tokens.h"

namespace graft::train {
namespace {

void check_token(const data::NewToken& token,
                 size_t index,
                 int64_t first,
                 const std::string& base) {
  const std::string where = "new_tokens[" + std::to_string(index) + "]";
  if (!token.is_new) {
    fail(ExitCode::kUsage,
         "the vocabulary of " + base + " has \"" + token.content + "\" already, as token " +
             std::to_string(token.id),
         where, "leave it out; lora_modules_to_save: [embed_tokens, lm_head] trains its row");
  }
  if (std::any_of(token.pieces.begin(), token.pieces.end(),
                  [&](int32_t piece) { return piece >= first; })) {
    fail(ExitCode::kUsage,
         "the tokenizer of " + base + " reads \"" + token.content +
             "\" as nothing: there is no row that it could begin as",
         where, "choose a text that the base's tokenizer can read");
  }
}

}  // namespace

Vocabulary read_vocabulary(const TrainConfig& config) {
  ModelConfig model = read_model_config(config.base_model);
  if (config.new_tokens.empty()) return {std::move(model), nullptr};
  ModelText text = load_model_text(config.base_model, model.vocab_size);
  const std::vector<data::NewToken> tokens =
      data::new_tokens_of(*text.tokenizer, config.new_tokens);
  const int64_t first = text.tokenizer->vocab_size();
  std::vector<std::vector<int32_t>> pieces;
  for (size_t i = 0; i < tokens.size(); ++i) {
    check_token(tokens[i], i, first, config.base_model);
    if (tokens[i].id != first + static_cast<int64_t>(i)) {
      fail(ExitCode::kBug, "new tokens have ids that do not follow each other", tokens[i].content);
    }
    pieces.push_back(tokens[i].pieces);
  }
  add_tokens(model, first, std::move(pieces));
  return {std::move(model), std::move(text.tokenizer)};
}

ModelText load_run_text(const TrainConfig& config,
                        const Vocabulary& vocabulary,
                        const std::string& directory) {
  const int64_t vocab_size = vocabulary.model.vocab_size;
  if (vocabulary.base == nullptr) return load_model_text(config.base_model, vocab_size);
  data::extend_tokenizer_files(*vocabulary.base, config.base_model, config.new_tokens, directory);
  return load_model_text(directory, vocab_size);
}

std::vector<int64_t> count_new_tokens(const ModelConfig& model, const data::TokenStore& store) {
  std::vector<int64_t> counts(model.added.pieces.size(), 0);
  if (counts.empty()) return counts;
  for (int64_t document = 0; document < store.document_count(); ++document) {
    for (const int32_t id : store.tokens(document)) {
      const int64_t token = id - model.added.first;
      if (token >= 0 && token < model.added.count()) ++counts[static_cast<size_t>(token)];
    }
  }
  return counts;
}

}  // namespace graft::train
