// The entry that libFuzzer calls; GRAFT_FUZZ_TARGET is one of targets.h.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/targets.h"

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  graft::fuzz::GRAFT_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
