#include "train/job/scratch.h"

#include <filesystem>

#include <unistd.h>

#include "core/error.h"

namespace graft::train {

ScratchDirectory::ScratchDirectory() {
  path_ = (std::filesystem::temp_directory_path() / "graft-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) {
    fail_io("cannot create a temporary directory", path_, "set TMPDIR to a writable directory");
  }
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code code;
  std::filesystem::remove_all(path_, code);
}

}  // namespace graft::train
