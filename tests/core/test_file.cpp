#include <string>

#include <catch2/catch.hpp>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "tests/support/support.h"

using graft::test::TempDir;

namespace {

// Runs `body` in a child whose files may hold at most `bytes`; returns its exit code.
template <typename Body>
int with_file_limit(rlim_t bytes, Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::close(STDERR_FILENO);
    ::_exit(graft::run_main([&] {
      body();
      return 0;
    }));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

TEST_CASE("file: an atomic write gives the whole content and its digest", "[core][file]") {
  const TempDir dir;
  const std::string path = dir.file("a.txt");
  const std::string content(3'000'000, 'x');
  CHECK(graft::write_file_atomically(path, content) == graft::sha256_hex(content));
  CHECK(graft::read_file(path) == content);
  CHECK(graft::list_directory(dir.path()) == std::vector<std::string>{"a.txt"});
}

TEST_CASE("file: an atomic file that is not committed changes nothing", "[core][file]") {
  const TempDir dir;
  const std::string path = dir.file("a.txt");
  graft::write_file_atomically(path, "old");
  {
    graft::AtomicFile file(path);
    file.write("new");
  }
  CHECK(graft::read_file(path) == "old");
  CHECK(graft::list_directory(dir.path()).size() == 1);
}

TEST_CASE("file: a full disk is exit 74 and the old file stays", "[core][file]") {
  const TempDir dir;
  const std::string path = dir.file("a.txt");
  graft::write_file_atomically(path, "old");
  CHECK(with_file_limit(
            1 << 20, [&] { graft::write_file_atomically(path, std::string(2 << 20, 'x')); }) == 74);
  CHECK(graft::read_file(path) == "old");
  CHECK(graft::list_directory(dir.path()).size() == 1);
}

TEST_CASE("file: reading what is not there names the path", "[core][file]") {
  CHECK_THROWS_WITH(graft::read_file("/nonexistent/x"), Catch::Contains("/nonexistent/x"));
  CHECK_THROWS_WITH(graft::MappedFile("/nonexistent/x"), Catch::Contains("No such file"));
  CHECK_THROWS_AS(graft::MappedFile("/tmp"), graft::Error);
}

TEST_CASE("file: an append log keeps what was there and can be shortened", "[core][file]") {
  const TempDir dir;
  const std::string path = dir.file("log");
  graft::AppendFile(path).append("one\n");
  graft::AppendFile(path).append("two\n");
  CHECK(graft::read_file(path) == "one\ntwo\n");
  graft::AppendFile(path, 4).append("three\n");
  CHECK(graft::read_file(path) == "one\nthree\n");
}

TEST_CASE("file: a directory lock holds off a second process", "[core][file]") {
  const TempDir dir;
  const graft::DirectoryLock lock(dir.path());
  CHECK_THROWS_WITH(graft::DirectoryLock(dir.path()), Catch::Contains("another process"));
}

TEST_CASE("file: paths are joined and split", "[core][file]") {
  CHECK(graft::join_path("a", "b") == "a/b");
  CHECK(graft::join_path("a/", "b") == "a/b");
  CHECK(graft::join_path("a", "/b") == "/b");
  CHECK(graft::base_name("a/b/") == "b");
  CHECK(graft::base_name("b") == "b");
  CHECK(graft::directory_name("a/b") == "a");
  CHECK(graft::directory_name("b") == ".");
  CHECK(graft::directory_name("/b") == "/");
}
