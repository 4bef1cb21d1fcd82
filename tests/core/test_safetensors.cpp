#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/safetensors.h"
#include "tests/support/support.h"

using graft::DType;
using graft::SafetensorsFile;
using graft::test::TempDir;

namespace {

std::string file_text(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &size, 8);
  return text + header + data;
}

void write_raw(const std::string& path, const std::string& text) {
  graft::write_file_atomically(path, text);
}

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

TEST_CASE("safetensors: what is written is read back, sorted and byte-stable", "[core]") {
  const TempDir dir;
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> b = {7, 8, 9};
  const std::vector<int64_t> scalar = {42};
  const auto write = [&](const std::string& path) {
    return graft::write_safetensors(path,
                                    {{{"b", DType::kU8, {3}}, bytes_of(b)},
                                     {{"a", DType::kF32, {2, 3}}, bytes_of(a)},
                                     {{"s", DType::kI64, {}}, bytes_of(scalar)}},
                                    {{"k", "v"}});
  };
  CHECK(write(dir.file("x")) == write(dir.file("y")));
  const SafetensorsFile file(dir.file("x"));
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.metadata().at("k") == "v");
  CHECK(file.at("a").shape == std::vector<int64_t>{2, 3});
  CHECK(std::memcmp(file.bytes(file.at("a")).data(), a.data(), 24) == 0);
  CHECK(std::memcmp(file.bytes(file.at("b")).data(), b.data(), 3) == 0);
  CHECK(file.at("s").count() == 1);
  // The reference writer's order: I64 before F32 before U8.
  CHECK(file.at("s").begin == 0);
  CHECK(file.at("a").begin == 8);
  CHECK(file.at("b").begin == 32);
}

TEST_CASE("safetensors: a header made by hand from the format description is read", "[core]") {
  const TempDir dir;
  write_raw(dir.file("x"),
            file_text(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  )", "ab"));
  const SafetensorsFile file(dir.file("x"));
  CHECK(std::memcmp(file.bytes(file.at("t")).data(), "ab", 2) == 0);
}

TEST_CASE("safetensors: damaged files are refused, never read wrong", "[core]") {
  const TempDir dir;
  const std::string text = GENERATE(
      as<std::string>{}, "", "1234567", std::string(8, '\xff'), file_text("{", ""),
      file_text("[]", ""), file_text(" {}", ""), file_text("{}", "x"),
      file_text(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "a"),
      file_text(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "abc"),
      file_text(R"({"t":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}})", "ab"),
      file_text(R"({"t":{"dtype":"Q8","shape":[2],"data_offsets":[0,2]}})", "ab"),
      file_text(R"({"t":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}})", "ab"),
      file_text(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}})", "ab"),
      file_text(R"({"t":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}})", "ab"),
      file_text(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}})", "ab"),
      file_text(R"({"t":{"dtype":"F64","shape":[4611686018427387904,2],"data_offsets":[0,0]}})",
                ""),
      file_text(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                R"("b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                "a"),
      file_text(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                "abc"),
      file_text(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                "a"),
      file_text(R"({"__metadata__":{"a":1}})", ""));
  write_raw(dir.file("x"), text);
  CHECK_THROWS_AS(SafetensorsFile(dir.file("x")), graft::Error);
}

TEST_CASE("safetensors: every truncation of a file is refused", "[core]") {
  const TempDir dir;
  const std::vector<float> a = {1, 2, 3};
  graft::write_safetensors(dir.file("x"), {{{"a", DType::kF32, {3}}, bytes_of(a)}});
  const std::string whole = graft::read_file(dir.file("x"));
  for (size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    write_raw(dir.file("y"), whole.substr(0, size));
    CHECK_THROWS_AS(SafetensorsFile(dir.file("y")), graft::Error);
  }
}

TEST_CASE("safetensors: a shard index may not leave its directory", "[core]") {
  const TempDir dir;
  write_raw(dir.file("model.safetensors.index.json"), R"({"weight_map":{"a":"../x.safetensors"}})");
  CHECK_THROWS_WITH(graft::SafetensorsDirectory(dir.path()),
                    Catch::Contains("leaves the directory"));
}

TEST_CASE("safetensors: shards are one directory of tensors", "[core]") {
  const TempDir dir;
  const std::vector<float> a = {1};
  graft::write_safetensors(dir.file("m1.safetensors"), {{{"a", DType::kF32, {1}}, bytes_of(a)}});
  graft::write_safetensors(dir.file("m2.safetensors"), {{{"b", DType::kF32, {1}}, bytes_of(a)}});
  write_raw(dir.file("model.safetensors.index.json"),
            R"({"metadata":{},"weight_map":{"a":"m1.safetensors","b":"m2.safetensors"}})");
  const graft::SafetensorsDirectory model(dir.path());
  CHECK(model.names() == std::vector<std::string>{"a", "b"});
  CHECK_THROWS_WITH(model.at("c"), Catch::Contains("has no tensor \"c\""));
}

TEST_CASE("safetensors: the writer refuses missing and surplus bytes", "[core]") {
  const TempDir dir;
  const std::vector<float> a = {1, 2};
  graft::SafetensorsWriter short_writer(dir.file("x"), {{"a", DType::kF32, {3}}});
  short_writer.write("a", bytes_of(a));
  CHECK_THROWS_AS(short_writer.commit(), graft::Error);
  CHECK_THROWS_AS(short_writer.write("b", bytes_of(a)), graft::Error);
  CHECK_THROWS_AS(short_writer.write("a", bytes_of(a)), graft::Error);
  CHECK_FALSE(graft::file_exists(dir.file("x")));
}

TEST_CASE("safetensors: 16-bit conversions round to nearest even", "[core]") {
  // Every 16-bit pattern that is a number reads and writes back as itself.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_f16 = graft::f16_to_f32(half);
    if (!std::isnan(from_f16)) {
      REQUIRE(graft::f32_to_f16(from_f16) == half);
    }
    const float from_bf16 = graft::bf16_to_f32(half);
    if (!std::isnan(from_bf16)) {
      REQUIRE(graft::f32_to_bf16(from_bf16) == half);
    }
  }
  CHECK(graft::bf16_to_f32(graft::f32_to_bf16(1.0F + 0x1p-8F)) == 1.0F);  // tie to even
  CHECK(graft::bf16_to_f32(graft::f32_to_bf16(1.0F + 3 * 0x1p-8F)) == 1.0F + 0x1p-6F);
  CHECK(graft::f16_to_f32(graft::f32_to_f16(1.0F + 0x1p-11F)) == 1.0F);
  CHECK(graft::f16_to_f32(graft::f32_to_f16(65519.0F)) == 65504.0F);
  CHECK(std::isinf(graft::f16_to_f32(graft::f32_to_f16(65520.0F))));
  CHECK(graft::f16_to_f32(graft::f32_to_f16(0x1p-25F)) == 0.0F);  // tie to even
}
