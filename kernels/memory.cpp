#include "kernels/memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/check.h"
#include "kernels/device.h"

using namespace graft::kernels;

extern "C" graft_status graft_device_allocate(size_t bytes, graft_device device, void** memory) {
  constexpr const char* kName = "graft_device_allocate";
  if (const graft_status status = check_pointers(kName, {{"memory", memory}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.allocate(bytes, memory);
    });
  }
  *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (*memory != nullptr || bytes == 0) return GRAFT_OK;
  return fail(GRAFT_DEVICE_ERROR, kName, "no memory for %zu bytes", bytes);
}

extern "C" graft_status graft_device_release(void* memory, graft_device device) {
  if (device != GRAFT_CPU) {
    return on_device("graft_device_release", device,
                     [&](const DeviceTable& functions) { return functions.release(memory); });
  }
  std::free(memory);
  return GRAFT_OK;
}

extern "C" graft_status graft_device_copy(
    void* to, const void* from, size_t bytes, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_device_copy";
  if (bytes == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"to", to}, {"from", from}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.copy(to, from, bytes, stream);
    });
  }
  std::memcpy(to, from, bytes);
  return GRAFT_OK;
}

extern "C" graft_status graft_device_fill(
    void* memory, int byte, size_t bytes, graft_device device, graft_stream stream) {
  constexpr const char* kName = "graft_device_fill";
  if (bytes == 0) return GRAFT_OK;
  if (const graft_status status = check_pointers(kName, {{"memory", memory}})) return status;
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.fill(memory, byte, bytes, stream);
    });
  }
  std::memset(memory, byte, bytes);
  return GRAFT_OK;
}

extern "C" graft_status graft_device_memory(graft_device device,
                                            size_t* free_bytes,
                                            size_t* total_bytes) {
  constexpr const char* kName = "graft_device_memory";
  if (const graft_status status =
          check_pointers(kName, {{"free_bytes", free_bytes}, {"total_bytes", total_bytes}})) {
    return status;
  }
  // The emulated device's memory is the processor's.
  return on_device(
      kName, device == GRAFT_CPU ? GRAFT_EMU : device,
      [&](const DeviceTable& functions) { return functions.memory(free_bytes, total_bytes); });
}

extern "C" graft_status graft_device_synchronize(graft_device device, graft_stream stream) {
  if (device == GRAFT_CPU) return GRAFT_OK;
  return on_device("graft_device_synchronize", device,
                   [&](const DeviceTable& functions) { return functions.synchronize(stream); });
}

extern "C" graft_status graft_device_describe(graft_device device,
                                              char* name,
                                              size_t room,
                                              double* memory_bytes_per_second) {
  constexpr const char* kName = "graft_device_describe";
  if (const graft_status status = check_pointers(
          kName, {{"name", name}, {"memory_bytes_per_second", memory_bytes_per_second}})) {
    return status;
  }
  if (device != GRAFT_CPU) {
    return on_device(kName, device, [&](const DeviceTable& functions) {
      return functions.describe(name, room, memory_bytes_per_second);
    });
  }
  std::snprintf(name, room, "processor");
  *memory_bytes_per_second = 0.0;
  return GRAFT_OK;
}
