// The CUDA sources on the emulated device, in three schedules, against the oracle.
#include <algorithm>
#include <csignal>
#include <limits>

#include <sys/wait.h>
#include <unistd.h>

#include "kernels/emu/emu.h"
#include "kernels/memory.h"
#include "kernels/nf4.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/broken_kernels.h"
#include "tests/kernels/nf4_golden.h"
#include "tests/kernels/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

std::vector<emu::Schedule> schedules() {
  return {{emu::Order::kForward, 0},
          {emu::Order::kReverse, 0},
          {emu::Order::kShuffled, 1},
          {emu::Order::kShuffled, 2}};
}

// Puts the forward order back.
struct Scheduled {
  explicit Scheduled(emu::Schedule schedule) { emu::set_schedule(schedule); }
  ~Scheduled() { emu::set_schedule({}); }
  Scheduled(const Scheduled&) = delete;
  Scheduled& operator=(const Scheduled&) = delete;
};

// Memory of the emulated device.
class Allocated {
 public:
  explicit Allocated(size_t bytes) {
    REQUIRE(graft_device_allocate(bytes, GRAFT_EMU, &memory_) == GRAFT_OK);
  }
  ~Allocated() { static_cast<void>(graft_device_release(memory_, GRAFT_EMU)); }
  Allocated(const Allocated&) = delete;
  Allocated& operator=(const Allocated&) = delete;

  float* floats() const { return static_cast<float*>(memory_); }
  std::vector<float> values(size_t count) const {
    std::vector<float> result(count);
    REQUIRE(graft_device_copy(result.data(), memory_, count * sizeof(float), GRAFT_EMU, nullptr) ==
            GRAFT_OK);
    return result;
  }

 private:
  void* memory_ = nullptr;
};

// The signal that ends a process which does this; 0 for none.
template <class Action>
int signal_of(const Action& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);  // the test framework and sanitizers have handlers
    action();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

}  // namespace

TEST_CASE("emulated nf4: golden values in every schedule", "[kernels][emu][nf4]") {
  const Scheduled scheduled(GENERATE(from_range(schedules())));
  check_golden_cases(GRAFT_EMU);
}

TEST_CASE("emulated nf4: quantize and decode equal the oracle to the bit", "[kernels][emu][nf4]") {
  const Scheduled scheduled(GENERATE(from_range(schedules())));
  const int block_size = GENERATE(32, 64, 256, 4096);
  const int64_t count = GENERATE_COPY(1, 7, 8, 63, 9 * block_size - 1, 9 * block_size + 1);
  std::vector<float> weight = random_floats(count, 5, 0.02f);
  std::fill(weight.begin(), weight.begin() + std::min<int64_t>(count, block_size), 0.0f);
  if (count > block_size + 9) weight[at(block_size + 9)] = 1e-41f;
  const auto expected = oracle::nf4_quantize(weight, block_size);
  const size_t shift = GENERATE(size_t{0}, size_t{1});
  Guarded<uint8_t> packed(expected.packed.size(), shift);
  Guarded<float> absmax(expected.absmax.size(), shift), out(weight.size(), shift);
  REQUIRE(graft_nf4_quantize(weight.data(), count, block_size, packed.data(), absmax.data(),
                             GRAFT_EMU, nullptr) == GRAFT_OK);
  CHECK((packed.intact() && absmax.intact()));
  CHECK(packed.values() == expected.packed);
  CHECK(same_bits(absmax.values(), expected.absmax));
  const graft_nf4_weight view{packed.data(), absmax.data(), nullptr,   nullptr,
                              0.0f,          count,         block_size};
  REQUIRE(graft_nf4_decode(&view, out.data(), GRAFT_EMU, nullptr) == GRAFT_OK);
  CHECK(out.intact());
  CHECK(same_bits(out.values(),
                  oracle::nf4_decode(expected.packed, expected.absmax, count, block_size)));
}

TEST_CASE("emulated nf4: nested absmax and its decode equal the oracle to the bit",
          "[kernels][emu][nf4]") {
  const Scheduled scheduled(GENERATE(from_range(schedules())));
  const int64_t blocks = GENERATE(1, 255, 256, 257, 700);
  std::vector<float> absmax = random_floats(blocks, 3, 0.01f);
  for (float& value : absmax) value = std::fabs(value) + 0.03f;
  const auto expected = oracle::nf4_compress(absmax);
  Guarded<uint8_t> codes(absmax.size());
  Guarded<float> nested(expected.nested_absmax.size()), offset(1);
  REQUIRE(graft_nf4_compress_absmax(absmax.data(), blocks, codes.data(), nested.data(),
                                    offset.data(), GRAFT_EMU, nullptr) == GRAFT_OK);
  CHECK((codes.intact() && nested.intact() && offset.intact()));
  CHECK(offset[0] == expected.offset);
  CHECK(codes.values() == expected.absmax8);
  CHECK(same_bits(nested.values(), expected.nested_absmax));

  const int64_t count = blocks * 64 - 3;
  std::vector<uint8_t> packed(at(blocks) * 32);
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint8_t>(i * 37);
  const graft_nf4_weight view{packed.data(), nullptr, codes.data(), nested.data(), offset[0],
                              count,         64};
  Guarded<float> out(at(count), 0);
  REQUIRE(graft_nf4_decode(&view, out.data(), GRAFT_EMU, nullptr) == GRAFT_OK);
  CHECK(out.intact());
  CHECK(
      same_bits(out.values(), oracle::nf4_decode(packed, oracle::nf4_absmax(expected), count, 64)));
}

TEST_CASE("emulated nf4: values that are not finite are refused", "[kernels][emu][nf4]") {
  std::vector<float> weight = random_floats(3000, 1);
  weight[2900] =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  std::vector<uint8_t> packed(1500);
  std::vector<float> absmax(47);
  const auto quantize = [&] {
    return graft_nf4_quantize(weight.data(), 3000, 64, packed.data(), absmax.data(), GRAFT_EMU,
                              nullptr);
  };
  CHECK(quantize() == GRAFT_NOT_FINITE);
  weight[2900] = 0.0f;
  CHECK(quantize() == GRAFT_OK);
}

TEST_CASE("emulated device: a missing barrier is caught by the shuffled schedule",
          "[kernels][emu]") {
  std::vector<float> values = random_floats(64, 1), reversed(values.rbegin(), values.rend());
  const auto run = [&](bool with_barrier, emu::Schedule schedule) {
    const Scheduled scheduled(schedule);
    Guarded<float> out(64);
    REQUIRE(reverse_block(values.data(), out.data(), with_barrier) == GRAFT_OK);
    REQUIRE(out.intact());
    return same_bits(out.values(), reversed);
  };
  for (const emu::Schedule& schedule : schedules()) CHECK(run(true, schedule));
  CHECK_FALSE(run(false, {emu::Order::kShuffled, 1}));
  // The planted kernel reads what earlier threads wrote, so the forward order hides its fault.
  CHECK(prefix_of_block_is_right(emu::Order::kForward));
  CHECK_FALSE(prefix_of_block_is_right(emu::Order::kReverse));
  CHECK_FALSE(prefix_of_block_is_right(emu::Order::kShuffled));
}

TEST_CASE("emulated device: barriers that threads skip and shared overruns are failures",
          "[kernels][emu]") {
  CHECK(divergent_barrier() == GRAFT_DEVICE_ERROR);
  CHECK(std::string(graft_last_error()).find("__syncthreads") != std::string::npos);
  CHECK(shared_overrun() == GRAFT_DEVICE_ERROR);
  CHECK(std::string(graft_last_error()).find("past the end of shared memory") != std::string::npos);
  std::vector<float> values(64, 1.0f), out(64);
  CHECK(reverse_block(values.data(), out.data(), true) == GRAFT_OK);
}

TEST_CASE("emulated device: a write past a buffer breaks its guard bytes", "[kernels][emu]") {
  Guarded<float> out(60);
  REQUIRE(write_64_floats(out.data()) == GRAFT_OK);
  CHECK_FALSE(out.intact());
}

TEST_CASE("emulated device: warp shuffles, atomics and warp barriers", "[kernels][emu]") {
  const Scheduled scheduled(GENERATE(from_range(schedules())));
  std::vector<int> sums(3), order(96);
  REQUIRE(warp_sums(sums.data(), order.data()) == GRAFT_OK);
  // Warp w holds lanes 32 w .. 32 w + 31: sum = 32 * 32 w + 496.
  CHECK(sums == std::vector<int>{496, 1520, 2544});
  std::sort(order.begin(), order.end());
  for (int i = 0; i < 96; ++i) CHECK(order[at(i)] == i);
}

TEST_CASE("emulated device: the host cannot touch its memory", "[kernels][emu]") {
  const std::vector<float> values = random_floats(64, 1);
  std::vector<float> reversed(values.rbegin(), values.rend());
  const Allocated from(64 * sizeof(float)), to(64 * sizeof(float));
  const auto read = [&] { static_cast<void>(*const_cast<volatile float*>(to.floats())); };
  const auto write = [&] { *const_cast<volatile float*>(to.floats()) = 1.0f; };
  CHECK(signal_of(read) == SIGSEGV);
  CHECK(signal_of(write) == SIGSEGV);
  CHECK(signal_of([&] {
          const emu::MemoryAccess access;
          read();
        }) == 0);
  // What was never written is NaN.
  CHECK(std::isnan(to.values(1)[0]));
  // Copies and kernels reach it, and close it behind them.
  REQUIRE(graft_device_copy(from.floats(), values.data(), 64 * sizeof(float), GRAFT_EMU, nullptr) ==
          GRAFT_OK);
  CHECK(signal_of(read) == SIGSEGV);
  REQUIRE(reverse_block(from.floats(), to.floats(), true) == GRAFT_OK);
  CHECK(signal_of(read) == SIGSEGV);
  CHECK(same_bits(to.values(64), reversed));
  // A kernel with one array on either side.
  std::vector<float> on_host(64);
  REQUIRE(reverse_block(from.floats(), on_host.data(), true) == GRAFT_OK);
  CHECK(same_bits(on_host, reversed));
}

TEST_CASE("emulated device: a kernel that writes behind its memory ends the process",
          "[kernels][emu]") {
  const Allocated memory(256 * sizeof(float));
  CHECK(signal_of([&] { write_64_floats(memory.floats() + 192); }) == 0);
  CHECK(signal_of([&] { write_64_floats(memory.floats() + 193); }) == SIGSEGV);
}

TEST_CASE("emulated device: memory that it did not give is not released", "[kernels][emu]") {
  float value = 0.0f;
  CHECK(graft_device_release(&value, GRAFT_EMU) == GRAFT_DEVICE_ERROR);
  CHECK(std::string(graft_last_error()) == "graft_device_release: invalid argument");
  CHECK(graft_device_release(nullptr, GRAFT_EMU) == GRAFT_OK);
  void* memory = &value;
  REQUIRE(graft_device_allocate(0, GRAFT_EMU, &memory) == GRAFT_OK);
  CHECK(memory == nullptr);
  CHECK(graft_device_allocate(SIZE_MAX - 1, GRAFT_EMU, &memory) == GRAFT_DEVICE_ERROR);
  CHECK(std::string(graft_last_error()) == "graft_device_allocate: out of memory");
}

TEST_CASE("devices: CUDA without a driver is GRAFT_NO_DEVICE with a reason", "[kernels][cuda]") {
  std::vector<float> weight(64, 1.0f), absmax(1);
  std::vector<uint8_t> packed(32);
  const auto quantize = [&](graft_device device) {
    return graft_nf4_quantize(weight.data(), 64, 64, packed.data(), absmax.data(), device, nullptr);
  };
  if (cuda_is_available()) {
    WARN("a GPU is here: this condition cannot be shown");
    return;
  }
  CHECK(quantize(GRAFT_CUDA) == GRAFT_NO_DEVICE);
  CHECK(std::string(graft_last_error()).find("no CUDA device: ") != std::string::npos);
  CHECK(quantize(static_cast<graft_device>(9)) == GRAFT_BAD_ARGUMENT);
}
