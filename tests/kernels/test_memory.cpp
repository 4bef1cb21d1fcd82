// A device's memory through the C API, on the processor and on the emulated device.
#include "kernels/memory.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

TEST_CASE("device memory: allocate, copy, fill and release", "[kernels][emu]") {
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const std::vector<float> values = random_floats(1000, 1);
  const size_t bytes = values.size() * sizeof(float);
  void *a = nullptr, *b = nullptr;
  REQUIRE(graft_device_allocate(bytes, device, &a) == GRAFT_OK);
  REQUIRE(graft_device_allocate(bytes, device, &b) == GRAFT_OK);
  CHECK(reinterpret_cast<uintptr_t>(a) % 64 == 0);
  // From the host, inside the device, to the host.
  std::vector<float> back(values.size());
  REQUIRE(graft_device_copy(a, values.data(), bytes, device, nullptr) == GRAFT_OK);
  REQUIRE(graft_device_copy(b, a, bytes, device, nullptr) == GRAFT_OK);
  REQUIRE(graft_device_copy(back.data(), b, bytes, device, nullptr) == GRAFT_OK);
  REQUIRE(graft_device_synchronize(device, nullptr) == GRAFT_OK);
  CHECK(same_bits(back, values));
  // The middle of it, and nothing beside.
  REQUIRE(graft_device_fill(static_cast<char*>(b) + 40, 0x13f, 12, device, nullptr) == GRAFT_OK);
  REQUIRE(graft_device_copy(back.data(), b, bytes, device, nullptr) == GRAFT_OK);
  std::vector<float> expected = values;
  std::memset(expected.data() + 10, 0x3f, 12);
  CHECK(same_bits(back, expected));
  CHECK(graft_device_release(a, device) == GRAFT_OK);
  CHECK(graft_device_release(b, device) == GRAFT_OK);
}

TEST_CASE("device memory: how much there is", "[kernels][emu]") {
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  size_t free_bytes = 0, total_bytes = 0;
  REQUIRE(graft_device_memory(device, &free_bytes, &total_bytes) == GRAFT_OK);
  CHECK(free_bytes > 0);
  CHECK(total_bytes > free_bytes);
}

TEST_CASE("device memory: wrong arguments are named", "[kernels]") {
  size_t bytes = 0;
  CHECK(graft_device_memory(GRAFT_CPU, nullptr, &bytes) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()) == "graft_device_memory: free_bytes is NULL");
  CHECK(graft_device_memory(static_cast<graft_device>(9), &bytes, &bytes) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_device_fill(nullptr, 0, 1, GRAFT_EMU, nullptr) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_device_fill(nullptr, 0, 0, GRAFT_EMU, nullptr) == GRAFT_OK);
  CHECK(graft_device_copy(nullptr, &bytes, 1, GRAFT_CPU, nullptr) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_device_allocate(1, GRAFT_CPU, nullptr) == GRAFT_BAD_ARGUMENT);
}
