#include <cmath>

#include <catch2/catch.hpp>

#include "core/hash.h"

TEST_CASE("hash: SHA-256 equals the FIPS 180-2 examples", "[core][hash]") {
  CHECK(graft::sha256_hex("abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(graft::sha256_hex("") ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("hash: Philox4x32-10 equals the known-answer vectors of Random123", "[core][hash]") {
  // kat_vectors of Random123: zero counter and key; all-ones counter and key; digits of pi.
  using Words = std::array<uint32_t, 4>;
  CHECK(graft::Philox(0, 0).block(0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(graft::Philox(~uint64_t{0}, ~uint64_t{0}).block(~uint64_t{0}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(graft::Philox(0x299f31d0a4093822, 0x0370734413198a2e).block(0x85a308d3243f6a88) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("hash: normal numbers have mean 0 and variance 1", "[core][hash]") {
  const graft::Philox random(1, 2);
  constexpr int kCount = 100000;
  double sum = 0;
  double squares = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = random.normal(i);
    sum += x;
    squares += x * x;
  }
  // Five standard errors: sd(mean) = 1/sqrt(n), sd(variance) = sqrt(2/n).
  CHECK(std::fabs(sum / kCount) < 5 / std::sqrt(kCount));
  CHECK(std::fabs(squares / kCount - 1) < 5 * std::sqrt(2.0 / kCount));
}

TEST_CASE("hash: bounded numbers stay below their bound and reach every value", "[core][hash]") {
  const graft::Philox random(3, 4);
  std::array<int, 7> seen{};
  for (uint64_t i = 0; i < 1000; ++i) {
    const uint64_t value = random.below(i, seen.size());
    REQUIRE(value < seen.size());
    ++seen[value];
  }
  for (const int count : seen) {
    CHECK(count > 80);  // expectation 143, standard deviation 11
  }
}
