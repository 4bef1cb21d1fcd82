// safetensors files: a hostile-input reader, and a byte-stable writer.
// Format: https://github.com/huggingface/safetensors (README, "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace graft {

enum class DType {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64
};  // in the reference writer's order

int64_t dtype_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  // "F32", "BF16", ...

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // empty = scalar
  int64_t begin = 0;           // bytes from the start of the data
  int64_t end = 0;
  int64_t count() const;  // elements
};

std::string shape_text(std::span<const int64_t> shape);  // "[64, 128]"

// One file. Refused (kData, naming file and tensor): header over 100,000,000 bytes or past the end,
// bad UTF-8 or JSON, duplicate names, unknown dtype, negative or overflowing shape, offsets that
// are not contiguous from 0, wrong byte counts, trailing bytes.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // by name
  const TensorInfo* find(std::string_view name) const;
  const TensorInfo& at(std::string_view name) const;  // Errors: kData
  // The tensor's bytes in a mapping of the file, made at the first call. Not for several threads at
  // once.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;
  // Its bytes from `first` on, read into `out`; nothing is mapped. Errors: kIo.
  void read(const TensorInfo& tensor, int64_t first, std::span<std::byte> out) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  PositionedFile file_;
  mutable std::unique_ptr<MappedFile> mapping_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  int64_t data_begin_ = 0;
};

// All tensors of a model directory: model.safetensors, or the shards named by
// model.safetensors.index.json (shard names may not leave the directory).
class SafetensorsDirectory {
 public:
  explicit SafetensorsDirectory(const std::string& directory);  // Errors: kIo, kData
  struct Entry {
    const SafetensorsFile* file;
    const TensorInfo* info;
    std::span<const std::byte> bytes() const { return file->bytes(*info); }
  };
  std::optional<Entry> find(std::string_view name) const;
  Entry at(std::string_view name) const;   // Errors: kData with the nearest known name
  std::vector<std::string> names() const;  // sorted
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> entries_;
};

// Writer. Declare every tensor, then write each one's bytes in the order of `order()`, then commit.
// Order and header bytes equal the reference writer: dtype wide to narrow, then name; header padded
// with spaces so that the data starts at a multiple of 8. `__metadata__` holds {"format": "pt"}
// plus the given pairs, keys sorted. Byte-stable: no time, host or path.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path,
                    std::vector<TensorSpec> specs,
                    std::map<std::string, std::string> metadata = {});
  const std::vector<TensorSpec>& order() const { return specs_; }
  // Next tensor of order(), whole or in pieces; the sizes must add up exactly.
  void write(std::string_view name, std::span<const std::byte> bytes);
  // Checks that every byte was written. Returns the SHA-256 of the file.
  std::string commit();

 private:
  std::vector<TensorSpec> specs_;
  AtomicFile file_;
  size_t next_ = 0;
  int64_t written_ = 0;
};

// Small files in one call.
struct TensorBytes {
  TensorSpec spec;
  std::span<const std::byte> bytes;
};
std::string write_safetensors(const std::string& path,
                              std::vector<TensorBytes> tensors,
                              std::map<std::string, std::string> metadata = {});

// `count` elements of F32, BF16, F16 or F64 bytes as float32. Errors: kData for other dtypes.
void convert_to_f32(DType dtype, std::span<const std::byte> bytes, float* out, int64_t count);
uint16_t f32_to_bf16(float value);  // round to nearest even
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);  // round to nearest even, overflow to infinity
float f16_to_f32(uint16_t bits);

}  // namespace graft
