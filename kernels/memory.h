// Memory of a device, for callers that have no framework of their own: tests, benchmarks and
// checks. Kernels never allocate.
#pragma once

#include "kernels/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// `bytes` of the device's memory in *memory, aligned to 64 bytes at least; release with
// graft_device_release. May synchronize. Errors: GRAFT_BAD_ARGUMENT, GRAFT_NO_DEVICE,
// GRAFT_DEVICE_ERROR (not enough memory).
graft_status graft_device_allocate(size_t bytes, graft_device device, void** memory);
graft_status graft_device_release(void* memory, graft_device device);

// Copies between host and device or inside one of them, in the stream's order; the host's side may
// be reused when graft_device_synchronize has returned. Errors: as above.
graft_status graft_device_copy(
    void* to, const void* from, size_t bytes, graft_device device, graft_stream stream);

// Sets `bytes` of the device's memory to `byte` (its low 8 bits), in the stream's order. Errors: as
// above.
graft_status graft_device_fill(
    void* memory, int byte, size_t bytes, graft_device device, graft_stream stream);

// The memory of the current GPU, in bytes: all of it, and what nobody has allocated. For GRAFT_CPU
// and GRAFT_EMU the machine's, of which the operating system calls free only what it holds no file
// in. Errors: as above.
graft_status graft_device_memory(graft_device device, size_t* free_bytes, size_t* total_bytes);

// Waits for everything that the stream was given and tells the first error.
graft_status graft_device_synchronize(graft_device device, graft_stream stream);

// The name of the GPU, or what stands for it, in `name` (at most `room` bytes with the final zero),
// and its memory clock and bus as bytes a second in both directions; 0 where nobody knows.
graft_status graft_device_describe(graft_device device,
                                   char* name,
                                   size_t room,
                                   double* memory_bytes_per_second);

#ifdef __cplusplus
}
#endif
