// The vocabulary of a run: its base's, with the tokens of new_tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/job/config.h"
#include "train/job/dataset.h"
#include "train/model/config.h"

namespace graft::train {

struct Vocabulary {
  ModelConfig model;                      // the base's, with room for new_tokens (new_tokens.h)
  std::unique_ptr<data::Tokenizer> base;  // where there are new_tokens: the tokenizer without them
};

// Errors: those of read_model_config and load_model_text; kUsage for a token that the base has
// already, or whose text the base's tokenizer reads as nothing.
Vocabulary read_vocabulary(const TrainConfig& config);

// Tokenizer and template of the base; with new_tokens those with the tokens, whose files are
// written to `directory` (data/text/extend_tokenizer.h) and read from there. Errors: kIo, kData.
ModelText load_run_text(const TrainConfig& config,
                        const Vocabulary& vocabulary,
                        const std::string& directory);

// How often each of new_tokens stands in a store that was made with them. One that never does is
// not learnt.
std::vector<int64_t> count_new_tokens(const ModelConfig& model, const data::TokenStore& store);

}  // namespace graft::train
