// Tokens that a run adds to its base: tables with more rows, how these begin, and their training.
//
// The tables are the embedding and, where it is not tied to it, the head. A new row begins as the
// mean of the rows that its text had before. Only the new rows are trained, in float32 masters
// apart from the table, which may be bfloat16; a table that lora_modules_to_save names is trained
// whole instead, with its new rows. In the adapter's files they are PEFT's trainable_token_indices.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "adapters/peft.h"
#include "train/model/model.h"

namespace graft::train {

// Makes room in a checkpoint's config for tokens with the ids from `first` on; a vocabulary that is
// padded beyond them keeps its size. `pieces`: for each token what its text was before, at least
// one id below `first`.
void add_tokens(ModelConfig& config, int64_t first, std::vector<std::vector<int32_t>> pieces);

// The rows of the added tokens as they begin, in tables whose other rows are there.
void begin_rows(Model& model);

// Makes masters and gradients of the rows of each table that is not trained whole, and the masters
// part of Model::trained. Of a model without weights they are not filled.
void train_rows(Model& model);

// Brings the tables to the present masters, rounded where a table is bfloat16.
void refresh_rows(Model& model);

// Zeroes the rows of the added tokens in the tables.
void clear_rows(Model& model);

// The rows as an adapter's file has them.
std::vector<adapters::TokenRowsView> row_views(const Model& model);

// Puts an adapter's tables of modules_to_save and its rows into the model, whose vocabulary grows
// where they have more rows. `file` names the adapter in errors. Errors: kData for a table that the
// model lacks, another width, and new rows that the adapter has only in part.
void load_tables(Model& model, const adapters::Adapter& adapter, const std::string& file);

}  // namespace graft::train
