// What a .cu file includes to be compiled by nvcc for a GPU and by g++ for the emulated device
// (internal). A kernel is written in CUDA C++; it is started with
//   GRAFT_LAUNCH(kernel, grid, block, stream, arguments...);
// its shared memory is one struct, GRAFT_SHARED(Type, name), of a type that no other kernel uses,
// and the host function ends with  return launch_status("name");
#pragma once

#include "kernels/check.h"
#include "kernels/status.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GRAFT_DEVICE_NAMESPACE cuda
#define GRAFT_SHARED(Type, name) __shared__ Type name
#define GRAFT_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

#else

#include "kernels/emu/emu.h"

#define GRAFT_DEVICE_NAMESPACE emu
#define GRAFT_SHARED(Type, name) Type& name = ::graft::kernels::emu::shared<Type>()
#define GRAFT_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream),                          \
   ::graft::kernels::emu::launch((grid), (block), [&] { kernel(__VA_ARGS__); }))

#endif

namespace graft::kernels::GRAFT_DEVICE_NAMESPACE {

// The result of the launches before it, without waiting for them.
inline graft_status launch_status(const char* function) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return GRAFT_OK;
  return fail(GRAFT_DEVICE_ERROR, function, "%s", cudaGetErrorString(error));
}

}  // namespace graft::kernels::GRAFT_DEVICE_NAMESPACE
