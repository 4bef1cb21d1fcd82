#include "core/file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/error.h"
#include "core/hash.h"

namespace graft {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

[[noreturn]] void fail_write(const std::string& path, size_t bytes) {
  const int number = errno;
  std::string fix = "free some space or choose another place";
  struct statvfs space {};
  if (::statvfs(directory_name(path).c_str(), &space) == 0) {
    fix += " (" + std::to_string(space.f_bavail * space.f_frsize) + " bytes free)";
  }
  errno = number;
  fail_io("cannot write " + std::to_string(bytes) + " bytes", path, fix);
}

void write_fully(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail_write(path, bytes.size());
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

bool stat_path(const std::string& path, struct stat& info) {
  return ::stat(path.c_str(), &info) == 0;
}

}  // namespace

std::string read_file(const std::string& path, int64_t max_bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    fail_io("cannot read the file", path, "check the path");
  }
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail_io("cannot read the file", path, "check the path");
    }
    if (count == 0) {
      return content;
    }
    content.append(buffer, static_cast<size_t>(count));
    if (static_cast<int64_t>(content.size()) > max_bytes) {
      fail(ExitCode::kData, "file larger than " + std::to_string(max_bytes) + " bytes", path);
    }
  }
}

bool file_exists(const std::string& path) {
  struct stat info {};
  return stat_path(path, info) && S_ISREG(info.st_mode);
}

bool directory_exists(const std::string& path) {
  struct stat info {};
  return stat_path(path, info) && S_ISDIR(info.st_mode);
}

int64_t file_size(const std::string& path) {
  struct stat info {};
  if (!stat_path(path, info)) {
    fail_io("cannot read the file", path, "check the path");
  }
  return info.st_size;
}

void make_directories(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code || !directory_exists(path)) {
    fail(ExitCode::kIo, "cannot create the directory: " + code.message(), path,
         "choose another place or correct its permissions");
  }
}

std::vector<std::string> list_directory(const std::string& path) {
  std::error_code code;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator it(path, code), end; !code && it != end;
       it.increment(code)) {
    names.push_back(it->path().filename().string());
  }
  if (code) {
    fail(ExitCode::kIo, "cannot list the directory: " + code.message(), path, "check the path");
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string join_path(std::string_view directory, std::string_view name) {
  if (directory.empty() || (!name.empty() && name.front() == '/')) {
    return std::string(name);
  }
  std::string path(directory);
  if (path.back() != '/') {
    path += '/';
  }
  return path += name;
}

std::string base_name(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') {
    path.remove_suffix(1);
  }
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string directory_name(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) {
    return ".";
  }
  return std::string(slash == 0 ? "/" : path.substr(0, slash));
}

void remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    fail_io("cannot remove the file", path);
  }
}

void remove_tree(const std::string& path) {
  std::error_code code;
  std::filesystem::remove_all(path, code);
  if (code) {
    fail(ExitCode::kIo, "cannot remove the directory: " + code.message(), path);
  }
}

void sync_directory(const std::string& path) {
  const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0 || (::fsync(directory.get()) != 0 && errno != EINVAL)) {
    fail_io("cannot sync the directory", path);
  }
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail_io("cannot rename " + from, to);
  }
  sync_directory(directory_name(to));
}

PositionedFile::PositionedFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  struct stat info {};
  if (fd_ < 0 || ::fstat(fd_, &info) != 0) {
    fail_io("cannot read the file", path, "check the path");
  }
  if (!S_ISREG(info.st_mode)) {
    fail(ExitCode::kIo, "not a regular file", path, "check the path");
  }
  size_ = info.st_size;
}

PositionedFile::~PositionedFile() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

void PositionedFile::read(int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(fd_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      fail_io("cannot read the file", path_);
    }
    if (count == 0) {
      fail(ExitCode::kIo,
           "the file ends at byte " + std::to_string(offset) + ", it had " + std::to_string(size_) +
               " bytes when it was opened",
           path_, "something else changes the file; wait for it, or fetch the file again");
    }
    out = out.subspan(static_cast<size_t>(count));
    offset += count;
  }
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (file.get() < 0 || ::fstat(file.get(), &info) != 0) {
    fail_io("cannot read the file", path, "check the path");
  }
  if (!S_ISREG(info.st_mode)) {
    fail(ExitCode::kIo, "not a regular file", path, "check the path");
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) {
    return;
  }
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) {
    fail_io("cannot map the file", path);
  }
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string_view MappedFile::text() const {
  return {reinterpret_cast<const char*>(data_), size_};
}

struct AtomicFile::State {
  static constexpr size_t kBufferBytes = size_t{1} << 20;

  explicit State(std::string target)
      : path(std::move(target)),
        temporary(path + ".tmp-" + std::to_string(::getpid())),
        file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (file.get() < 0) {
      fail_io("cannot create the file", path, "choose another place or correct its permissions");
    }
    buffer.reserve(kBufferBytes);
  }

  void flush() {
    hash.update(buffer);
    write_fully(file.get(), buffer, path);
    buffer.clear();
  }

  std::string path;
  std::string temporary;
  Descriptor file;
  std::string buffer;
  int64_t bytes = 0;
  Sha256 hash;
  bool committed = false;
};

AtomicFile::AtomicFile(std::string path) : state_(std::make_unique<State>(std::move(path))) {}

AtomicFile::~AtomicFile() {
  if (state_ && !state_->committed) {
    ::unlink(state_->temporary.c_str());
  }
}

void AtomicFile::write(std::string_view text) {
  state_->bytes += static_cast<int64_t>(text.size());
  while (!text.empty()) {
    const size_t room = State::kBufferBytes - state_->buffer.size();
    const size_t take = std::min(room, text.size());
    state_->buffer.append(text.substr(0, take));
    text.remove_prefix(take);
    if (state_->buffer.size() == State::kBufferBytes) {
      state_->flush();
    }
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

int64_t AtomicFile::bytes_written() const {
  return state_->bytes;
}

std::string AtomicFile::commit() {
  state_->flush();
  // Errors of delayed writes (quota, network file systems) surface at fsync and close.
  if (::fsync(state_->file.get()) != 0 || ::close(state_->file.release()) != 0) {
    fail_write(state_->path, static_cast<size_t>(state_->bytes));
  }
  rename_path(state_->temporary, state_->path);
  state_->committed = true;
  return state_->hash.hex_digest();
}

std::string write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  return file.commit();
}

AppendFile::AppendFile(std::string path, int64_t keep_bytes)
    : path_(std::move(path)),
      fd_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (fd_ < 0) {
    fail_io("cannot open the file for writing", path_);
  }
  if (keep_bytes >= 0 && keep_bytes < file_size(path_) && ::ftruncate(fd_, keep_bytes) != 0) {
    ::close(fd_);
    fail_io("cannot shorten the file", path_);
  }
  size_ = file_size(path_);
}

AppendFile::~AppendFile() {
  ::close(fd_);
}

void AppendFile::append(std::string_view lines) {
  write_fully(fd_, lines, path_);
  size_ += static_cast<int64_t>(lines.size());
}

void AppendFile::sync() {
  if (::fsync(fd_) != 0) {
    fail_write(path_, 0);
  }
}

DirectoryLock::DirectoryLock(const std::string& directory) {
  const std::string path = join_path(directory, ".lock");
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) {
    fail_io("cannot create the lock file", path);
  }
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    char owner[32] = {};
    const ssize_t count = ::pread(fd_, owner, sizeof owner - 1, 0);
    ::close(fd_);
    fail(ExitCode::kUsage,
         "another process" + (count > 0 ? " (" + std::string(owner) + ")" : std::string()) +
             " is using this directory",
         directory, "wait for it, or choose another directory");
  }
  const std::string text = "process " + std::to_string(::getpid());
  if (::ftruncate(fd_, 0) != 0 ||
      ::pwrite(fd_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    ::close(fd_);
    fail_write(path, text.size());
  }
}

DirectoryLock::~DirectoryLock() {
  ::close(fd_);
}

}  // namespace graft
