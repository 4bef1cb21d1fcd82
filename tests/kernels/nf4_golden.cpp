#include "tests/kernels/nf4_golden.h"

#include <cstring>
#include <iostream>
#include <string_view>

#include "core/hash.h"
#include "kernels/nf4.h"
#include "tests/kernels/support.h"
#include "tests/support/support.h"

namespace graft::kernels::test {
namespace {

template <class T>
std::string digest(const std::vector<T>& values) {
  return sha256_hex(
      std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
}

uint32_t next_of(uint32_t x) {
  return 1664525u * x + 1013904223u;
}

// The generator of make_nf4.py.
std::vector<float> golden_input(uint32_t seed, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    seed = next_of(seed);
    value = static_cast<float>(static_cast<int32_t>(seed >> 16) - 32768) / 524288.0f;
  }
  return values;
}

struct Quantized {
  Guarded<uint8_t> packed;
  Guarded<float> absmax;
};

Quantized quantize(const std::vector<float>& weight,
                   int block_size,
                   graft_device device,
                   graft_quant4_type type = GRAFT_NF4) {
  const int64_t count = static_cast<int64_t>(weight.size());
  Quantized result{Guarded<uint8_t>(static_cast<size_t>(graft_nf4_packed_bytes(count)), 0),
                   Guarded<float>(static_cast<size_t>(graft_nf4_block_count(count, block_size)))};
  REQUIRE(graft_quant4_quantize(type, GRAFT_F32, weight.data(), count, block_size,
                                result.packed.data(), result.absmax.data(), device,
                                nullptr) == GRAFT_OK);
  REQUIRE((result.packed.intact() && result.absmax.intact()));
  return result;
}

struct Decoded {
  std::vector<float> f32;
  std::vector<uint16_t> bf16, f16;
};

// `shift` elements past a 64-byte boundary: 0 takes the device's aligned path.
Decoded decode(const graft_nf4_weight& weight, graft_device device, size_t shift) {
  const size_t count = static_cast<size_t>(weight.count);
  Guarded<float> f32(count, shift);
  Guarded<uint16_t> bf16(count, shift), f16(count, shift);
  REQUIRE(graft_nf4_decode(&weight, f32.data(), device, nullptr) == GRAFT_OK);
  REQUIRE(graft_nf4_decode_bf16(&weight, bf16.data(), device, nullptr) == GRAFT_OK);
  REQUIRE(graft_nf4_decode_f16(&weight, f16.data(), device, nullptr) == GRAFT_OK);
  REQUIRE((f32.intact() && bf16.intact() && f16.intact()));
  return {f32.values(), bf16.values(), f16.values()};
}

}  // namespace

std::vector<float> shared_input(uint32_t seed, int64_t count, bool bf16) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    int32_t sum = 0;
    for (int i = 0; i < 12; ++i) {
      seed = next_of(seed);
      sum += static_cast<int32_t>(seed >> 16);
    }
    value = static_cast<float>(static_cast<double>(sum - 393210) / 65536.0 * 0.02);
    if (bf16) {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
      std::memcpy(&value, &bits, sizeof bits);
    }
  }
  return values;
}

std::vector<uint8_t> bytes_of_hex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<float> floats_of_hex(const std::string& hex) {
  const std::vector<uint8_t> bytes = bytes_of_hex(hex);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

Json read_golden() {
  return read_json_file(graft::test::source_path("tests/golden/nf4_bitsandbytes.json"));
}

void check_golden_cases(graft_device device) {
  const Json golden = read_golden();
  REQUIRE(golden.at("cases").size() > 0);
  for (const Json& c : golden.at("cases").as_array()) {
    const int64_t count = c.at("count").as_int();
    const int block_size = static_cast<int>(c.at("block_size").as_int());
    INFO("seed " << c.at("seed").as_int() << ", count " << count << ", block " << block_size);
    const std::vector<float> weight =
        golden_input(static_cast<uint32_t>(c.at("seed").as_int()), count);
    Quantized q = quantize(weight, block_size, device);
    if (const Json* packed = c.find("packed")) {
      CHECK(q.packed.values() == bytes_of_hex(packed->as_string()));
    }
    if (const Json* absmax = c.find("absmax")) {
      CHECK(same_bits(q.absmax.values(), floats_of_hex(absmax->as_string())));
    }
    CHECK(digest(q.packed.values()) == c.at("packed_sha256").as_string());
    CHECK(digest(q.absmax.values()) == c.at("absmax_sha256").as_string());
    for (const size_t shift : {size_t{0}, size_t{1}}) {
      const Decoded decoded =
          decode({q.packed.data(), q.absmax.data(), nullptr, nullptr, 0.0f, count, block_size},
                 device, shift);
      CHECK(digest(decoded.f32) == c.at("decoded_sha256").as_string());
      CHECK(digest(decoded.bf16) == c.at("decoded_bf16_sha256").as_string());
      CHECK(digest(decoded.f16) == c.at("decoded_f16_sha256").as_string());
    }
    const Json* nested = c.find("nested");
    if (nested == nullptr) continue;
    const int64_t blocks = static_cast<int64_t>(q.absmax.size());
    Guarded<uint8_t> codes(q.absmax.size());
    Guarded<float> scales(static_cast<size_t>((blocks + 255) / 256)), offset(1);
    REQUIRE(graft_nf4_compress_absmax(q.absmax.data(), blocks, codes.data(), scales.data(),
                                      offset.data(), device, nullptr) == GRAFT_OK);
    CHECK((codes.intact() && scales.intact() && offset.intact()));
    CHECK(same_bits(offset.values(), floats_of_hex(nested->at("offset").as_string())));
    CHECK(same_bits(scales.values(), floats_of_hex(nested->at("nested_absmax").as_string())));
    CHECK(codes.values() == bytes_of_hex(nested->at("absmax8").as_string()));
  }
}

void check_shared_golden(const std::string& path) {
  const Json golden = read_json_file(path);
  int checked = 0;
  for (const Json& c : golden.at("cases").as_array()) {
    const bool fp4 = c.at("quant_type").as_string() == "fp4";
    const graft_quant4_type type = fp4 ? GRAFT_FP4 : GRAFT_NF4;
    INFO(c.at("name").as_string());
    int64_t count = 1;
    for (const Json& size : c.at("shape").as_array()) count *= size.as_int();
    const int block_size = static_cast<int>(c.at("blocksize").as_int());
    std::vector<float> weight(static_cast<size_t>(count));
    if (const Json* input = c.find("input_f32")) {
      weight = floats_of_hex(input->as_string());
    } else if (c.at("seed").is_int()) {
      weight = shared_input(static_cast<uint32_t>(c.at("seed").as_int()), count,
                            c.at("dtype").as_string() == "bfloat16");
    }
    Quantized q = quantize(weight, block_size, GRAFT_CPU, type);
    CHECK(digest(q.packed.values()) == c.at("packed_sha256").as_string());
    graft_nf4_weight view{q.packed.data(), q.absmax.data(), nullptr, nullptr, 0.0f,
                          count,           block_size};
    Guarded<uint8_t> codes(q.absmax.size());
    std::vector<uint8_t> their_codes;
    std::vector<float> their_scales;
    if (c.at("nested").as_bool()) {
      const int64_t blocks = static_cast<int64_t>(q.absmax.size());
      Guarded<float> scales(static_cast<size_t>((blocks + 255) / 256));
      float offset;
      REQUIRE(graft_nf4_compress_absmax(q.absmax.data(), blocks, codes.data(), scales.data(),
                                        &offset, GRAFT_CPU, nullptr) == GRAFT_OK);
      const float their_offset = floats_of_hex(c.at("nested_offset_f32").as_string())[0];
      // torch's mean adds in another order: the offset is data of the file. Codes are the same
      // where ours is.
      CHECK(offset == Approx(their_offset).epsilon(1e-6));
      if (offset == their_offset) {
        CHECK(codes.values() == bytes_of_hex(c.at("absmax_u8_exact_nearest_hex").as_string()));
        CHECK(same_bits(scales.values(), floats_of_hex(c.at("nested_absmax_f32").as_string())));
      }
      their_codes = bytes_of_hex(c.at("absmax_u8_hex").as_string());
      their_scales = floats_of_hex(c.at("nested_absmax_f32").as_string());
      view = {q.packed.data(), nullptr, their_codes.data(), their_scales.data(),
              their_offset,    count,   block_size};
    } else {
      CHECK(same_bits(q.absmax.values(), floats_of_hex(c.at("absmax_f32").as_string())));
    }
    view.type = type;
    const Decoded decoded = decode(view, GRAFT_CPU, 1);
    CHECK(digest(decoded.f32) == c.at("dequant_float32_sha256").as_string());
    CHECK(digest(decoded.bf16) == c.at("dequant_bfloat16_sha256").as_string());
    ++checked;
  }
  CHECK(checked == 8);
  std::cout << "nf4_golden.json: " << checked << " of " << golden.at("cases").size()
            << " cases: codes equal the exact nearest, decoded values bitwise\n";
}

}  // namespace graft::kernels::test
