#include <vector>

#include "kernels/device.h"
#include "kernels/launch.h"
#include "tests/kernels/broken_kernels.h"

namespace graft::kernels::test {
namespace {

constexpr unsigned kThreads = 64;

struct ReverseShared {
  float value[kThreads];
};

__global__ void reverse_kernel(const float* values, float* out, bool with_barrier) {
  GRAFT_SHARED(ReverseShared, shared);
  shared.value[threadIdx.x] = values[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared.value[kThreads - 1 - threadIdx.x];
}

struct PrefixShared {
  int value[kThreads];
};

__global__ void prefix_kernel(int* out) {
  GRAFT_SHARED(PrefixShared, shared);
  const int left = threadIdx.x == 0 ? 0 : shared.value[threadIdx.x - 1];
  shared.value[threadIdx.x] = left + 1;
  out[threadIdx.x] = left + 1;
}

struct DivergentShared {
  int value;
};

__global__ void divergent_kernel() {
  GRAFT_SHARED(DivergentShared, shared);
  shared.value = 1;
  if (threadIdx.x < kThreads / 2) __syncthreads();
}

struct OverrunShared {
  int value[kThreads];
};

__global__ void overrun_kernel() {
  GRAFT_SHARED(OverrunShared, shared);
  volatile int* value = shared.value;
  value[threadIdx.x + 1] = 1;
}

__global__ void write_kernel(float* out) {
  out[threadIdx.x] = 1.0f;
}

__global__ void warp_kernel(int* sums, int* order, int* counter) {
  int sum = static_cast<int>(threadIdx.x);
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  __syncwarp();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  order[threadIdx.x] = atomicAdd(counter, 1);
}

}  // namespace

graft_status reverse_block(const float* values, float* out, bool with_barrier) {
  GRAFT_LAUNCH(reverse_kernel, 1, kThreads, nullptr, values, out, with_barrier);
  return emu::launch_status("reverse_block");
}

bool prefix_of_block_is_right(emu::Order order) {
  emu::set_schedule({order, 1});
  std::vector<int> out(kThreads);
  int* data = out.data();
  GRAFT_LAUNCH(prefix_kernel, 1, kThreads, nullptr, data);
  emu::set_schedule({});
  for (unsigned i = 0; i < kThreads; ++i) {
    if (out[i] != static_cast<int>(i) + 1) return false;
  }
  return emu::launch_status("prefix_of_block") == GRAFT_OK;
}

graft_status divergent_barrier() {
  GRAFT_LAUNCH(divergent_kernel, 2, kThreads, nullptr);
  return emu::launch_status("divergent_barrier");
}

graft_status shared_overrun() {
  GRAFT_LAUNCH(overrun_kernel, 1, kThreads, nullptr);
  return emu::launch_status("shared_overrun");
}

graft_status write_64_floats(float* out) {
  GRAFT_LAUNCH(write_kernel, 1, kThreads, nullptr, out);
  return emu::launch_status("write_64_floats");
}

graft_status warp_sums(int* sums, int* order) {
  int counter = 0;
  int* address = &counter;
  GRAFT_LAUNCH(warp_kernel, 1, 96, nullptr, sums, order, address);
  return emu::launch_status("warp_sums");
}

bool cuda_is_available() {
  const DeviceTable* functions = nullptr;
  return device_table("cuda_is_available", GRAFT_CUDA, &functions) == GRAFT_OK;
}

}  // namespace graft::kernels::test
