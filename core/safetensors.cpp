#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/json.h"

namespace graft {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};
constexpr DTypeRow kDTypes[] = {
    {DType::kBool, "BOOL", 1}, {DType::kU8, "U8", 1},   {DType::kI8, "I8", 1},
    {DType::kI16, "I16", 2},   {DType::kU16, "U16", 2}, {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2}, {DType::kI32, "I32", 4}, {DType::kU32, "U32", 4},
    {DType::kF32, "F32", 4},   {DType::kF64, "F64", 8}, {DType::kI64, "I64", 8},
    {DType::kU64, "U64", 8},
};

const DTypeRow& dtype_row(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)];
}

// count * bytes with overflow detection; -1 on overflow.
int64_t checked_bytes(std::span<const int64_t> shape, DType dtype) {
  int64_t bytes = dtype_bytes(dtype);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return -1;
    }
  }
  return bytes;
}

class HeaderReader {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  [[noreturn]] void refuse(const std::string& what, const std::string& tensor = "") const {
    fail(ExitCode::kData, what, tensor.empty() ? path_ : path_ + ": " + tensor,
         "the file is damaged or not a safetensors file; fetch or write it again");
  }

  TensorInfo tensor(const std::string& name, const Json& entry) const {
    TensorInfo info;
    info.name = name;
    if (!entry.is_object() || entry.size() != 3) {
      refuse("expected {dtype, shape, data_offsets}", name);
    }
    const Json* dtype = entry.find("dtype");
    const Json* shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (dtype == nullptr || shape == nullptr || offsets == nullptr || !dtype->is_string() ||
        !shape->is_array() || !offsets->is_array() || offsets->size() != 2) {
      refuse("expected {dtype, shape, data_offsets}", name);
    }
    const auto row = std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const DTypeRow& one) {
      return one.name == dtype->as_string();
    });
    if (row == std::end(kDTypes)) {
      refuse("dtype \"" + dtype->as_string() + "\" is not supported", name);
    }
    info.dtype = row->dtype;
    for (const Json& size : shape->as_array()) {
      info.shape.push_back(non_negative(size, "shape", name));
    }
    info.begin = non_negative(offsets->as_array()[0], "data_offsets", name);
    info.end = non_negative(offsets->as_array()[1], "data_offsets", name);
    const int64_t bytes = checked_bytes(info.shape, info.dtype);
    if (bytes < 0 || info.end < info.begin || info.end - info.begin != bytes) {
      refuse("shape " + shape_text(info.shape) + " of " + dtype->as_string() + " needs " +
                 (bytes < 0 ? std::string("more than 2^63") : std::to_string(bytes)) +
                 " bytes, data_offsets give " + std::to_string(info.end - info.begin),
             name);
    }
    return info;
  }

 private:
  int64_t non_negative(const Json& value, const char* key, const std::string& name) const {
    if (!value.is_int() || value.as_int() < 0) {
      refuse(std::string(key) + " must hold integers of at least 0", name);
    }
    return value.as_int();
  }
  std::string path_;
};

Json header_json(const std::vector<TensorSpec>& specs,
                 const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  Json meta = Json::object();
  for (const auto& [key, value] : metadata) {
    meta.set(key, value);
  }
  header.set("__metadata__", std::move(meta));
  int64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    Json shape = Json::array();
    for (const int64_t size : spec.shape) {
      shape.push_back(size);
    }
    const int64_t bytes = checked_bytes(spec.shape, spec.dtype);
    header.set(spec.name, Json::object({{"dtype", dtype_name(spec.dtype)},
                                        {"shape", std::move(shape)},
                                        {"data_offsets", Json::array({offset, offset + bytes})}}));
    offset += bytes;
  }
  return header;
}

// Weights in a form that runs code when it is read.
void refuse_pickles(const std::string& directory) {
  if (!directory_exists(directory)) return;
  for (const std::string& name : list_directory(directory)) {
    for (const std::string_view end : {".bin", ".pt", ".pth", ".ckpt"}) {
      if (name.size() > end.size() && name.substr(name.size() - end.size()) == end) {
        fail(ExitCode::kData, "the weights are a pickle file, which can run code when it is read",
             join_path(directory, name),
             "save them as safetensors: model.save_pretrained(directory) in transformers");
      }
    }
  }
}

}  // namespace

int64_t dtype_bytes(DType dtype) {
  return dtype_row(dtype).bytes;
}

std::string_view dtype_name(DType dtype) {
  return dtype_row(dtype).name;
}

int64_t TensorInfo::count() const {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= size;
  }
  return count;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  constexpr uint64_t kMaxHeaderBytes = 100'000'000;
  const HeaderReader reader(path);
  const int64_t size = file_.size();
  if (size < 8) {
    reader.refuse("expected at least 8 bytes, got " + std::to_string(size));
  }
  uint64_t header_bytes = 0;
  file_.read(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  if (header_bytes > kMaxHeaderBytes || header_bytes > static_cast<uint64_t>(size - 8)) {
    reader.refuse("the header would take " + std::to_string(header_bytes) +
                  " bytes, the file has " + std::to_string(size - 8) + " after its length");
  }
  std::string header_text(header_bytes, '\0');
  file_.read(8, std::as_writable_bytes(std::span(header_text)));
  if (header_text.empty() || header_text.front() != '{') {
    reader.refuse("the header must begin with '{'");
  }
  const Json header = parse_json(header_text, path + " (header)");
  for (const auto& [name, entry] : header.as_object()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) {
        reader.refuse("__metadata__ must be an object of texts");
      }
      for (const auto& [key, value] : entry.as_object()) {
        if (!value.is_string()) {
          reader.refuse("__metadata__ must be an object of texts", key);
        }
        metadata_[key] = value.as_string();
      }
    } else {
      tensors_.push_back(reader.tensor(name, entry));
    }
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.begin != offset) {
      reader.refuse("data must be contiguous: expected begin " + std::to_string(offset) + ", got " +
                        std::to_string(tensor.begin),
                    tensor.name);
    }
    offset = tensor.end;
  }
  data_begin_ = static_cast<int64_t>(8 + header_bytes);
  const int64_t data_bytes = size - data_begin_;
  if (offset != data_bytes) {
    reader.refuse("the tensors need " + std::to_string(offset) + " bytes of data, the file has " +
                  std::to_string(data_bytes));
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto place = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& info, std::string_view key) { return info.name < key; });
  return place != tensors_.end() && place->name == name ? &*place : nullptr;
}

const TensorInfo& SafetensorsFile::at(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    std::vector<std::string_view> known;
    for (const TensorInfo& tensor : tensors_) {
      known.push_back(tensor.name);
    }
    const std::string near = nearest_name(name, known);
    fail(ExitCode::kData, "no tensor \"" + std::string(name) + "\" in the file", path(),
         near.empty() ? "" : "the nearest name there is \"" + near + "\"");
  }
  return *info;
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorInfo& tensor) const {
  if (mapping_ == nullptr) mapping_ = std::make_unique<MappedFile>(path());
  const auto begin = static_cast<size_t>(data_begin_ + tensor.begin);
  const auto count = static_cast<size_t>(tensor.end - tensor.begin);
  if (mapping_->bytes().size() < begin + count) {
    fail(ExitCode::kIo, "the file became shorter after it was opened", path() + ": " + tensor.name,
         "something else changes the file; wait for it, or fetch the file again");
  }
  return mapping_->bytes().subspan(begin, count);
}

void SafetensorsFile::read(const TensorInfo& tensor,
                           int64_t first,
                           std::span<std::byte> out) const {
  if (first < 0 || first > tensor.end - tensor.begin ||
      static_cast<int64_t>(out.size()) > tensor.end - tensor.begin - first) {
    fail(ExitCode::kBug, "bytes outside the tensor are asked for", path() + ": " + tensor.name);
  }
  file_.read(data_begin_ + tensor.begin + first, out);
}

SafetensorsDirectory::SafetensorsDirectory(const std::string& directory) : directory_(directory) {
  const std::string single = join_path(directory, "model.safetensors");
  const std::string index_path = join_path(directory, "model.safetensors.index.json");
  const auto add = [&](const std::string& path) {
    if (!file_exists(path)) {
      fail(ExitCode::kIo, "the shard is missing", path,
           "fetch the checkpoint again: model.safetensors.index.json names this file");
    }
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    for (const TensorInfo& info : files_.back()->tensors()) {
      if (!entries_.emplace(info.name, Entry{files_.back().get(), &info}).second) {
        fail(ExitCode::kData, "the tensor is in two shards", path + ": " + info.name);
      }
    }
  };
  if (file_exists(index_path)) {
    const Json index = read_json_file(index_path);
    const Json* weight_map = index.find("weight_map");
    if (weight_map == nullptr || !weight_map->is_object()) {
      fail(ExitCode::kData, "missing object \"weight_map\"", index_path);
    }
    std::vector<std::string> shards;
    for (const auto& [tensor, shard] : weight_map->as_object()) {
      shards.push_back(shard.as_string());
    }
    std::sort(shards.begin(), shards.end());
    shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
    for (const std::string& shard : shards) {
      if (shard.empty() || shard.find('/') != std::string::npos || shard.front() == '.') {
        fail(ExitCode::kData, "shard name \"" + shard + "\" leaves the directory", index_path);
      }
      add(join_path(directory, shard));
    }
    for (const auto& [tensor, shard] : weight_map->as_object()) {
      const auto entry = entries_.find(tensor);
      if (entry == entries_.end() || base_name(entry->second.file->path()) != shard.as_string()) {
        fail(ExitCode::kData, "tensor \"" + tensor + "\" is not in " + shard.as_string(),
             index_path, "the index and the shards do not belong together");
      }
    }
  } else if (file_exists(single)) {
    add(single);
  } else {
    refuse_pickles(directory);
    fail(ExitCode::kIo, "no model.safetensors and no model.safetensors.index.json", directory,
         directory_exists(directory)
             ? "give a Hugging Face model directory with safetensors weights"
             : "check the path: the directory does not exist");
  }
}

std::optional<SafetensorsDirectory::Entry> SafetensorsDirectory::find(std::string_view name) const {
  const auto entry = entries_.find(name);
  return entry == entries_.end() ? std::nullopt : std::optional(entry->second);
}

SafetensorsDirectory::Entry SafetensorsDirectory::at(std::string_view name) const {
  const auto entry = find(name);
  if (!entry) {
    std::vector<std::string_view> known;
    for (const auto& [key, unused] : entries_) {
      known.push_back(key);
    }
    const std::string near = nearest_name(name, known);
    fail(ExitCode::kData, "the model has no tensor \"" + std::string(name) + "\"", directory_,
         near.empty() ? "" : "the nearest name there is \"" + near + "\"");
  }
  return *entry;
}

std::vector<std::string> SafetensorsDirectory::names() const {
  std::vector<std::string> names;
  for (const auto& [name, unused] : entries_) {
    names.push_back(name);
  }
  return names;
}

SafetensorsWriter::SafetensorsWriter(std::string path,
                                     std::vector<TensorSpec> specs,
                                     std::map<std::string, std::string> metadata)
    : specs_(std::move(specs)), file_(std::move(path)) {
  std::sort(specs_.begin(), specs_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  metadata.emplace("format", "pt");
  std::string header = dump_json(header_json(specs_, metadata));
  header.append((8 - header.size() % 8) % 8, ' ');
  const uint64_t header_bytes = header.size();
  char length[8];
  std::memcpy(length, &header_bytes, 8);
  file_.write(std::string_view(length, 8));
  file_.write(header);
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  while (next_ < specs_.size() && specs_[next_].name != name &&
         written_ == checked_bytes(specs_[next_].shape, specs_[next_].dtype)) {
    ++next_;
    written_ = 0;
  }
  if (next_ == specs_.size() || specs_[next_].name != name) {
    fail(ExitCode::kBug, "tensor \"" + std::string(name) + "\" written out of order");
  }
  written_ += static_cast<int64_t>(bytes.size());
  if (written_ > checked_bytes(specs_[next_].shape, specs_[next_].dtype)) {
    fail(ExitCode::kBug, "too many bytes for tensor \"" + std::string(name) + "\"");
  }
  file_.write(bytes);
}

std::string SafetensorsWriter::commit() {
  while (next_ < specs_.size() &&
         written_ == checked_bytes(specs_[next_].shape, specs_[next_].dtype)) {
    ++next_;
    written_ = 0;
  }
  if (next_ != specs_.size()) {
    fail(ExitCode::kBug, "tensor \"" + specs_[next_].name + "\" was not written completely");
  }
  return file_.commit();
}

std::string write_safetensors(const std::string& path,
                              std::vector<TensorBytes> tensors,
                              std::map<std::string, std::string> metadata) {
  std::vector<TensorSpec> specs;
  std::map<std::string_view, std::span<const std::byte>> bytes;
  for (const TensorBytes& tensor : tensors) {
    specs.push_back(tensor.spec);
    bytes[tensor.spec.name] = tensor.bytes;
  }
  SafetensorsWriter writer(path, std::move(specs), std::move(metadata));
  for (const TensorSpec& spec : writer.order()) {
    writer.write(spec.name, bytes.at(spec.name));
  }
  return writer.commit();
}

uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) {
    return static_cast<uint16_t>((bits >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    return static_cast<uint16_t>(sign | 0x7e00U);
  }
  if (magnitude >= 65520.0F) {  // halfway to the first value out of range: rounds to infinity
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < 0x1p-14F) {
    // Subnormal: multiples of 2^-24; nearbyint rounds half to even.
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24F)));
  }
  const uint32_t absolute = bits & 0x7fffffffU;
  const uint32_t rounded = absolute + 0xfffU + ((absolute >> 13) & 1U);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 31U;
  const uint32_t fraction = bits & 0x3ffU;
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

void convert_to_f32(DType dtype, std::span<const std::byte> bytes, float* out, int64_t count) {
  if (static_cast<int64_t>(bytes.size()) != count * dtype_bytes(dtype)) {
    fail(ExitCode::kBug, "convert_to_f32: byte count does not match");
  }
  const std::byte* in = bytes.data();
  const auto each = [&](auto sample, auto convert) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(&sample, in + i * static_cast<int64_t>(sizeof sample), sizeof sample);
      out[i] = convert(sample);
    }
  };
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, in, bytes.size());
      break;
    case DType::kBF16:
      each(uint16_t{}, bf16_to_f32);
      break;
    case DType::kF16:
      each(uint16_t{}, f16_to_f32);
      break;
    case DType::kF64:
      each(double{}, [](double value) { return static_cast<float>(value); });
      break;
    default:
      fail(ExitCode::kData,
           "expected a floating point tensor, got " + std::string(dtype_name(dtype)));
  }
}

}  // namespace graft
