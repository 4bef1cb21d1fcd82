// The CUDA that graft's kernels use, on the host: each thread of a block is a fiber, a block runs
// until all its fibers end, and blocks follow one another (internal; see launch.h).
//
// A fiber runs until it waits at __syncthreads or a warp operation; then the most preferred fiber
// that can go on does. So a preferred warp runs ahead of the others as far as barriers allow, and a
// missing barrier shows as a wrong result. Three orders of preference exist: forward, reverse and
// shuffled (warps, and lanes inside them, anew after each barrier). Shared memory (GRAFT_SHARED of
// launch.h) is filled with 0xFF bytes (NaN) at a block's start and followed by guard bytes, which
// are checked at its end. Kernels are started from one host thread at a time; others wait.
//
// Memory of cudaMalloc is open while a kernel, a product of the emulated cuBLASLt or a copy runs,
// and otherwise closed to everybody: a host that reads or writes it ends with SIGSEGV, as it would
// with a GPU's. It begins as 0xFF bytes, and what is past its end (in whole 256 bytes) is always
// closed. A kernel takes the host's own memory as well.
#pragma once

#include <functional>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __constant__ const

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// The current fiber's place; set when it runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719
};

namespace graft::kernels::emu {

enum class Order { kForward, kReverse, kShuffled };
struct Schedule {
  Order order = Order::kForward;
  uint64_t seed = 0;
};

// The order in which fibers run from now on (this process). Tests run all three.
void set_schedule(Schedule schedule);

// Of each launch only the last `blocks` blocks run from now on; 0 for all. So tests of large
// indices reach the end of arrays that no machine has memory for.
void run_last_blocks(uint64_t blocks);

// Runs body once for each thread of each block. Fibers that wait for what can no longer come, a
// barrier that some threads skip and a write past shared memory are launch failures:
// cudaGetLastError tells, cudaGetErrorString has the words.
void launch(dim3 grid, dim3 block, const std::function<void()>& body);

// While one exists, memory of cudaMalloc can be read and written by every thread of the process.
class MemoryAccess {
 public:
  MemoryAccess();
  ~MemoryAccess();
  MemoryAccess(const MemoryAccess&) = delete;
  MemoryAccess& operator=(const MemoryAccess&) = delete;
};

// `bytes` of the running block's shared memory, the same for every call with this key.
void* shared_memory(const void* key, size_t bytes);
template <class T>
T& shared() {
  static const char key = 0;
  return *static_cast<T*>(shared_memory(&key, sizeof(T)));
}
void synchronize_threads();  // __syncthreads
// All lanes of the warp give a value and each gets the one of lane `source` of its mask.
uint64_t exchange(unsigned mask, uint64_t value, int source, const char* operation);
int lane();

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source, "__shfl_sync");
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace graft::kernels::emu

inline void __syncthreads() {
  graft::kernels::emu::synchronize_threads();
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return graft::kernels::emu::shuffle(mask, value, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return graft::kernels::emu::shuffle(mask, value, graft::kernels::emu::lane() ^ lane_mask);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta) {
  const int lane = graft::kernels::emu::lane();
  return graft::kernels::emu::shuffle(mask, value, lane + delta < 32 ? lane + delta : lane);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  graft::kernels::emu::exchange(mask, 0, graft::kernels::emu::lane(), "__syncwarp");
}
// Fibers do not preempt one another, so a plain update is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}

// Rounding to nearest without contraction, as on the device (graft is built with
// -ffp-contract=off).
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline float __fsqrt_rn(float a) {
  return __builtin_sqrtf(a);
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __dsqrt_rn(double a) {
  return __builtin_sqrt(a);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline float __double2float_rn(double a) {
  return static_cast<float>(a);
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

// 16-bit floats as their bits, rounded to nearest with ties to even.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
__nv_bfloat16 __float2bfloat16_rn(float x);
__half __float2half_rn(float x);
float __half2float(__half x);
inline __half __ushort_as_half(uint16_t bits) {
  return {bits};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.bits;
}
inline uint16_t __half_as_ushort(__half x) {
  return x.bits;
}

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);  // the machine's
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(
    void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream);
template <class T>
cudaError_t cudaMemcpyFromSymbolAsync(
    void* to, const T& symbol, size_t bytes, size_t, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpyAsync(to, &symbol, bytes, kind, stream);
}
template <class T>
cudaError_t cudaMemcpyToSymbolAsync(
    T& symbol, const void* from, size_t bytes, size_t, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpyAsync(&symbol, from, bytes, kind, stream);
}
