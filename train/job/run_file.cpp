#include "train/job/run_file.h"

#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace graft::train {
namespace {

// "lora_r: 8 there, 16 now" for each key that differs.
std::string differences(const Json& before, const Json& now) {
  std::string text;
  for (const auto& [key, value] : now.as_object()) {
    const Json* old = before.find(key);
    if (decides_result(key) && (old == nullptr || !(*old == value))) {
      text += (text.empty() ? "" : ", ") + key + ": " +
              (old == nullptr ? "absent" : dump_json(*old)) + " there, " + dump_json(value) +
              " now";
    }
  }
  return text;
}

void refuse_foreign_files(const std::string& directory) {
  for (const std::string& name : list_directory(directory)) {
    if (name[0] != '.' && name.find(".tmp-") == std::string::npos) {
      fail(ExitCode::kUsage,
           "the output directory holds \"" + name + "\" but no run of graft (no run.json)",
           directory, "choose an empty or new output_dir; nothing was changed");
    }
  }
}

}  // namespace

RunFile::RunFile(const std::string& directory) : path_(join_path(directory, "run.json")) {
  if (file_exists(path_)) content_ = read_json_file(path_);
}

void RunFile::write(Json content) {
  content_ = std::move(content);
  write_file_atomically(path_, dump_json(content_, {.indent = 2}) + "\n");
}

void check_output_directory(const TrainConfig& config, const RunFile& run_file) {
  if (!run_file.exists()) {
    if (directory_exists(config.output_dir)) refuse_foreign_files(config.output_dir);
    return;
  }
  if (run_file.preparing()) return;
  const Json& before = run_file.content();
  if (before.at("config_digest").as_string() == config_digest(config)) return;
  fail(ExitCode::kUsage,
       "the output directory holds a run of another config (" +
           differences(before.at("config"), config_to_json(config)) + ")",
       run_file.path(), "choose another output_dir; nothing was changed");
}

}  // namespace graft::train
