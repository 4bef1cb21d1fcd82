// Digests: SHA-256 for identity, XXH3 for fast checks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace graft {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  // 64 lower-case hex digits; the object may not be used afterwards.
  std::string hex_digest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);
std::string sha256_file(const std::string& path);  // Errors: kIo

uint64_t xxh3_64(std::string_view bytes, uint64_t seed = 0);
std::string hex64(uint64_t value);  // 16 lower-case hex digits

// Counter-based random numbers: a pure function of (seed, stream, index). Philox4x32-10
// (Salmon et al., SC 2011). Every random choice of graft comes from here, so nothing depends on
// the order of calls, the number of threads or a resume.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  std::array<uint32_t, 4> block(uint64_t index) const;
  uint32_t u32(uint64_t index) const { return block(index / 4)[index % 4]; }
  // Uniform in [0, 1) with 24 bits.
  float uniform(uint64_t index) const { return static_cast<float>(u32(index) >> 8) * 0x1p-24F; }
  // Standard normal (Box-Muller on two words of the block).
  double normal(uint64_t index) const;
  // Uniform in [0, bound) by 64-bit multiply-shift; bound >= 1.
  uint64_t below(uint64_t index, uint64_t bound) const;

 private:
  uint64_t seed_;
  uint64_t stream_;
};

}  // namespace graft
