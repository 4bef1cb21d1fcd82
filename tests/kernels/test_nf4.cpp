#include <algorithm>
#include <limits>

#include <sys/mman.h>

#include "core/hash.h"
#include "core/json.h"
#include "kernels/float16.h"
#include "kernels/nf4.h"
#include "kernels/oracle/oracle.h"
#include "tests/kernels/nf4_golden.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

struct Shape {
  int64_t count;
  int block_size;
};

// Weights of every kind: normal, an all-zero block, denormals, one huge value, all equal.
std::vector<float> mixed_weights(int64_t count, int block_size) {
  std::vector<float> w = random_floats(count, 5, 0.02f);
  const auto fill = [&](int64_t block, float value) {
    for (int64_t i = block * block_size; i < std::min<int64_t>(count, (block + 1) * block_size);
         ++i) {
      w[at(i)] = value;
    }
  };
  fill(1, 0.0f);
  fill(2, 0.5f);
  fill(3, 1e-41f);
  if (count > 4 * block_size + 7) w[at(4 * block_size + 7)] = -3e38f;
  if (count > 0) w[at(count - 1)] = -0.0f;
  return w;
}

}  // namespace

TEST_CASE("nf4: the tables are bitsandbytes' own", "[kernels][nf4]") {
  const graft::Json golden = read_golden();
  const auto code = floats_of_hex(golden.at("code").as_string());
  const auto map = floats_of_hex(golden.at("dynamic_map").as_string());
  CHECK(same_bits(code, {graft_nf4_codebook(), graft_nf4_codebook() + 16}));
  CHECK(same_bits(map, {graft_dynamic_map_signed(), graft_dynamic_map_signed() + 256}));
}

TEST_CASE("nf4: quantize, compress and decode equal bitsandbytes' golden values",
          "[kernels][nf4]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  check_golden_cases(GRAFT_CPU);
}

TEST_CASE("nf4: the shared golden file holds", "[kernels][nf4]") {
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) return;
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  check_shared_golden(shared + "/data/nf4_golden.json");
}

TEST_CASE("nf4, fp4: every path equals the oracle to the bit and stays inside its buffers",
          "[kernels][nf4]") {
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const int block_size = GENERATE(32, 64, 128, 256, 512, 1024, 2048, 4096);
  const int64_t count =
      GENERATE_COPY(1, 2, 31, 53, 7 * block_size - 1, 7 * block_size, 7 * block_size + 1, 70001);
  const std::vector<float> weight = mixed_weights(count, block_size);
  const auto expected = oracle::nf4_quantize(weight, block_size, type);
  const auto decoded =
      oracle::nf4_decode(expected.packed, expected.absmax, count, block_size, type);
  const std::vector<float> got = same_everywhere([&] {
    Guarded<uint8_t> packed(expected.packed.size(), 3);
    Guarded<float> absmax(expected.absmax.size()), out(weight.size());
    REQUIRE(graft_quant4_quantize(type, GRAFT_F32, weight.data(), count, block_size, packed.data(),
                                  absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    REQUIRE((packed.intact() && absmax.intact()));
    REQUIRE(packed.values() == expected.packed);
    REQUIRE(same_bits(absmax.values(), expected.absmax));
    const graft_nf4_weight view{packed.data(), absmax.data(), nullptr,    nullptr,
                                0.0f,          count,         block_size, type};
    REQUIRE(graft_nf4_decode(&view, out.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    REQUIRE(out.intact());
    return out.values();
  });
  CHECK(same_bits(got, decoded));
}

TEST_CASE("nf4, fp4: 16-bit weights give what their float32 values give", "[kernels][nf4]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const int block_size = GENERATE(32, 64, 4096);
  const int64_t count = GENERATE(1, 63, 9001, 70001);
  const std::vector<float> weight = mixed_weights(count, block_size);
  for (const graft_float_type from : {GRAFT_BF16, GRAFT_F16}) {
    std::vector<uint16_t> narrow(weight.size());
    std::vector<float> wide(weight.size());
    for (size_t i = 0; i < weight.size(); ++i) {
      const float clipped = std::clamp(weight[i], -60000.0f, 60000.0f);
      narrow[i] = from == GRAFT_BF16 ? to_bf16(weight[i]) : to_f16(clipped);
      wide[i] = from == GRAFT_BF16 ? from_bf16(narrow[i]) : from_f16(narrow[i]);
    }
    const auto expected = oracle::nf4_quantize(wide, block_size, type);
    Guarded<uint8_t> packed(expected.packed.size(), 1);
    Guarded<float> absmax(expected.absmax.size());
    REQUIRE(graft_quant4_quantize(type, from, narrow.data(), count, block_size, packed.data(),
                                  absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    CHECK((packed.intact() && absmax.intact()));
    CHECK(packed.values() == expected.packed);
    CHECK(same_bits(absmax.values(), expected.absmax));
  }
}

TEST_CASE("float16: every half widens exactly and comes back", "[kernels][nf4]") {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float wide = from_f16(half);
    const int exponent = static_cast<int>(bits >> 10 & 31u);
    const double mantissa = static_cast<double>(bits & 1023u);
    const double expected = exponent == 0 ? std::ldexp(mantissa, -24)
                                          : std::ldexp(1.0 + mantissa / 1024.0, exponent - 15);
    if (exponent == 31) {
      wrong += mantissa == 0.0 ? !std::isinf(wide) : !std::isnan(wide);
    } else {
      wrong += std::fabs(static_cast<double>(wide)) != expected || to_f16(wide) != half;
    }
    wrong += std::signbit(wide) != (bits >> 15 == 1);
  }
  CHECK(wrong == 0);
}

TEST_CASE("nf4, fp4: scaling by a power of two scales absmax and keeps the codes",
          "[kernels][nf4]") {
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const std::vector<float> weight = random_floats(5000, 12, 0.02f);
  const int power = GENERATE(-60, -3, 1, 100);
  std::vector<float> scaled = weight;
  for (float& value : scaled) value = std::ldexp(value, power);
  const auto quantize = [&](const std::vector<float>& values) {
    oracle::Nf4 result{std::vector<uint8_t>(2500), std::vector<float>(79)};
    REQUIRE(graft_quant4_quantize(type, GRAFT_F32, values.data(), 5000, 64, result.packed.data(),
                                  result.absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    return result;
  };
  const oracle::Nf4 one = quantize(weight), two = quantize(scaled);
  CHECK(one.packed == two.packed);
  for (size_t i = 0; i < 79; ++i) CHECK(two.absmax[i] == std::ldexp(one.absmax[i], power));
}

TEST_CASE("nf4, fp4: permuting blocks permutes their codes", "[kernels][nf4]") {
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  std::vector<float> weight = random_floats(640, 13, 0.02f), rotated = weight;
  std::rotate(rotated.begin(), rotated.begin() + 192, rotated.end());
  std::vector<uint8_t> packed(320), other(320);
  std::vector<float> absmax(10);
  REQUIRE(graft_quant4_quantize(type, GRAFT_F32, weight.data(), 640, 64, packed.data(),
                                absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  REQUIRE(graft_quant4_quantize(type, GRAFT_F32, rotated.data(), 640, 64, other.data(),
                                absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  std::rotate(packed.begin(), packed.begin() + 96, packed.end());
  CHECK(packed == other);
}

TEST_CASE("nf4, fp4: unknown types are refused", "[kernels][nf4]") {
  const std::vector<float> weight(64, 1.0f);
  std::vector<uint8_t> packed(32);
  std::vector<float> absmax(1), out(64);
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const auto quantize = [&](graft_quant4_type type, graft_float_type from) {
    return graft_quant4_quantize(type, from, weight.data(), 64, 64, packed.data(), absmax.data(),
                                 device, nullptr);
  };
  CHECK(quantize(static_cast<graft_quant4_type>(2), GRAFT_F32) == GRAFT_BAD_ARGUMENT);
  CHECK(quantize(GRAFT_NF4, static_cast<graft_float_type>(3)) == GRAFT_BAD_ARGUMENT);
  const graft_nf4_weight view{packed.data(),
                              absmax.data(),
                              nullptr,
                              nullptr,
                              0.0f,
                              64,
                              64,
                              static_cast<graft_quant4_type>(2)};
  CHECK(graft_nf4_decode(&view, out.data(), device, nullptr) == GRAFT_BAD_ARGUMENT);
}

TEST_CASE("nf4: a weight half way between two codes takes the lower one", "[kernels][nf4]") {
  const graft_device device = GENERATE(GRAFT_CPU, GRAFT_EMU);
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  // The first weight makes absmax 1, so that every other one is scaled by exactly 1; the count puts
  // each tie into a vector's body and into its tail.
  const int64_t count = GENERATE(16, 22, 31, 47);
  std::vector<float> weight(at(count), 1.0f);
  std::vector<int> expected(at(count), 15);
  for (int64_t i = 1; i < count; ++i) {
    const int64_t code = (i - 1) % 15;
    weight[at(i)] = (graft_nf4_codebook()[code] + graft_nf4_codebook()[code + 1]) * 0.5f;
    expected[at(i)] = static_cast<int>(code);
  }
  Guarded<uint8_t> packed(at(graft_nf4_packed_bytes(count)));
  Guarded<float> absmax(1);
  REQUIRE(graft_nf4_quantize(weight.data(), count, 64, packed.data(), absmax.data(), device,
                             nullptr) == GRAFT_OK);
  std::vector<int> codes;
  for (const uint8_t byte : packed.values()) {
    codes.push_back(byte >> 4);
    codes.push_back(byte & 15);
  }
  codes.resize(at(count));
  CHECK(codes == expected);
  CHECK((packed.intact() && absmax.intact()));
}

TEST_CASE("nf4, fp4: weights near every midpoint and all over the range have the nearest code",
          "[kernels][nf4]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  std::vector<float> sorted(graft_quant4_codebook(type), graft_quant4_codebook(type) + 16);
  std::sort(sorted.begin(), sorted.end());
  // A 1 in each block of 64, so that the other weights are scaled by exactly 1.
  std::vector<float> weight;
  const auto put = [&](uint32_t magnitude, bool negative) {
    if (weight.size() % 64 == 0) weight.push_back(1.0f);
    if (magnitude <= bits_of(1.0f))
      weight.push_back(float_of(magnitude | uint32_t{negative} << 31));
  };
  for (size_t i = 0; i < 15; ++i) {
    const float midpoint = (sorted[i] + sorted[i + 1]) * 0.5f;
    const uint32_t magnitude = bits_of(std::fabs(midpoint));
    for (uint32_t near = magnitude - std::min(magnitude, 2048u); near <= magnitude + 2048; ++near) {
      put(near, midpoint < 0.0f);
    }
  }
  for (uint32_t magnitude = 0; magnitude <= bits_of(1.0f); magnitude += 1009) {
    put(magnitude, false);
    put(magnitude, true);
  }
  const int64_t count = static_cast<int64_t>(weight.size());
  const auto expected = oracle::nf4_quantize(weight, 64, type);
  std::vector<uint8_t> packed(expected.packed.size());
  std::vector<float> absmax(expected.absmax.size());
  REQUIRE(graft_quant4_quantize(type, GRAFT_F32, weight.data(), count, 64, packed.data(),
                                absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  CHECK((packed == expected.packed));
}

TEST_CASE("nf4: nested absmax equals the oracle to the bit", "[kernels][nf4]") {
  const int64_t blocks = GENERATE(1, 2, 255, 256, 257, 1000, 5003);
  std::vector<float> absmax = random_floats(blocks, 3, 0.01f);
  for (float& value : absmax) value = std::fabs(value) + 0.03f;
  SECTION("spread values") {}
  SECTION("equal values, which have a nested absmax of zero") {
    std::fill(absmax.begin(), absmax.end(), 0.25f);
  }
  const auto expected = oracle::nf4_compress(absmax);
  Guarded<uint8_t> codes(absmax.size());
  Guarded<float> nested(expected.nested_absmax.size());
  float offset = -1.0f;
  REQUIRE(graft_nf4_compress_absmax(absmax.data(), blocks, codes.data(), nested.data(), &offset,
                                    GRAFT_CPU, nullptr) == GRAFT_OK);
  CHECK((codes.intact() && nested.intact()));
  CHECK(offset == expected.offset);
  CHECK(codes.values() == expected.absmax8);
  CHECK(same_bits(nested.values(), expected.nested_absmax));
  // Decoding uses the restored absmax; a weight of code 15 in each block shows it.
  const std::vector<uint8_t> packed(at(blocks) * 32, 0xff);
  const graft_nf4_weight view{packed.data(), nullptr, codes.data(), nested.data(), offset,
                              blocks * 64,   64};
  std::vector<float> out(at(blocks) * 64);
  REQUIRE(graft_nf4_decode(&view, out.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  std::vector<float> restored;
  for (int64_t i = 0; i < blocks; ++i) restored.push_back(out[at(i) * 64]);
  CHECK(same_bits(restored, oracle::nf4_absmax(expected)));
}

TEST_CASE("nf4: 16-bit results round the float32 once, ties to even", "[kernels][nf4]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  // absmax picks the value: code 15 decodes to absmax itself. Ties, denormals, overflow.
  struct Rounding {
    float value;
    uint16_t bf16, f16;
  };
  const std::vector<Rounding> cases = {
      {1.0f, 0x3f80, 0x3c00},
      {0x1.01p0f, 0x3f80, 0x3c04},     // half way between two bf16: to even
      {0x1.03p0f, 0x3f82, 0x3c0c},     // half way: up to even
      {0x1.002p0f, 0x3f80, 0x3c00},    // half way between two halves: to even
      {0x1.006p0f, 0x3f80, 0x3c02},    // half way: up to even
      {65504.0f, 0x4780, 0x7bff},      // the largest half
      {65520.0f, 0x4780, 0x7c00},      // rounds to infinity
      {0x1p-24f, 0x3380, 0x0001},      // the smallest half
      {0x1p-25f, 0x3300, 0x0000},      // half of it: to even
      {0x1.8p-24f, 0x33c0, 0x0002},    // half way between one and two of them
      {0x1.ffep-15f, 0x3880, 0x0400},  // rounds up to the smallest normal half
      {0x1p-133f, 0x0001, 0x0000},     // the smallest bf16
      {3.4e38f, 0x7f80, 0x7c00}};
  for (const Rounding& c : cases) {
    const std::vector<uint8_t> packed(32, 0xff);
    const graft_nf4_weight view{packed.data(), &c.value, nullptr, nullptr, 0.0f, 64, 64};
    Guarded<uint16_t> bf16(64), f16(64);
    REQUIRE(graft_nf4_decode_bf16(&view, bf16.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    REQUIRE(graft_nf4_decode_f16(&view, f16.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    INFO("value " << c.value);
    CHECK(bf16.values() == std::vector<uint16_t>(64, c.bf16));
    CHECK(f16.values() == std::vector<uint16_t>(64, c.f16));
    CHECK((bf16.intact() && f16.intact()));
  }
}

TEST_CASE("nf4, fp4: quantizing decoded weights gives the same codes", "[kernels][nf4]") {
  const graft_quant4_type type = GENERATE(GRAFT_NF4, GRAFT_FP4);
  const std::vector<float> weight = random_floats(10000, 9, 0.02f);
  std::vector<uint8_t> packed(5000), again(5000);
  std::vector<float> absmax(157), decoded(10000), decoded_again(10000);
  const auto quantize = [&](const std::vector<float>& values, std::vector<uint8_t>& codes) {
    REQUIRE(graft_quant4_quantize(type, GRAFT_F32, values.data(), 10000, 64, codes.data(),
                                  absmax.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  };
  quantize(weight, packed);
  const graft_nf4_weight view{packed.data(), absmax.data(), nullptr, nullptr,
                              0.0f,          10000,         64,      type};
  REQUIRE(graft_nf4_decode(&view, decoded.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
  quantize(decoded, again);
  if (type == GRAFT_NF4) {
    CHECK(packed == again);
  } else {  // FP4 has two codes of zero: the values are the same
    const graft_nf4_weight other{again.data(), absmax.data(), nullptr, nullptr,
                                 0.0f,         10000,         64,      type};
    REQUIRE(graft_nf4_decode(&other, decoded_again.data(), GRAFT_CPU, nullptr) == GRAFT_OK);
    CHECK(same_bits(decoded, decoded_again));
  }
  // Half of the widest gap between codes, plus the roundings: NF4's is 1 - 0.696, FP4's 1 - 2/3.
  const double widest = type == GRAFT_NF4 ? 0.15191 : 0.16667;
  double worst = 0.0;
  for (size_t i = 0; i < weight.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(weight[i] - decoded[i])) /
                                static_cast<double>(absmax[i / 64]));
  }
  CHECK(worst < widest);
}

TEST_CASE("nf4: values that are not finite are refused and named", "[kernels][nf4]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  std::vector<float> weight = random_floats(70000, 1);
  const size_t place = GENERATE(size_t{0}, size_t{63}, size_t{69999});
  weight[place] =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity());
  std::vector<uint8_t> packed(35000);
  std::vector<float> absmax(1094);
  CHECK(graft_nf4_quantize(weight.data(), 70000, 64, packed.data(), absmax.data(), GRAFT_CPU,
                           nullptr) == GRAFT_NOT_FINITE);
  const std::string expected = "weight[" + std::to_string(place) + "] is ";
  CHECK(std::string(graft_last_error()).find(expected) != std::string::npos);
  uint8_t code;
  float nested, offset;
  CHECK(graft_nf4_compress_absmax(&weight[place], 1, &code, &nested, &offset, GRAFT_CPU, nullptr) ==
        GRAFT_NOT_FINITE);
}

TEST_CASE("nf4: wrong arguments are named", "[kernels][nf4]") {
  float x[64] = {};
  uint8_t packed[32];
  const int block_size = GENERATE(0, 16, 48, 8192, -64);
  CHECK(graft_nf4_quantize(x, 64, block_size, packed, x, GRAFT_CPU, nullptr) == GRAFT_BAD_SHAPE);
  CHECK(graft_nf4_quantize(x, -1, 64, packed, x, GRAFT_CPU, nullptr) == GRAFT_BAD_SHAPE);
  graft_nf4_weight view{packed, x, packed, x, 0.0f, 64, 64};
  CHECK(graft_nf4_decode(&view, x, GRAFT_CPU, nullptr) == GRAFT_BAD_ARGUMENT);
  CHECK(std::string(graft_last_error()).find("both of absmax and absmax8") != std::string::npos);
  view.absmax = nullptr;
  view.absmax8 = nullptr;
  CHECK(graft_nf4_decode(&view, x, GRAFT_CPU, nullptr) == GRAFT_BAD_ARGUMENT);
  CHECK(graft_nf4_packed_bytes(7) == 4);
  CHECK(graft_nf4_block_count(65, 64) == 2);
  CHECK(graft_nf4_block_count(int64_t{1} << 40, 64) == int64_t{1} << 34);
  CHECK(graft_nf4_quantize(nullptr, 0, 64, nullptr, nullptr, GRAFT_CPU, nullptr) == GRAFT_OK);
}

TEST_CASE("nf4: streamed stores give the bits of cached ones", "[kernels][nf4]") {
  const int64_t count = 5 * 64 + 33;
  const std::vector<float> weight = random_floats(count, 8);
  std::vector<uint8_t> packed(at(count + 1) / 2);
  std::vector<float> absmax(6);
  REQUIRE(graft_nf4_quantize(weight.data(), count, 64, packed.data(), absmax.data(), GRAFT_CPU,
                             nullptr) == GRAFT_OK);
  const graft_nf4_weight view{packed.data(), absmax.data(), nullptr, nullptr, 0.0f, count, 64};
  const Environment restore;
  for (const InstructionSet set : instruction_sets()) {
    use_instruction_set(set);
    const WeightTable& isa = *table().weights;
    // 0: every vector is aligned. 1: none is. 32: some are.
    for (const size_t shift : {size_t{0}, size_t{1}, size_t{32}}) {
      for (const int64_t begin : {int64_t{0}, int64_t{1}, int64_t{64}}) {
        INFO(table().name << ", shift " << shift << ", begin " << begin);
        const auto same = [&](auto value, auto decode) {
          Guarded<decltype(value)> cached(at(count - begin), shift),
              streamed(at(count - begin), shift);
          decode(view, begin, count, cached.data(), Stores::kCached);
          decode(view, begin, count, streamed.data(), Stores::kStreamed);
          CHECK((cached.intact() && streamed.intact()));
          CHECK(std::memcmp(cached.data(), streamed.data(), cached.size() * sizeof value) == 0);
        };
        same(float{}, isa.quant4_decode_f32);
        same(uint16_t{}, isa.quant4_decode_bf16);
        same(uint16_t{}, isa.quant4_decode_f16);
      }
    }
  }
}

TEST_CASE("nf4: indices pass 2^31 elements", "[kernels][nf4][slow]") {
  // Memory without pages behind it: reads see zeros, and only the tail's output is written to. The
  // decode of a view that begins past 2^31 elements into the packed bytes proves nothing about
  // indices, so the instruction set's own function is called on the last blocks of the whole.
  const int64_t count = (int64_t{1} << 31) + 64 + 5;
  const int64_t bytes = graft_nf4_packed_bytes(count), blocks = graft_nf4_block_count(count, 64);
  const auto map = [](int64_t size) {
    void* memory = mmap(nullptr, at(size), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    return memory;
  };
  uint8_t* packed = static_cast<uint8_t*>(map(bytes));
  float* absmax = static_cast<float*>(map(blocks * 4));
  float* out = static_cast<float*>(map(count * 4));
  packed[bytes - 1] = 0xf7;
  absmax[blocks - 1] = 2.0f;
  const graft_nf4_weight view{packed, absmax, nullptr, nullptr, 0.0f, count, 64};
  for (const InstructionSet set : instruction_sets()) {
    const Environment restore;
    use_instruction_set(set);
    table().weights->quant4_decode_f32(view, int64_t{1} << 31, count, out + (int64_t{1} << 31),
                                       Stores::kCached);
    CHECK(out[count - 1] == 2.0f);
    CHECK(out[count - 2] == -2.0f);
    out[count - 1] = 0.0f;
  }
  munmap(packed, at(bytes));
  munmap(absmax, at(blocks * 4));
  munmap(out, at(count * 4));
}
