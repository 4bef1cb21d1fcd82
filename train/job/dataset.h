// Record files as a token store of the run, made once and reused while nothing changed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/text/template.h"
#include "data/text/token_store.h"
#include "data/text/tokenize.h"
#include "data/text/tokenizer.h"

namespace graft::train {

struct ModelText {
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::optional<data::ChatTemplate> chat;  // absent when the model has no template
  std::string directory;                   // that both were read from
  const data::ChatTemplate* chat_or_null() const { return chat ? &*chat : nullptr; }
};

// Tokenizer and template of a model directory. Errors: kIo, kData (a vocabulary larger than the
// model's `vocab_size`).
ModelText load_model_text(const std::string& model_dir, int64_t vocab_size);

struct PreparedStore {
  data::TokenStore store;
  bool reused = false;
  data::TokenizeSummary summary;  // counts; empty when reused
};

// Opens `path` when it holds these files under these options, else tokenizes them into it.
// `mappings`: as TokenizeInput's. Errors: kIo, kData, kUsage.
PreparedStore prepare_store(const std::vector<std::string>& files,
                            const std::vector<data::FieldMapping>& mappings,
                            const ModelText& text,
                            const data::MaskOptions& options,
                            const std::string& path,
                            int threads);

}  // namespace graft::train
