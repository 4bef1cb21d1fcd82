// A directory that is removed at the end of the command.
#pragma once

#include <string>

namespace graft::train {

class ScratchDirectory {
 public:
  // Below $TMPDIR, else /tmp. Errors: kIo.
  ScratchDirectory();
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace graft::train
