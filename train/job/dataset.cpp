#include "train/job/dataset.h"

#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"

namespace graft::train {

ModelText load_model_text(const std::string& model_dir, int64_t vocab_size) {
  ModelText text;
  text.tokenizer = data::load_tokenizer(model_dir);
  text.chat = data::ChatTemplate::load(model_dir);
  text.directory = model_dir;
  if (text.tokenizer->vocab_size() > vocab_size) {
    fail(ExitCode::kData,
         "the tokenizer has " + std::to_string(text.tokenizer->vocab_size()) +
             " tokens, the model only " + std::to_string(vocab_size),
         model_dir, "use the tokenizer that belongs to the model");
  }
  return text;
}

PreparedStore prepare_store(const std::vector<std::string>& files,
                            const std::vector<data::FieldMapping>& mappings,
                            const ModelText& text,
                            const data::MaskOptions& options,
                            const std::string& path,
                            int threads) {
  const data::TokenizeInput input = {files, mappings, text.tokenizer.get(), text.chat_or_null(),
                                     text.directory};
  const Json settings = data::tokenize_settings(input, options);
  if (file_exists(path) && file_exists(path + ".json")) {
    try {
      data::TokenStore store = data::TokenStore::open(path);
      if (store.digest() == data::store_digest(settings)) {
        return {std::move(store), true, {}};
      }
    } catch (const Error&) {
      // A damaged store is made again.
    }
  }
  data::TokenizeOptions tokenize;
  tokenize.mask = options;
  tokenize.out = path;
  tokenize.threads = threads;
  int64_t total_bytes = 0;
  for (const std::string& file : files) {
    total_bytes += file_size(file);
  }
  Progress progress("tokenize", total_bytes, "bytes");
  data::TokenizeSummary summary = data::tokenize_files(
      input, settings, tokenize, [&](int64_t done, int64_t) { progress.update(done); });
  return {data::TokenStore::open(path), false, std::move(summary)};
}

}  // namespace graft::train
