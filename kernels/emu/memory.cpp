// The emulated device's memory: a mapping for each allocation, open to the process while something
// runs on the device, and to nobody otherwise.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <sys/mman.h>
#include <unistd.h>

#include "kernels/emu/emu.h"

namespace graft::kernels::emu {
namespace {

// As cudaMalloc's.
constexpr size_t kAlignment = 256;
// Read as a float it is NaN, as an index -1: what was never written shows.
constexpr unsigned char kPoison = 0xFF;

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

struct Region {
  void* begin;   // the mapping's
  size_t bytes;  // of its pages; one more that stays closed follows
};

class Memory {
 public:
  cudaError_t allocate(void** memory, size_t bytes);
  cudaError_t release(void* memory);
  void open();
  void close();

 private:
  // By the address that the caller has.
  std::map<void*, Region> regions_;
  std::mutex mutex_;
  int users_ = 0;

  void protect(const Region& region, int protection) {
    if (::mprotect(region.begin, region.bytes, protection) == 0) return;
    std::perror("emulated device: mprotect");
    std::abort();
  }
  void protect_all(int protection) {
    for (const auto& [memory, region] : regions_) protect(region, protection);
  }
};

Memory& memory_of_device() {
  static Memory instance;
  return instance;
}

// The array ends where the mapping does, so that what is read or written behind it is a closed
// page's.
cudaError_t Memory::allocate(void** memory, size_t bytes) {
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  const size_t page = page_bytes();
  if (bytes > SIZE_MAX - 2 * page - kAlignment) return cudaErrorMemoryAllocation;
  const size_t array = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t pages = (array + page - 1) / page * page;
  const std::lock_guard<std::mutex> lock(mutex_);
  void* const begin = ::mmap(nullptr, pages + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) return cudaErrorMemoryAllocation;
  const Region region{begin, pages};
  protect(region, PROT_READ | PROT_WRITE);
  std::memset(begin, kPoison, pages);
  if (users_ == 0) protect(region, PROT_NONE);
  *memory = static_cast<char*>(begin) + (pages - array);
  regions_.emplace(*memory, region);
  return cudaSuccess;
}

cudaError_t Memory::release(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = regions_.find(memory);
  if (found == regions_.end()) return cudaErrorInvalidValue;
  ::munmap(found->second.begin, found->second.bytes + page_bytes());
  regions_.erase(found);
  return cudaSuccess;
}

void Memory::open() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (users_++ == 0) protect_all(PROT_READ | PROT_WRITE);
}

void Memory::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--users_ == 0) protect_all(PROT_NONE);
}

}  // namespace

MemoryAccess::MemoryAccess() {
  memory_of_device().open();
}
MemoryAccess::~MemoryAccess() {
  memory_of_device().close();
}

}  // namespace graft::kernels::emu

using graft::kernels::emu::memory_of_device;
using graft::kernels::emu::MemoryAccess;

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return memory_of_device().allocate(memory, bytes);
}

cudaError_t cudaFree(void* memory) {
  return memory_of_device().release(memory);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const size_t page = graft::kernels::emu::page_bytes();
  *free_bytes = static_cast<size_t>(::sysconf(_SC_AVPHYS_PAGES)) * page;
  *total_bytes = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * page;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  const MemoryAccess access;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  const MemoryAccess access;
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(
    void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  const MemoryAccess access;
  for (size_t row = 0; row < height; ++row) {
    std::memset(static_cast<char*>(to) + row * pitch, value, width);
  }
  return cudaSuccess;
}
