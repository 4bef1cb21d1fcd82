// run.json: who an output directory belongs to.
#pragma once

#include <string>

#include "core/json.h"
#include "train/job/config.h"

namespace graft::train {

class RunFile {
 public:
  // Errors: kIo, kData (a file that is no JSON).
  explicit RunFile(const std::string& directory);
  bool exists() const { return content_.is_object(); }
  bool finished() const { return exists() && content_.at("status").as_string() == "finished"; }
  // Nothing was trained yet: the directory may still become another run's.
  bool preparing() const { return exists() && content_.at("status").as_string() == "preparing"; }
  const Json& content() const { return content_; }
  void write(Json content);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Json content_;
};

// Refuses an output directory with files of something else, or with a run of another config that
// has begun to train. Errors: kUsage.
void check_output_directory(const TrainConfig& config, const RunFile& run_file);

}  // namespace graft::train
