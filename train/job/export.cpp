#include "train/job/export.h"

#include "core/error.h"
#include "core/file.h"

namespace graft::train {
namespace {

Json file_sizes(const std::string& directory) {
  Json sizes = Json::object();
  for (const std::string& name : list_directory(directory)) {
    sizes.set(name, file_size(join_path(directory, name)));
  }
  return sizes;
}

// Puts a finished temporary directory in the place of `target`.
void replace_directory(const std::string& temporary, const std::string& target) {
  remove_tree(target);
  rename_path(temporary, target);
}

}  // namespace

Json export_result(Model& model,
                   const TrainConfig& config,
                   Decoder& decoder,
                   const data::TokenStore& store,
                   const std::string& output_dir) {
  (void)decoder;
  (void)store;
  const bool full = config.method == Method::kFull;
  const std::string target = join_path(output_dir, full ? "model" : "adapter");
  const std::string temporary = join_path(output_dir, full ? ".tmp-model" : ".tmp-adapter");
  remove_tree(temporary);
  save_model(model, config.base_model, temporary);
  replace_directory(temporary, target);
  return Json::object({{"directory", target}, {"files", file_sizes(target)}});
}

}  // namespace graft::train
