#include "data/records/interrupt.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>

#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace graft::data {
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};
constexpr size_t kSlots = 64;

// Read by the signal handler: plain bytes, published by the kind.
struct Slot {
  std::atomic<int> kind{-1};  // a Leftover, or -1: free, -2: being filled
  std::array<char, 4096> path{};
};
std::array<Slot, kSlots> slots;

// The calls below are those that POSIX allows in a signal handler, and getdents64, a plain system
// call; opendir would allocate.
void remove_files_in(const char* path) {
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    return;
  }
  alignas(dirent64) std::array<char, 4096> entries{};
  for (;;) {
    const auto size = syscall(SYS_getdents64, folder, entries.data(), entries.size());
    if (size <= 0) {
      break;
    }
    for (long at = 0; at < size;) {
      const auto* entry = reinterpret_cast<const dirent64*>(entries.data() + at);
      unlinkat(folder, entry->d_name, 0);
      at += entry->d_reclen;
    }
  }
  close(folder);
}

void remove_leftovers(int number) {
  for (size_t i = kSlots; i-- > 0;) {
    const int kind = slots[i].kind.load(std::memory_order_acquire);
    const char* path = slots[i].path.data();
    if (kind == static_cast<int>(Leftover::kFile)) {
      unlink(path);
    } else if (kind == static_cast<int>(Leftover::kFolder)) {
      remove_files_in(path);
      rmdir(path);
    } else if (kind == static_cast<int>(Leftover::kEmptyFolder)) {
      rmdir(path);
    }
  }
  // The shell that started the process is to see that a signal ended it.
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(number, &action, nullptr);
  raise(number);
}

void catch_signals() {
  for (const int number : kSignals) {
    struct sigaction now {};
    if (sigaction(number, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) {
      struct sigaction action {};
      action.sa_handler = remove_leftovers;
      sigemptyset(&action.sa_mask);
      sigaction(number, &action, nullptr);
    }
  }
}

}  // namespace

RemoveIfStopped::RemoveIfStopped(const std::string& path, Leftover kind) : slot_(kSlots) {
  if (path.size() >= slots[0].path.size()) {
    return;
  }
  for (size_t i = 0; i < kSlots; ++i) {
    int free = -1;
    if (slots[i].kind.compare_exchange_strong(free, -2)) {
      std::memcpy(slots[i].path.data(), path.c_str(), path.size() + 1);
      slots[i].kind.store(static_cast<int>(kind), std::memory_order_release);
      slot_ = i;
      break;
    }
  }
  catch_signals();
}

RemoveIfStopped::~RemoveIfStopped() {
  if (slot_ < kSlots) {
    slots[slot_].kind.store(-1, std::memory_order_release);
  }
}

HoldSignals::HoldSignals() : before_{} {
  sigset_t held;
  sigemptyset(&held);
  for (const int number : kSignals) {
    sigaddset(&held, number);
  }
  pthread_sigmask(SIG_BLOCK, &held, &before_);
}

HoldSignals::~HoldSignals() {
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace graft::data
