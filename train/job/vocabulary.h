// The vocabulary of a run: its base's, with the tokens of new_tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/job/config.h"
#include "train/job/dataset.h"
#include "train/model/config.h"

namespace graft::train {

// The base's config with room for new_tokens (train/model/new_tokens.h). Errors: those of
// read_model_config and load_model_text; kUsage for a token that the base has already, or whose
// text the base's tokenizer reads as nothing.
ModelConfig run_model_config(const TrainConfig& config);

// Tokenizer and template of the base; with new_tokens those with the tokens, whose files are
// written to `directory` (data/text/extend_tokenizer.h) and read from there. `vocab_size`: of
// run_model_config. Errors: kIo, kData.
ModelText load_run_text(const TrainConfig& config,
                        int64_t vocab_size,
                        const std::string& directory);

// How often each of new_tokens stands in a store that was made with them. One that never does is
// not learnt.
std::vector<int64_t> count_new_tokens(const ModelConfig& model, const data::TokenStore& store);

}  // namespace graft::train
