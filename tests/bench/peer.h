// The peers' process: tests/bench/peers.py under the Python of .deps/peers.
#pragma once

#include <cstdio>
#include <optional>
#include <string>

#include <sys/types.h>

namespace graft::bench {

struct Seconds {
  double wall = 0;
  double cpu = 0;
};

class Peer {
 public:
  // Starts it, or keeps the reason why there is none.
  Peer();
  ~Peer();
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // Why an arm cannot run; "" when it can.
  std::string missing(const std::string& arm);
  Seconds run(const std::string& arm, int64_t calls);

 private:
  std::string ask(const std::string& line);
  std::string reason_;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
  pid_t process_ = -1;
};

}  // namespace graft::bench
