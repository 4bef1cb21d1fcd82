#include "tests/support/support.h"

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <iostream>

#include <catch2/catch.hpp>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

namespace graft::test {
namespace {

void drain(int& fd, std::string& text) {
  char buffer[1 << 16];
  const ssize_t count = ::read(fd, buffer, sizeof buffer);
  if (count > 0) {
    text.append(buffer, static_cast<size_t>(count));
  } else {
    ::close(fd);
    fd = -1;
  }
}

[[noreturn]] void become(const std::vector<std::string>& argv,
                         const std::vector<std::string>& environment) {
  for (const std::string& entry : environment) {
    const size_t equals = entry.find('=');
    ::setenv(entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str(), 1);
  }
  std::vector<std::string> words = argv;
  if (words[0].find('/') == std::string::npos) {
    words[0] = std::string(GRAFT_BIN_DIR) + "/" + words[0];
  }
  std::vector<char*> pointers;
  for (std::string& word : words) {
    pointers.push_back(word.data());
  }
  pointers.push_back(nullptr);
  ::execv(words[0].c_str(), pointers.data());
  std::_Exit(127);
}

}  // namespace

std::string source_path(std::string_view relative) {
  return std::string(GRAFT_SOURCE_DIR) + "/" + std::string(relative);
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "graft-test-XXXXXX").string();
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code code;
  std::filesystem::remove_all(path_, code);
}

std::string TempDir::file(std::string_view name) const {
  return path_ + "/" + std::string(name);
}

std::string shared_data() {
  const char* named = std::getenv("GRAFT_SHARED");
  const std::string path = named != nullptr ? named : source_path("../shared");
  if (std::filesystem::is_directory(path + "/data")) {
    return path;
  }
  const char* required = std::getenv("GRAFT_REQUIRE_SHARED");
  if (required != nullptr && std::strcmp(required, "1") == 0) {
    FAIL("GRAFT_REQUIRE_SHARED=1, but there is no test data at " << path);
  }
  std::cout << "SKIPPED: no test data at $GRAFT_SHARED or ../shared\n";
  return "";
}

double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

RunResult run(const std::vector<std::string>& argv,
              std::string_view standard_input,
              const std::vector<std::string>& environment) {
  int in[2];
  int out[2];
  int err[2];
  REQUIRE((::pipe2(in, O_CLOEXEC) == 0 && ::pipe2(out, O_CLOEXEC) == 0 &&
           ::pipe2(err, O_CLOEXEC) == 0));
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(in[0], STDIN_FILENO);
    ::dup2(out[1], STDOUT_FILENO);
    ::dup2(err[1], STDERR_FILENO);
    become(argv, environment);
  }
  ::close(in[0]);
  ::close(out[1]);
  ::close(err[1]);
  RunResult result{0, "", ""};
  int to_child = in[1];
  ::fcntl(to_child, F_SETFL, O_NONBLOCK);
  while (out[0] >= 0 || err[0] >= 0) {
    if (to_child >= 0 && standard_input.empty()) {
      ::close(to_child);
      to_child = -1;
    }
    pollfd watched[3] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}, {to_child, POLLOUT, 0}};
    ::poll(watched, 3, -1);
    if (out[0] >= 0 && watched[0].revents != 0) {
      drain(out[0], result.out);
    }
    if (err[0] >= 0 && watched[1].revents != 0) {
      drain(err[0], result.err);
    }
    if (to_child >= 0 && watched[2].revents != 0) {
      const ssize_t count = ::write(to_child, standard_input.data(), standard_input.size());
      standard_input.remove_prefix(count > 0 ? static_cast<size_t>(count) : standard_input.size());
    }
  }
  if (to_child >= 0) {
    ::close(to_child);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace graft::test
