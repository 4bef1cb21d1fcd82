#include "adapters/nf4_checkpoint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/hash.h"

namespace graft::adapters {
namespace {

constexpr std::string_view kStatePrefix = ".weight.quant_state.bitsandbytes__";
constexpr int64_t kMaxStateBytes = 65536;

struct DtypeName {
  DType dtype;
  std::string_view name;
};
constexpr std::array kDtypes = {DtypeName{DType::kBF16, "bfloat16"},
                                DtypeName{DType::kF16, "float16"},
                                DtypeName{DType::kF32, "float32"}};

struct TypeName {
  graft_quant4_type type;
  std::string_view name;
};
constexpr std::array kTypes = {TypeName{GRAFT_NF4, "nf4"}, TypeName{GRAFT_FP4, "fp4"}};

using Entry = SafetensorsDirectory::Entry;

std::string place(const Entry& entry) {
  return entry.file->path() + ": " + entry.info->name;
}

[[noreturn]] void refuse(const Entry& entry, const std::string& what) {
  fail(ExitCode::kData, what, place(entry), "write the checkpoint again with graft quantize");
}

void expect_tensor(const Entry& entry, DType dtype, int64_t count) {
  if (entry.info->dtype == dtype && entry.info->count() == count) return;
  refuse(entry, "the tensor is " + std::string(dtype_name(entry.info->dtype)) + " " +
                    shape_text(entry.info->shape) + ", expected " + std::string(dtype_name(dtype)) +
                    " with " + std::to_string(count) + " values");
}

std::vector<float> floats_of(const Entry& entry) {
  std::vector<float> values(static_cast<size_t>(entry.info->count()));
  std::memcpy(values.data(), entry.bytes().data(), values.size() * sizeof(float));
  return values;
}

void expect_table(const Entry& entry, const float* table, int64_t count) {
  expect_tensor(entry, DType::kF32, count);
  if (std::memcmp(entry.bytes().data(), table, static_cast<size_t>(count) * sizeof(float)) != 0) {
    refuse(entry, "the table of values is not the one of its type");
  }
}

void expect_finite(const Entry& entry, const std::vector<float>& values) {
  for (const float value : values) {
    if (!std::isfinite(value)) refuse(entry, "a scale is not finite");
  }
}

// The packed bytes; bitsandbytes' quant_storage may call them another type of the same bytes.
void expect_packed(const Entry& entry, int64_t bytes) {
  const DType dtype = entry.info->dtype;
  const bool storage = dtype == DType::kU8 || dtype == DType::kI8 || dtype == DType::kF16 ||
                       dtype == DType::kBF16 || dtype == DType::kF32 || dtype == DType::kF64;
  if (storage && static_cast<int64_t>(entry.bytes().size()) == bytes) return;
  refuse(entry, "the tensor is " + std::string(dtype_name(dtype)) + " " +
                    shape_text(entry.info->shape) + ", expected U8 with " + std::to_string(bytes) +
                    " values");
}

Json parse_state(const Entry& entry, std::string_view type) {
  if (entry.info->dtype != DType::kU8 || entry.info->count() > kMaxStateBytes) {
    refuse(entry, "the quant_state is not a short text");
  }
  const auto bytes = entry.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  Json state = parse_json(text, place(entry));
  static const std::set<std::string_view> kKnown = {
      "quant_type",       "blocksize",    "dtype",        "shape",
      "nested_blocksize", "nested_dtype", "nested_offset"};
  for (const auto& [key, value] : state.as_object()) {
    if (kKnown.count(key) == 0) refuse(entry, "unknown key \"" + key + "\" in the quant_state");
  }
  if (state.at("quant_type").as_string() != type) {
    refuse(entry, "quant_type is not the " + std::string(type) + " of its name");
  }
  return state;
}

struct State {
  QuantState values;
  int64_t count = 1;
};

State read_state(const Entry& entry, const TypeName& type) {
  const Json json = parse_state(entry, type.name);
  State state;
  state.values.type = type.type;
  const int64_t block_size = json.at("blocksize").as_int();
  if (block_size < 32 || block_size > 4096 || !std::has_single_bit(uint64_t(block_size))) {
    refuse(entry,
           "blocksize is " + std::to_string(block_size) + ", expected a power of two in 32..4096");
  }
  state.values.block_size = static_cast<int>(block_size);
  const std::string& dtype = json.at("dtype").as_string();
  const auto* known = std::find_if(kDtypes.begin(), kDtypes.end(),
                                   [&](const DtypeName& row) { return row.name == dtype; });
  if (known == kDtypes.end()) refuse(entry, "dtype \"" + dtype + "\" is not a floating type");
  state.values.dtype = known->dtype;
  for (const Json& size : json.at("shape").as_array()) {
    if (size.as_int() < 1 || size.as_int() > (int64_t{1} << 48) / state.count) {
      refuse(entry, "shape " + dump_json(json.at("shape")) + " is not a matrix that can exist");
    }
    state.values.shape.push_back(size.as_int());
    state.count *= size.as_int();
  }
  if (state.values.shape.size() != 2) refuse(entry, "the weight is not a matrix");
  const Json* nested_blocks = json.find("nested_blocksize");
  const Json* offset = json.find("nested_offset");
  if ((nested_blocks == nullptr) != (offset == nullptr)) {
    refuse(entry, "half of the nested quantization's keys are missing");
  }
  if (offset == nullptr) return state;
  if (nested_blocks->as_int() != GRAFT_NF4_NESTED_BLOCK ||
      json.at("nested_dtype").as_string() != "float32") {
    refuse(entry, "nested blocks are not 256 float32 values");
  }
  const float narrow = static_cast<float>(offset->as_double());
  if (!std::isfinite(narrow)) refuse(entry, "nested_offset is not finite");
  state.values.nested_offset = narrow;
  return state;
}

struct FoundState {
  Entry entry;
  TypeName type;
};

// The one quant_state of this module. Errors: kData for two, and for types that graft does not
// read.
std::optional<FoundState> find_state(const SafetensorsDirectory& directory,
                                     std::string_view module) {
  const std::string prefix = std::string(module) + std::string(kStatePrefix);
  std::optional<FoundState> found;
  for (const TypeName& type : kTypes) {
    const auto entry = directory.find(prefix + std::string(type.name));
    if (!entry) continue;
    if (found) refuse(*entry, "the weight has a second quant_state");
    found = FoundState{*entry, type};
  }
  for (const std::string_view other : {"int8", "af4"}) {
    if (const auto entry = directory.find(prefix + std::string(other))) {
      refuse(*entry, "the weight is " + std::string(other) + "; graft reads nf4 and fp4");
    }
  }
  return found;
}

}  // namespace

void Nf4Tensor::read_packed(std::span<uint8_t> out) const {
  packed_entry_.file->read(*packed_entry_.info, 0, std::as_writable_bytes(out));
}

void Nf4Tensor::read_absmax8(std::span<uint8_t> out) const {
  absmax_entry_.file->read(*absmax_entry_.info, 0, std::as_writable_bytes(out));
}

std::optional<Nf4Tensor> find_nf4(const SafetensorsDirectory& directory, std::string_view module) {
  const std::string stem = std::string(module) + ".weight";
  const auto found = find_state(directory, module);
  if (!found) return std::nullopt;
  const State state = read_state(found->entry, found->type);
  const bool nested = state.values.nested_offset.has_value();
  const int64_t blocks = graft_nf4_block_count(state.count, state.values.block_size);

  const Entry packed = directory.at(stem);
  expect_packed(packed, graft_nf4_packed_bytes(state.count));
  expect_table(directory.at(stem + ".quant_map"), graft_quant4_codebook(found->type.type), 16);
  const Entry absmax = directory.at(stem + ".absmax");
  expect_tensor(absmax, nested ? DType::kU8 : DType::kF32, blocks);
  const auto nested_entry = directory.find(stem + ".nested_absmax");
  const auto nested_map = directory.find(stem + ".nested_quant_map");
  if (nested_entry.has_value() != nested || nested_map.has_value() != nested) {
    refuse(found->entry, nested ? "the nested tables are missing"
                                : "nested tables without nested keys in the quant_state");
  }

  Nf4Tensor tensor;
  tensor.packed_entry_ = packed;
  tensor.absmax_entry_ = absmax;
  tensor.shape_ = state.values.shape;
  tensor.dtype_ = state.values.dtype;
  tensor.view_.packed = reinterpret_cast<const uint8_t*>(packed.bytes().data());
  tensor.view_.count = state.count;
  tensor.view_.block_size = state.values.block_size;
  tensor.view_.type = found->type.type;
  if (nested) {
    expect_table(*nested_map, graft_dynamic_map_signed(), 256);
    expect_tensor(*nested_entry, DType::kF32,
                  graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK));
    tensor.nested_absmax_ = floats_of(*nested_entry);
    expect_finite(*nested_entry, tensor.nested_absmax_);
    tensor.view_.absmax8 = reinterpret_cast<const uint8_t*>(absmax.bytes().data());
    tensor.view_.nested_absmax = tensor.nested_absmax_.data();
    tensor.view_.offset = *state.values.nested_offset;
  } else {
    tensor.absmax_ = floats_of(absmax);
    expect_finite(absmax, tensor.absmax_);
    tensor.view_.absmax = tensor.absmax_.data();
  }
  return tensor;
}

std::string_view quant_type_name(graft_quant4_type type) {
  const auto* row = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const TypeName& known) { return known.type == type; });
  return row->name;
}

std::optional<graft_quant4_type> quant_type_of(std::string_view name) {
  for (const TypeName& row : kTypes) {
    if (row.name == name) return row.type;
  }
  return std::nullopt;
}

std::string quant_state_json(const QuantState& state) {
  const auto* dtype = std::find_if(kDtypes.begin(), kDtypes.end(),
                                   [&](const DtypeName& row) { return row.dtype == state.dtype; });
  Json json = Json::object();
  json.set("quant_type", quant_type_name(state.type));
  json.set("blocksize", state.block_size);
  json.set("dtype", dtype->name);
  Json shape = Json::array();
  for (const int64_t size : state.shape) shape.push_back(size);
  json.set("shape", shape);
  if (state.nested_offset) {
    json.set("nested_blocksize", GRAFT_NF4_NESTED_BLOCK);
    json.set("nested_dtype", "float32");
    json.set("nested_offset", static_cast<double>(*state.nested_offset));
  }
  JsonStyle style;
  style.spaces = true;
  return dump_json(json, style);
}

uint64_t nf4_digest(const graft_nf4_weight& weight) {
  const auto add = [](uint64_t before, const void* data, int64_t bytes) {
    return xxh3_64({static_cast<const char*>(data), static_cast<size_t>(bytes)}, before);
  };
  const int64_t blocks = graft_nf4_block_count(weight.count, weight.block_size);
  const uint64_t codes = add(0, weight.packed, graft_nf4_packed_bytes(weight.count));
  if (weight.absmax8 == nullptr) return add(codes, weight.absmax, blocks * 4);
  const uint64_t scales = add(codes, weight.absmax8, blocks);
  const int64_t nested = graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK);
  return add(add(scales, weight.nested_absmax, nested * 4), &weight.offset, 4);
}

bool is_quantization_tensor(std::string_view name) {
  for (const std::string_view part : {".weight.absmax", ".weight.quant_map",
                                      ".weight.nested_absmax", ".weight.nested_quant_map"}) {
    if (name.size() > part.size() && name.substr(name.size() - part.size()) == part) return true;
  }
  return name.find(kStatePrefix) != std::string_view::npos;
}

}  // namespace graft::adapters
