#include "tests/bench/peer.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/json.h"

namespace graft::bench {
namespace {

constexpr const char* kPython = GRAFT_SOURCE_DIR "/.deps/peers/bin/python";
constexpr const char* kScript = GRAFT_SOURCE_DIR "/tests/bench/peers.py";

}  // namespace

Peer::Peer() {
  if (::access(kPython, X_OK) != 0) {
    reason_ = "no peers: `make setup-peers` installs them";
    return;
  }
  std::array<int, 2> down{}, up{};
  if (::pipe2(down.data(), O_CLOEXEC) != 0 || ::pipe2(up.data(), O_CLOEXEC) != 0) {
    reason_ = std::string("no pipe to the peers: ") + std::strerror(errno);
    return;
  }
  std::signal(SIGPIPE, SIG_IGN);  // a peer that died is an answer that does not come
  process_ = ::fork();
  if (process_ == 0) {
    ::dup2(down[0], 0);
    ::dup2(up[1], 1);
    const int nothing = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    ::dup2(nothing, 2);
    ::execl(kPython, kPython, kScript, static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ::close(down[0]);
  ::close(up[1]);
  to_ = ::fdopen(down[1], "w");
  from_ = ::fdopen(up[0], "r");
}

Peer::~Peer() {
  if (to_ != nullptr) std::fclose(to_);  // the end of its input ends it
  if (from_ != nullptr) std::fclose(from_);
  if (process_ > 0) ::waitpid(process_, nullptr, 0);
}

std::string Peer::ask(const std::string& line) {
  std::string answer;
  std::fprintf(to_, "%s\n", line.c_str());
  std::fflush(to_);
  for (int c = std::fgetc(from_); c != EOF && c != '\n'; c = std::fgetc(from_)) {
    answer += static_cast<char>(c);
  }
  if (answer.empty()) {
    fail(ExitCode::kPeer, "the peers' process ended", line,
         "run " + std::string(kPython) + " " + kScript + " and give it this line");
  }
  return answer;
}

std::string Peer::missing(const std::string& arm) {
  if (to_ == nullptr) return reason_;
  const Json answer = parse_json(ask("check " + arm), "peers.py");
  const Json* const error = answer.find("error");
  return error != nullptr ? arm + ": " + error->as_string() : "";
}

Seconds Peer::run(const std::string& arm, int64_t calls) {
  const Json answer = parse_json(ask("run " + arm + " " + std::to_string(calls)), "peers.py");
  if (const Json* const error = answer.find("error")) {
    fail(ExitCode::kPeer, error->as_string(), arm);
  }
  return {answer.at("wall").as_double(), answer.at("cpu").as_double()};
}

}  // namespace graft::bench
