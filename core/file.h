// Files that are either whole or absent.
//
// Everything graft writes goes to a temporary name in the same directory, is synced, and is renamed
// into place. Every failed read, write, sync or close is an error (exit 74) that names the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

// The whole file as bytes. Errors: kIo (missing, unreadable, larger than max_bytes).
std::string read_file(const std::string& path, int64_t max_bytes = int64_t{1} << 40);
bool file_exists(const std::string& path);
bool directory_exists(const std::string& path);
int64_t file_size(const std::string& path);                        // Errors: kIo
void make_directories(const std::string& path);                    // Errors: kIo
std::vector<std::string> list_directory(const std::string& path);  // sorted names. Errors: kIo
std::string join_path(std::string_view directory, std::string_view name);
std::string base_name(std::string_view path);
std::string directory_name(std::string_view path);  // "." when there is none
void remove_file(const std::string& path);          // absent is fine. Errors: kIo
void remove_tree(const std::string& path);          // absent is fine. Errors: kIo
void rename_path(const std::string& from,
                 const std::string& to);  // and syncs the parent. Errors: kIo
void sync_directory(const std::string& path);

// A read-only mapping of a whole file. An empty file gives an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // Errors: kIo
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A file that is read at any place without being mapped: memory does not follow its size, and a
// file that is cut short meanwhile is an error, not a signal.
class PositionedFile {
 public:
  explicit PositionedFile(const std::string& path);  // Errors: kIo
  ~PositionedFile();
  PositionedFile(const PositionedFile&) = delete;
  PositionedFile& operator=(const PositionedFile&) = delete;
  // Fills `out` with the bytes from `offset` on. Errors: kIo (also when the file ends before).
  void read(int64_t offset, std::span<std::byte> out) const;
  int64_t size() const { return size_; }  // when it was opened
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

// Writes a file atomically: `<path>.tmp-<pid>` until commit(), which flushes, syncs, renames and
// syncs the directory. Destroyed without commit, it removes the temporary file and leaves `path`
// as it was. Buffered; keeps the SHA-256 of what was written.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  // Errors: kIo
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::string_view text);
  void write(std::span<const std::byte> bytes);
  int64_t bytes_written() const;
  // Returns the SHA-256 (hex) of the content.
  std::string commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// One call for small files. Returns the SHA-256 of the content.
std::string write_file_atomically(const std::string& path, std::string_view content);

// A log that survives kill -9: opened for append, each append is one write(2) of whole lines.
class AppendFile {
 public:
  // Truncates to `keep_bytes` first when it is not negative.
  explicit AppendFile(std::string path, int64_t keep_bytes = -1);  // Errors: kIo
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  void append(std::string_view lines);
  int64_t size() const { return size_; }
  void sync();

 private:
  std::string path_;
  int fd_;
  int64_t size_;
};

// Exclusive lock on a directory's `.lock` file, released at process end whatever happens.
// Errors: kUsage when another process holds it (names the process id), kIo.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int fd_;
};

}  // namespace graft
