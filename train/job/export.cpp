#include "train/job/export.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

Json file_sizes(const std::string& directory) {
  Json sizes = Json::object();
  for (const std::string& name : list_directory(directory)) {
    sizes.set(name, file_size(join_path(directory, name)));
  }
  return sizes;
}

// Digest of the logits of the first documents, a chunk of rows at a time: with a vocabulary of 128k
// the logits themselves would take gigabytes.
uint64_t digest_logits(Model& model, Decoder& decoder, const data::TokenStore& store) {
  Batch batch;
  batch.clear();
  for (int64_t document = 0; document < store.document_count(); ++document) {
    if (batch.tokens() + store.length(document) > decoder.max_tokens()) {
      break;
    }
    batch.add(store.tokens(document), store.loss(document), store.weights(), 0);
  }
  const float* residual = decoder.forward(batch, 0);
  constexpr int64_t kRows = 256;
  std::vector<float> logits(static_cast<size_t>(kRows * model.config.vocab_size));
  uint64_t digest = 0;
  for (int64_t begin = 0; begin < batch.tokens(); begin += kRows) {
    const int64_t rows = std::min(kRows, batch.tokens() - begin);
    decoder.head_logits(residual + begin * model.config.hidden_size, rows, logits.data());
    const auto bytes = static_cast<size_t>(rows * model.config.vocab_size) * sizeof(float);
    digest = xxh3_64({reinterpret_cast<const char*>(logits.data()), bytes}, digest);
  }
  return digest;
}

// Puts the pairs that were read back from `directory` into the model and compares its logits. The
// trained pairs go first: one that the files lack must not pass for one that was read.
void check_reload(Model& model,
                  Decoder& decoder,
                  const data::TokenStore& store,
                  const std::string& directory) {
  const uint64_t trained = digest_logits(model, decoder, store);
  for (Linear* const linear : model.linears()) linear->lora.rank = 0;
  load_adapter(model, directory);
  if (digest_logits(model, decoder, store) != trained) {
    fail(ExitCode::kBug, "the adapter read back from its files gives other logits", directory,
         "please report this; the checkpoints of the run are good");
  }
}

}  // namespace

Json export_result(Model& model,
                   const TrainConfig& config,
                   Decoder& decoder,
                   const data::TokenStore& store,
                   const std::string& output_dir) {
  const bool full = config.method == Method::kFull;
  const std::string target = join_path(output_dir, full ? "model" : "adapter");
  const std::string temporary = join_path(output_dir, full ? ".tmp-model" : ".tmp-adapter");
  remove_tree(temporary);
  Json result = Json::object({{"directory", target}});
  if (full) {
    save_model(model, config.base_model, temporary);
    result.set("sha256", sha256_file(join_path(temporary, "model.safetensors")));
  } else {
    result.set("sha256", save_adapter(model, config.lora, base_name(config.base_model), temporary));
    check_reload(model, decoder, store, temporary);
    result.set("reload", "logits equal");
  }
  remove_tree(target);
  rename_path(temporary, target);
  result.set("files", file_sizes(target));
  return result;
}

}  // namespace graft::train
