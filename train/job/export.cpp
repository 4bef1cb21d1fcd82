#include "train/job/export.h"

#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"

namespace graft::train {
namespace {

Json file_sizes(const std::string& directory) {
  Json sizes = Json::object();
  for (const std::string& name : list_directory(directory)) {
    sizes.set(name, file_size(join_path(directory, name)));
  }
  return sizes;
}

std::vector<float> first_logits(Model& model, Decoder& decoder, const data::TokenStore& store) {
  Batch batch;
  batch.clear();
  for (int64_t document = 0; document < store.document_count(); ++document) {
    if (batch.tokens() + store.length(document) > decoder.max_tokens()) {
      break;
    }
    batch.add(store.tokens(document), store.loss(document), store.weights(), 0);
  }
  std::vector<float> logits(static_cast<size_t>(batch.tokens() * model.config.vocab_size));
  decoder.head_logits(decoder.forward(batch, 0), batch.tokens(), logits.data());
  return logits;
}

// Puts the pairs that were read back from `directory` into the model and compares its logits.
void check_reload(Model& model,
                  Decoder& decoder,
                  const data::TokenStore& store,
                  const std::string& directory) {
  const std::vector<float> trained = first_logits(model, decoder, store);
  load_adapter(model, directory);
  const std::vector<float> reloaded = first_logits(model, decoder, store);
  if (trained.size() != reloaded.size() ||
      std::memcmp(trained.data(), reloaded.data(), trained.size() * sizeof(float)) != 0) {
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
    result.set("sha256",
               save_adapter(model, config.lora, base_name(config.base_model), temporary));
    check_reload(model, decoder, store, temporary);
    result.set("reload", "logits equal");
  }
  remove_tree(target);
  rename_path(temporary, target);
  result.set("files", file_sizes(target));
  return result;
}

}  // namespace graft::train
