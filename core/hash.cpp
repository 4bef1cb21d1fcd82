#include "core/hash.h"

#include <cmath>
#include <numbers>

#include <openssl/evp.h>
#include <xxhash.h>

#include "core/error.h"
#include "core/file.h"

namespace graft {
namespace {

std::string hex(std::span<const unsigned char> bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const unsigned char byte : bytes) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15U];
  }
  return text;
}

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = nullptr;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  state_->context = EVP_MD_CTX_new();
  if (state_->context == nullptr ||
      EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) != 1) {
    fail(ExitCode::kBug, "SHA-256 is not available in libcrypto");
  }
}

Sha256::~Sha256() {
  EVP_MD_CTX_free(state_->context);
}

void Sha256::update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(state_->context, bytes.data(), bytes.size());
}

void Sha256::update(std::string_view text) {
  EVP_DigestUpdate(state_->context, text.data(), text.size());
}

std::string Sha256::hex_digest() {
  unsigned char digest[32];
  EVP_DigestFinal_ex(state_->context, digest, nullptr);
  return hex(digest);
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex_digest();
}

std::string sha256_file(const std::string& path) {
  const MappedFile file(path);
  Sha256 hash;
  hash.update(file.bytes());
  return hash.hex_digest();
}

uint64_t xxh3_64(std::string_view bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::string hex64(uint64_t value) {
  unsigned char bytes[8];
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<unsigned char>(value >> (56 - 8 * i));
  }
  return hex(bytes);
}

std::array<uint32_t, 4> Philox::block(uint64_t index) const {
  constexpr uint64_t kMultiplier0 = 0xD2511F53;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9;
  constexpr uint32_t kWeyl1 = 0xBB67AE85;
  std::array<uint32_t, 4> counter = {
      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
      static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  auto key0 = static_cast<uint32_t>(seed_);
  auto key1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

double Philox::normal(uint64_t index) const {
  const std::array<uint32_t, 4> words = block(index / 2);
  // 53-bit uniforms; the first lies in (0, 1] so that its logarithm is finite.
  const auto uniform53 = [](uint32_t high, uint32_t low) {
    return static_cast<double>(((uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
  };
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform53(words[0], words[1])));
  const double angle = 2.0 * std::numbers::pi * uniform53(words[2], words[3]);
  return radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

// 128-bit product; the extension is needed because C++ has no wider integer.
__extension__ typedef unsigned __int128 WideUnsigned;

uint64_t Philox::below(uint64_t index, uint64_t bound) const {
  const std::array<uint32_t, 4> words = block(index);
  const uint64_t random = (uint64_t{words[0]} << 32) | words[1];
  return static_cast<uint64_t>((static_cast<WideUnsigned>(random) * bound) >> 64);
}

}  // namespace graft
