// What libgraft_cuda.so exports: the table of its functions, for kernels/device.cpp.
#include <cstdarg>
#include <cstdio>

#include <cuda_runtime.h>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/device_digest.h"

namespace graft::kernels {
namespace {

CudaLibraryHost host;

}  // namespace

// The text goes to the program, which owns what graft_last_error() gives.
graft_status fail(graft_status status, const char* function, const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return host.fail(status, function, "%s", text);
}

namespace cuda {
const DeviceTable& device_table();
}

}  // namespace graft::kernels

// Of the sources, by which the program knows its own library.
extern "C" __attribute__((visibility("default"))) const unsigned long long graft_cuda_digest =
    GRAFT_DEVICE_DIGEST;

// NULL, with the reason, when there is no driver or no GPU.
extern "C" __attribute__((visibility("default"))) const graft::kernels::DeviceTable*
graft_cuda_device_table(const graft::kernels::CudaLibraryHost* program, const char** reason) {
  graft::kernels::host = *program;
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    *reason = cudaGetErrorString(error);
    return nullptr;
  }
  if (devices == 0) {
    *reason = "the driver reports no GPU";
    return nullptr;
  }
  return &graft::kernels::cuda::device_table();
}
