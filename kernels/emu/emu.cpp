#include "kernels/emu/emu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace graft::kernels::emu {
namespace {

namespace context = boost::context;

// What a kernel's thread needs of stack; a guard page would cost a system call per fiber.
constexpr size_t kStackBytes = 64 * 1024;
// 48 KiB are what every GPU gives a block without asking, followed by bytes that must not change.
constexpr size_t kSharedBytes = 48 * 1024;
constexpr size_t kSharedGuardBytes = 4096;
// Read as a float it is NaN, as an index -1: what was never written shows.
constexpr unsigned char kPoison = 0xFF;
constexpr unsigned kWarp = 32;

// Stacks are kept for the next block's fibers.
class StackPool {
 public:
  ~StackPool() {
    for (context::stack_context& stack : free_) allocator_.deallocate(stack);
  }
  context::stack_context allocate() {
    if (free_.empty()) return allocator_.allocate();
    const context::stack_context stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void release(context::stack_context stack) { free_.push_back(stack); }

 private:
  context::fixedsize_stack allocator_{kStackBytes};
  std::vector<context::stack_context> free_;
};

struct PooledStack {
  StackPool* pool;
  context::stack_context allocate() { return pool->allocate(); }
  void deallocate(context::stack_context& stack) { pool->release(stack); }
};

enum class State { kReady, kBarrier, kExchange, kDone };

struct Thread {
  context::fiber fiber;  // where to continue
  State state = State::kReady;
  dim3 index;
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  const char* operation = "";
};

struct SharedPart {
  const void* key;
  size_t offset;
};

class Device {
 public:
  void launch(dim3 grid, dim3 block, const std::function<void()>& body);
  void wait(State state);
  Thread& current() { return threads_[running_]; }
  unsigned running() const { return running_; }
  void* shared_memory(const void* key, size_t bytes);

  std::mutex mutex;
  Schedule schedule;
  uint64_t last_blocks = 0;
  std::string error;

 private:
  void start_threads(dim3 block, const std::function<void()>& body);
  void run_block();
  void choose_order();
  bool run_next();
  void release_warp(size_t arrived);
  void make_ready(size_t thread);
  bool release_barrier();
  void check_guard();
  void fail(const std::string& what);

  StackPool stacks_;  // before the threads, whose fibers give their stacks back to it
  std::vector<Thread> threads_;
  std::vector<unsigned> order_;  // threads, the one to run first at the front
  std::vector<unsigned> place_;  // of each thread in order_
  size_t next_ = 0;              // no thread before this place is ready
  unsigned running_ = 0;
  context::fiber scheduler_;
  std::vector<unsigned char> shared_ = std::vector<unsigned char>(kSharedBytes + kSharedGuardBytes);
  std::vector<SharedPart> parts_;
  size_t shared_used_ = 0;
  std::mt19937_64 random_;
};

Device& device() {
  static Device instance;
  return instance;
}

void Device::fail(const std::string& what) {
  if (!error.empty()) return;
  char place[64];
  std::snprintf(place, sizeof place, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  error = place + what;
}

void Device::start_threads(dim3 block, const std::function<void()>& body) {
  threads_.clear();
  threads_.resize(size_t{block.x} * block.y * block.z);
  for (size_t i = 0; i < threads_.size(); ++i) {
    const unsigned flat = static_cast<unsigned>(i);
    threads_[i].index = dim3(flat % block.x, flat / block.x % block.y, flat / block.x / block.y);
    threads_[i].fiber = context::fiber(std::allocator_arg, PooledStack{&stacks_},
                                       [this, &body](context::fiber&& from) {
                                         scheduler_ = std::move(from);
                                         body();
                                         current().state = State::kDone;
                                         return std::move(scheduler_);
                                       });
  }
}

// A new order of preference: whole warps, and lanes inside them. The preferred warp runs as far
// ahead of the others as barriers allow, which is what shows a barrier that is missing.
void Device::choose_order() {
  order_.resize(threads_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  if (schedule.order == Order::kReverse) std::reverse(order_.begin(), order_.end());
  if (schedule.order == Order::kShuffled) {
    std::vector<uint64_t> warp_rank((threads_.size() + kWarp - 1) / kWarp);
    std::vector<uint64_t> lane_rank(threads_.size());
    for (uint64_t& rank : warp_rank) rank = random_();
    for (uint64_t& rank : lane_rank) rank = random_();
    std::sort(order_.begin(), order_.end(), [&](unsigned a, unsigned b) {
      const auto key = [&](unsigned i) {
        return std::make_pair(warp_rank[i / kWarp], lane_rank[i]);
      };
      return key(a) < key(b);
    });
  }
  place_.resize(order_.size());
  for (unsigned i = 0; i < order_.size(); ++i) place_[order_[i]] = i;
  next_ = 0;
}

void Device::make_ready(size_t thread) {
  threads_[thread].state = State::kReady;
  next_ = std::min<size_t>(next_, place_[thread]);
}

// Runs the first ready thread of the order until it waits or ends; false when none is ready.
bool Device::run_next() {
  while (next_ < order_.size() && threads_[order_[next_]].state != State::kReady) ++next_;
  if (next_ == order_.size()) return false;
  running_ = order_[next_];
  Thread& thread = threads_[running_];
  threadIdx = thread.index;
  thread.fiber = std::move(thread.fiber).resume();
  if (thread.state == State::kExchange) release_warp(running_);
  return true;
}

void Device::wait(State state) {
  Thread& self = current();
  self.state = state;
  const dim3 index = threadIdx;
  scheduler_ = std::move(scheduler_).resume();
  threadIdx = index;
}

// Lets a warp's lanes go on when the one that arrived is the last of its mask in this operation.
void Device::release_warp(size_t arrived) {
  const size_t first = arrived / kWarp * kWarp, end = std::min(first + kWarp, threads_.size());
  const Thread& last = threads_[arrived];
  const unsigned mask = last.mask;
  for (size_t j = first; j < end; ++j) {
    const Thread& other = threads_[j];
    if ((mask >> (j - first) & 1u) == 0) continue;
    if (other.state != State::kExchange || other.mask != mask ||
        other.operation != last.operation) {
      return;
    }
  }
  uint64_t values[kWarp] = {};
  for (size_t j = first; j < end; ++j) values[j - first] = threads_[j].value;
  for (size_t j = first; j < end; ++j) {
    if ((mask >> (j - first) & 1u) == 0) continue;
    const unsigned source = static_cast<unsigned>(threads_[j].source) % kWarp;
    if ((mask >> source & 1u) == 0) fail("a lane reads one outside the mask");
    threads_[j].value = values[source];
    make_ready(j);
  }
}

bool Device::release_barrier() {
  for (const Thread& thread : threads_) {
    if (thread.state != State::kBarrier) return false;
  }
  for (Thread& thread : threads_) thread.state = State::kReady;
  choose_order();
  return true;
}

void Device::check_guard() {
  for (size_t i = shared_used_; i < shared_.size(); ++i) {
    if (shared_[i] != kPoison) {
      fail("a write past the end of shared memory");
      return;
    }
  }
}

void Device::run_block() {
  choose_order();
  while (error.empty() && (run_next() || release_barrier())) {
  }
  for (const Thread& thread : threads_) {
    if (thread.state == State::kDone) continue;
    fail(thread.state == State::kBarrier
             ? "threads wait at __syncthreads that others do not reach"
             : std::string("lanes wait for others in ") + thread.operation);
    break;
  }
  check_guard();
  threads_.clear();  // unwinds the fibers that an error left waiting
}

void Device::launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  random_.seed(schedule.seed);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t skipped = last_blocks > 0 && last_blocks < blocks ? blocks - last_blocks : 0;
  for (uint64_t i = skipped; i < blocks && error.empty(); ++i) {
    const uint64_t plane = i / grid.x;
    blockIdx = dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(plane % grid.y),
                    static_cast<unsigned>(plane / grid.y));
    std::fill(shared_.begin(), shared_.end(), kPoison);
    parts_.clear();
    shared_used_ = 0;
    start_threads(block, body);
    run_block();
  }
}

void* Device::shared_memory(const void* key, size_t bytes) {
  for (const SharedPart& part : parts_) {
    if (part.key == key) return shared_.data() + part.offset;
  }
  const size_t offset = (shared_used_ + 15) / 16 * 16;
  if (offset + bytes > kSharedBytes) {
    std::fprintf(stderr, "emulated device: %zu bytes of shared memory, %zu exist\n", offset + bytes,
                 kSharedBytes);
    std::abort();
  }
  parts_.push_back({key, offset});
  shared_used_ = offset + bytes;
  return shared_.data() + offset;
}

// The text of the failure that cudaGetLastError() reported last.
std::string& reported_error() {
  static std::string text;
  return text;
}

}  // namespace

void set_schedule(Schedule schedule) {
  const std::lock_guard<std::mutex> lock(device().mutex);
  device().schedule = schedule;
}

void run_last_blocks(uint64_t blocks) {
  const std::lock_guard<std::mutex> lock(device().mutex);
  device().last_blocks = blocks;
}

void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(device().mutex);
  const MemoryAccess access;
  device().launch(grid, block, body);
}

void* shared_memory(const void* key, size_t bytes) {
  return device().shared_memory(key, bytes);
}

void synchronize_threads() {
  device().wait(State::kBarrier);
}

uint64_t exchange(unsigned mask, uint64_t value, int source, const char* operation) {
  Thread& self = device().current();
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.operation = operation;
  device().wait(State::kExchange);
  return self.value;
}

int lane() {
  return static_cast<int>(device().running() % kWarp);
}

}  // namespace graft::kernels::emu

using graft::kernels::emu::device;

cudaError_t cudaGetLastError() {
  const std::lock_guard<std::mutex> lock(device().mutex);
  if (device().error.empty()) return cudaSuccess;
  graft::kernels::emu::reported_error() = std::exchange(device().error, std::string());
  return cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "invalid argument";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return error == cudaSuccess ? "no error" : graft::kernels::emu::reported_error().c_str();
}

__nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // as the hardware: one NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

__half __float2half_rn(float x) {
  const _Float16 rounded = static_cast<_Float16>(x);
  __half result;
  memcpy(&result.bits, &rounded, sizeof result.bits);
  return result;
}

float __half2float(__half x) {
  _Float16 value;
  memcpy(&value, &x.bits, sizeof value);
  return static_cast<float>(value);
}
