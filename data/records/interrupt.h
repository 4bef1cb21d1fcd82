// What a half-written output leaves behind when the process is told to stop.
#pragma once

#include <csignal>
#include <cstddef>
#include <string>

namespace graft::data {

enum class Leftover {
  kFile,
  kFolder,       // removed with the files in it
  kEmptyFolder,  // removed only when nothing is left in it
};

// While it lives, SIGINT, SIGTERM and SIGHUP remove the path before they end the process; the
// latest path goes first. A signal that the process ignores (nohup) stays ignored. At most 64 live
// at once; more are not removed. The path itself is not touched here: name it before creating it.
class RemoveIfStopped {
 public:
  RemoveIfStopped(const std::string& path, Leftover kind);
  ~RemoveIfStopped();
  RemoveIfStopped(const RemoveIfStopped&) = delete;
  RemoveIfStopped& operator=(const RemoveIfStopped&) = delete;

 private:
  size_t slot_;
};

// Delays those signals of the calling thread to the end of the scope: for steps that must happen
// together or not at all.
class HoldSignals {
 public:
  HoldSignals();
  ~HoldSignals();
  HoldSignals(const HoldSignals&) = delete;
  HoldSignals& operator=(const HoldSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace graft::data
