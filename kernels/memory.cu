// Memory of a GPU, or of the emulated device: the runtime's calls behind the C API.
#include <cstdio>

#include "kernels/device_functions.h"
#include "kernels/launch.h"

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {
namespace {

graft_status result(const char* function, cudaError_t error) {
  if (error == cudaSuccess) return GRAFT_OK;
  return fail(GRAFT_DEVICE_ERROR, function, "%s", cudaGetErrorString(error));
}

}  // namespace

graft_status allocate(size_t bytes, void** memory) {
  return result("graft_device_allocate", cudaMalloc(memory, bytes));
}

graft_status release(void* memory) {
  return result("graft_device_release", cudaFree(memory));
}

graft_status copy(void* to, const void* from, size_t bytes, graft_stream stream) {
  return result("graft_device_copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault,
                                                     static_cast<cudaStream_t>(stream)));
}

graft_status fill(void* memory, int byte, size_t bytes, graft_stream stream) {
  return result("graft_device_fill",
                cudaMemsetAsync(memory, byte, bytes, static_cast<cudaStream_t>(stream)));
}

graft_status memory(size_t* free_bytes, size_t* total_bytes) {
  return result("graft_device_memory", cudaMemGetInfo(free_bytes, total_bytes));
}

graft_status synchronize(graft_stream stream) {
  return result("graft_device_synchronize",
                cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

graft_status describe(char* name, size_t room, double* memory_bytes_per_second) {
#if defined(__CUDACC__)
  constexpr const char* kName = "graft_device_describe";
  int device = 0, clock_khz = 0, bus_bits = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, device);
  }
  if (error != cudaSuccess) return result(kName, error);
  std::snprintf(name, room, "%s", properties.name);
  *memory_bytes_per_second = 2.0 * 1e3 * clock_khz * bus_bits / 8.0;
#else
  std::snprintf(name, room, "emulated");
  *memory_bytes_per_second = 0.0;
#endif
  return GRAFT_OK;
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
