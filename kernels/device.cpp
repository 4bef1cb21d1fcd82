#include "kernels/device.h"

#include <string>

#include <dlfcn.h>

#include "kernels/check.h"
#include "kernels/device_digest.h"

namespace graft::kernels {

namespace emu {
const DeviceTable& device_table();
}

namespace {

// What libgraft_cuda.so exports (cuda_library.cu): its table, or a reason why there is no device.
using LibraryEntry = const DeviceTable* (*)(const CudaLibraryHost* program, const char** reason);

struct Loaded {
  const DeviceTable* table = nullptr;
  std::string reason;
};

std::string program_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&graft_last_error), &info) == 0) return "";
  const std::string path = info.dli_fname != nullptr ? info.dli_fname : "";
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

Loaded load_cuda() {
  Loaded loaded;
  const std::string folder = program_folder();
  void* library = nullptr;
  for (const std::string& prefix : {folder, folder + "../lib/", std::string()}) {
    library = dlopen((prefix + "libgraft_cuda.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    const char* words = dlerror();
    loaded.reason = words != nullptr ? words : "libgraft_cuda.so not found";
  }
  if (library == nullptr) return loaded;
  void* const symbol = dlsym(library, "graft_cuda_device_table");
  const auto* const digest =
      static_cast<const unsigned long long*>(dlsym(library, "graft_cuda_digest"));
  if (symbol == nullptr || digest == nullptr || *digest != GRAFT_DEVICE_DIGEST) {
    // Its functions might take other arguments.
    loaded.reason = "libgraft_cuda.so belongs to another build of graft: build or install both";
    return loaded;
  }
  const CudaLibraryHost program{fail};
  const char* reason = "";
  loaded.table = reinterpret_cast<LibraryEntry>(symbol)(&program, &reason);
  loaded.reason = reason;
  return loaded;
}

}  // namespace

graft_status device_table(const char* function, graft_device device, const DeviceTable** table) {
  if (device == GRAFT_EMU) {
    *table = &emu::device_table();
    return GRAFT_OK;
  }
  if (device != GRAFT_CUDA) {
    return fail(GRAFT_BAD_ARGUMENT, function, "device is %d, expected 0..2",
                static_cast<int>(device));
  }
  static const Loaded loaded = load_cuda();
  if (loaded.table == nullptr) {
    return fail(GRAFT_NO_DEVICE, function, "no CUDA device: %s", loaded.reason.c_str());
  }
  *table = loaded.table;
  return GRAFT_OK;
}

}  // namespace graft::kernels
