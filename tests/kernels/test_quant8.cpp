#include <bit>
#include <limits>

#include "core/json.h"
#include "kernels/map8.h"
#include "kernels/nf4.h"
#include "kernels/oracle/oracle.h"
#include "kernels/quant8.h"
#include "tests/kernels/nf4_golden.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

using namespace graft::kernels;
using namespace graft::kernels::test;

namespace {

constexpr graft_map8 kMaps[] = {GRAFT_MAP_DYNAMIC_SIGNED, GRAFT_MAP_DYNAMIC_UNSIGNED,
                                GRAFT_MAP_LOG2};

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Quantized quantize(graft_map8 map, const std::vector<float>& x, int block_size) {
  Guarded<uint8_t> codes(x.size(), 3);
  Guarded<float> absmax((x.size() + static_cast<size_t>(block_size) - 1) /
                        static_cast<size_t>(block_size));
  REQUIRE(graft_quant8_quantize(map, x.data(), static_cast<int64_t>(x.size()), block_size,
                                codes.data(), absmax.data()) == GRAFT_OK);
  REQUIRE((codes.intact() && absmax.intact()));
  return {codes.values(), absmax.values()};
}

}  // namespace

TEST_CASE("quant8: the maps are bitsandbytes' own, and the log2 map is its formula",
          "[kernels][quant8]") {
  for (int i = 1; i < 255; ++i) {
    const double expected = std::exp2(-40.0 * (254 - i) / 253.0);
    CHECK(static_cast<double>(graft_map8_values(GRAFT_MAP_LOG2)[i]) ==
          Approx(expected).epsilon(1e-7));
  }
  CHECK(graft_map8_values(GRAFT_MAP_LOG2)[0] == 0.0f);
  CHECK(graft_map8_values(GRAFT_MAP_LOG2)[254] == 1.0f);
  CHECK(graft_map8_values(static_cast<graft_map8>(7)) == nullptr);
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) return;
  const graft::Json golden = graft::read_json_file(shared + "/data/nf4_golden.json");
  const auto same = [&](const char* key, graft_map8 map) {
    const float* const values = graft_map8_values(map);
    return same_bits(floats_of_hex(golden.at(key).as_string()), {values, values + 256});
  };
  CHECK(same("dynamic_signed_f32", GRAFT_MAP_DYNAMIC_SIGNED));
  CHECK(same("dynamic_unsigned_f32", GRAFT_MAP_DYNAMIC_UNSIGNED));
}

TEST_CASE("quant8: codes are the golden file's exact nearest", "[kernels][quant8]") {
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) return;
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  const graft::Json golden = graft::read_json_file(shared + "/data/nf4_golden.json");
  const graft::Json& c = golden.at("blockwise8");
  std::vector<float> x =
      shared_input(static_cast<uint32_t>(c.at("seed").as_int()), c.at("n").as_int(), false);
  const Quantized got = quantize(GRAFT_MAP_DYNAMIC_SIGNED, x, 256);
  CHECK(got.codes == bytes_of_hex(c.at("signed_exact_nearest_hex").as_string()));
  CHECK(same_bits(got.absmax, floats_of_hex(c.at("signed_absmax_f32").as_string())));
  for (float& value : x) value *= value;
  const Quantized squares = quantize(GRAFT_MAP_DYNAMIC_UNSIGNED, x, 256);
  CHECK(squares.codes == bytes_of_hex(c.at("unsigned_of_v_squared_exact_hex").as_string()));
  CHECK(same_bits(squares.absmax, floats_of_hex(c.at("unsigned_absmax_f32").as_string())));
}

TEST_CASE("quant8: every path equals the oracle and stays inside its buffers",
          "[kernels][quant8]") {
  const graft_map8 map = GENERATE(from_range(std::begin(kMaps), std::end(kMaps)));
  const int block_size = GENERATE(32, 64, 256, 4096);
  const int64_t count = GENERATE_COPY(1, 15, 17, 2 * block_size - 1, 2 * block_size + 1, 70001);
  std::vector<float> x = random_floats(count, 5, 1.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    // Magnitudes over 2^-47 .. 2^3, so that every decade of a map is met.
    x[i] = std::ldexp(x[i], -static_cast<int>(i * 7 % 48));
    if (map != GRAFT_MAP_DYNAMIC_SIGNED) x[i] = std::fabs(x[i]);
  }
  if (count > block_size) std::fill(x.begin(), x.begin() + block_size, 0.0f);
  const oracle::Quant8 expected = oracle::quant8_quantize(x, graft_map8_values(map), block_size);
  const std::vector<float> decoded = same_everywhere([&] {
    const Quantized got = quantize(map, x, block_size);
    REQUIRE(got.codes == expected.codes);
    REQUIRE(same_bits(got.absmax, expected.absmax));
    Guarded<float> out(x.size());
    REQUIRE(graft_quant8_decode(map, got.codes.data(), got.absmax.data(), count, block_size,
                                out.data()) == GRAFT_OK);
    REQUIRE(out.intact());
    return out.values();
  });
  for (size_t i = 0; i < decoded.size(); ++i) {
    const float absmax = expected.absmax[i / static_cast<size_t>(block_size)];
    REQUIRE(decoded[i] == graft_map8_values(map)[expected.codes[i]] * absmax);
  }
}

TEST_CASE("quant8: midpoints and their neighbours take the right code", "[kernels][quant8]") {
  const graft_map8 map = GENERATE(from_range(std::begin(kMaps), std::end(kMaps)));
  const float* const values = graft_map8_values(map);
  // A block's absmax of 1 leaves the others as they are. All midpoints, both neighbours of each.
  std::vector<float> x;
  std::vector<uint8_t> expected;
  const auto put = [&](float value, int code) {
    if (x.size() % 4096 == 0) {
      x.push_back(1.0f);
      expected.push_back(map == GRAFT_MAP_LOG2 ? uint8_t{254} : uint8_t{255});
    }
    x.push_back(value);
    expected.push_back(static_cast<uint8_t>(code));
  };
  for (int i = 0; i + 1 < (map == GRAFT_MAP_LOG2 ? 255 : 256); ++i) {
    const float midpoint = (values[i] + values[i + 1]) * 0.5f;
    put(midpoint, i);
    put(std::nextafter(midpoint, 2.0f), i + 1);
    put(std::nextafter(midpoint, -2.0f), i);
    put(values[i], i);
  }
  same_everywhere([&] {
    const Quantized got = quantize(map, x, 4096);
    CHECK(got.codes == expected);
    return got.absmax;
  });
}

TEST_CASE("quant8: magnitudes of every octave take the nearest code", "[kernels][quant8]") {
  const graft_map8 map = GENERATE(from_range(std::begin(kMaps), std::end(kMaps)));
  const float sign = GENERATE(1.0f, -1.0f);
  if (sign < 0.0f && map != GRAFT_MAP_DYNAMIC_SIGNED) return;
  // Every 4,799th float32 from 2^-44 to 1, 1,748 an octave, in blocks whose absmax of 1 leaves them
  // as they are.
  std::vector<float> x;
  const uint32_t begin = std::bit_cast<uint32_t>(0x1p-44f), end = std::bit_cast<uint32_t>(1.0f);
  for (uint32_t bits = begin; bits < end; bits += 4799) {
    if (x.size() % 4096 == 0) x.push_back(1.0f);
    x.push_back(sign * std::bit_cast<float>(bits));
  }
  const oracle::Quant8 expected = oracle::quant8_quantize(x, graft_map8_values(map), 4096);
  same_everywhere([&] {
    const Quantized got = quantize(map, x, 4096);
    CHECK(got.codes == expected.codes);
    return got.absmax;
  });
}

TEST_CASE("quant8: values that are not finite and wrong arguments are refused",
          "[kernels][quant8]") {
  const Environment restore;
  use_instruction_set(GENERATE(from_range(instruction_sets())));
  std::vector<float> x = random_floats(70000, 1);
  std::vector<uint8_t> codes(70000);
  std::vector<float> absmax(300);
  const auto run = [&](graft_map8 map, int64_t count, int block_size) {
    return graft_quant8_quantize(map, x.data(), count, block_size, codes.data(), absmax.data());
  };
  CHECK(run(static_cast<graft_map8>(3), 10, 256) == GRAFT_BAD_ARGUMENT);
  CHECK(run(GRAFT_MAP_LOG2, 10, 100) == GRAFT_BAD_SHAPE);
  CHECK(run(GRAFT_MAP_LOG2, -1, 256) == GRAFT_BAD_SHAPE);
  x[69999] = std::numeric_limits<float>::quiet_NaN();
  CHECK(run(GRAFT_MAP_DYNAMIC_SIGNED, 70000, 256) == GRAFT_NOT_FINITE);
  CHECK(std::string(graft_last_error()).find("x[69999]") != std::string::npos);
}
