#include "adapters/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "adapters/checkpoint.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/pieces.h"
#include "core/error.h"

namespace graft::adapters {
namespace {

// Weights converted or decoded at a time: 4 MiB of float32, a multiple of every block size.
constexpr int64_t kPiece = int64_t{1} << 20;

void check(graft_status status, const std::string& where) {
  if (status == GRAFT_OK) return;
  const ExitCode code = status == GRAFT_NOT_FINITE ? ExitCode::kData : ExitCode::kBug;
  fail(code, graft_last_error(), where,
       status == GRAFT_NOT_FINITE ? "the checkpoint is damaged; fetch it again" : "");
}

std::string place(const SafetensorsFile& file, const TensorInfo& tensor) {
  return file.path() + ": " + tensor.name;
}

// Calls body(begin, values) for pieces of a floating tensor as float32.
template <class Body>
void for_float_pieces(const SafetensorsFile& file, const TensorInfo& tensor, const Body& body) {
  const int64_t count = tensor.count();
  std::vector<float> values(static_cast<size_t>(std::min(count, kPiece)));
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, count);
    read_floats(file, tensor, begin, {values.data(), static_cast<size_t>(end - begin)});
    body(begin, std::span<const float>(values.data(), static_cast<size_t>(end - begin)));
  }
}

void quantize_piece(const void* values,
                    graft_float_type type,
                    int64_t count,
                    const Nf4Options& options,
                    uint8_t* packed,
                    float* absmax,
                    const std::string& where) {
  check(graft_quant4_quantize(options.type, type, values, count, options.block_size, packed, absmax,
                              GRAFT_CPU, nullptr),
        where);
}

// Of `count` values of `type`; values_of(begin, end, room) gives where a piece lies, in `room` if
// it had to be read. On all threads.
template <class ValuesOf>
Nf4Owned quantize_pieces(int64_t count,
                         graft_float_type type,
                         const Nf4Options& options,
                         const std::string& where,
                         const ValuesOf& values_of) {
  Nf4Owned weight;
  weight.count = count;
  weight.block_size = options.block_size;
  weight.type = options.type;
  const int64_t blocks = graft_nf4_block_count(weight.count, options.block_size);
  weight.packed.resize(static_cast<size_t>(graft_nf4_packed_bytes(weight.count)));
  weight.absmax.resize(static_cast<size_t>(blocks));
  for_each_piece(weight.count, [&](int64_t, int64_t begin, int64_t end) {
    std::array<float, kPieceValues> room;  // or half as wide
    const void* const values = values_of(begin, end, std::as_writable_bytes(std::span(room)));
    quantize_piece(values, type, end - begin, options, weight.packed.data() + begin / 2,
                   weight.absmax.data() + begin / options.block_size, where);
  });
  if (!options.double_quant || blocks == 0) return weight;
  weight.absmax8.resize(static_cast<size_t>(blocks));
  weight.nested_absmax.resize(
      static_cast<size_t>(graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK)));
  check(graft_nf4_compress_absmax(weight.absmax.data(), blocks, weight.absmax8.data(),
                                  weight.nested_absmax.data(), &weight.offset, GRAFT_CPU, nullptr),
        where);
  weight.absmax = {};
  return weight;
}

// What the small tensors of a packed weight hold; the packed bytes are made again when written.
struct Scales {
  std::vector<float> absmax;  // empty when nested
  std::vector<uint8_t> absmax8;
  std::vector<float> nested_absmax;
  std::string state;  // JSON
};

Scales scales_of(const graft_nf4_weight& weight, const TensorInfo& tensor) {
  Scales scales;
  QuantState state;
  state.type = weight.type;
  state.block_size = weight.block_size;
  state.dtype = tensor.dtype;
  state.shape = tensor.shape;
  if (weight.absmax8 != nullptr) state.nested_offset = weight.offset;
  scales.state = quant_state_json(state);
  const int64_t blocks = graft_nf4_block_count(weight.count, weight.block_size);
  if (weight.absmax8 == nullptr) {
    scales.absmax.assign(weight.absmax, weight.absmax + blocks);
    return scales;
  }
  scales.absmax8.assign(weight.absmax8, weight.absmax8 + blocks);
  scales.nested_absmax.assign(
      weight.nested_absmax,
      weight.nested_absmax + graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK));
  return scales;
}

template <class Value>
OutputTensor held_tensor(std::string name, DType dtype, const Value* values, int64_t count) {
  const std::span<const Value> span(values, static_cast<size_t>(count));
  return {{std::move(name), dtype, {count}},
          [span](const ByteSink& sink) { sink(std::as_bytes(span)); }};
}

OutputTensor packed_tensor(const SafetensorsFile& file,
                           const TensorInfo& tensor,
                           const Nf4Options& options) {
  const int64_t bytes = graft_nf4_packed_bytes(tensor.count());
  return {
      {tensor.name, DType::kU8, {bytes, 1}}, [&file, &tensor, options](const ByteSink& sink) {
        std::vector<uint8_t> packed(kPiece / 2);
        std::vector<float> absmax(static_cast<size_t>(kPiece / options.block_size));
        for_float_pieces(file, tensor, [&](int64_t, std::span<const float> values) {
          const auto count = static_cast<int64_t>(values.size());
          quantize_piece(values.data(), GRAFT_F32, count, options, packed.data(), absmax.data(),
                         place(file, tensor));
          const int64_t size = graft_nf4_packed_bytes(count);
          sink(std::as_bytes(std::span<const uint8_t>(packed.data(), static_cast<size_t>(size))));
        });
      }};
}

OutputTensor ready_tensor(const graft_nf4_weight& weight, const TensorInfo& tensor) {
  const int64_t bytes = graft_nf4_packed_bytes(weight.count);
  OutputTensor output = held_tensor(tensor.name, DType::kU8, weight.packed, bytes);
  output.spec.shape = {bytes, 1};
  return output;
}

// `packed` and the small tensors beside it.
void add_quantized(std::vector<OutputTensor>& output,
                   OutputTensor packed,
                   const TensorInfo& tensor,
                   const Nf4Options& options,
                   const Scales& scales) {
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  output.push_back(std::move(packed));
  output.push_back(held_tensor(tensor.name + ".quant_map", DType::kF32,
                               graft_quant4_codebook(options.type), 16));
  const std::string type(quant_type_name(options.type));
  output.push_back(held_tensor(tensor.name + ".quant_state.bitsandbytes__" + type, DType::kU8,
                               scales.state.data(), size(scales.state)));
  if (scales.absmax8.empty()) {
    output.push_back(held_tensor(tensor.name + ".absmax", DType::kF32, scales.absmax.data(),
                                 size(scales.absmax)));
    return;
  }
  output.push_back(held_tensor(tensor.name + ".absmax", DType::kU8, scales.absmax8.data(),
                               size(scales.absmax8)));
  output.push_back(held_tensor(tensor.name + ".nested_absmax", DType::kF32,
                               scales.nested_absmax.data(), size(scales.nested_absmax)));
  output.push_back(
      held_tensor(tensor.name + ".nested_quant_map", DType::kF32, graft_dynamic_map_signed(), 256));
}

// transformers' BitsAndBytesConfig.to_dict() for these options.
Json quantization_config(const Nf4Options& options, DType compute) {
  Json config = Json::object();
  config.set("_load_in_4bit", true);
  config.set("_load_in_8bit", false);
  config.set("bnb_4bit_compute_dtype", compute == DType::kBF16  ? "bfloat16"
                                       : compute == DType::kF16 ? "float16"
                                                                : "float32");
  config.set("bnb_4bit_quant_storage", "uint8");
  config.set("bnb_4bit_quant_type", quant_type_name(options.type));
  config.set("bnb_4bit_use_double_quant", options.double_quant);
  config.set("llm_int8_enable_fp32_cpu_offload", false);
  config.set("llm_int8_has_fp16_weight", false);
  config.set("llm_int8_skip_modules", Json());
  config.set("llm_int8_threshold", 6.0);
  config.set("load_in_4bit", true);
  config.set("load_in_8bit", false);
  config.set("quant_method", "bitsandbytes");
  return config;
}

// The model's own dtype: that of its first quantized weight. Errors: kData when there is none.
DType weight_dtype(const SafetensorsDirectory& model) {
  for (const auto& file : model.files()) {
    for (const TensorInfo& tensor : file->tensors()) {
      if (is_quantized_weight(tensor)) return tensor.dtype;
    }
  }
  fail(ExitCode::kData, "the model has no linear weights to quantize", model.directory());
}

void add_error(const Nf4Owned& weight,
               const SafetensorsFile& file,
               const TensorInfo& tensor,
               double& error,
               double& size) {
  std::vector<float> decoded;
  for_float_pieces(file, tensor, [&](int64_t begin, std::span<const float> values) {
    decode_range(weight.view(), begin, begin + static_cast<int64_t>(values.size()), decoded);
    const int64_t count = static_cast<int64_t>(values.size());
    std::vector<double> errors(static_cast<size_t>(piece_count(count))), sizes(errors.size());
    for_each_piece(count, [&](int64_t piece, int64_t first, int64_t end) {
      double piece_error = 0, piece_size = 0;
      for (int64_t i = first; i < end; ++i) {
        const double original = static_cast<double>(values[static_cast<size_t>(i)]);
        const double difference = static_cast<double>(decoded[static_cast<size_t>(i)]) - original;
        piece_error += difference * difference;
        piece_size += original * original;
      }
      errors[static_cast<size_t>(piece)] = piece_error;
      sizes[static_cast<size_t>(piece)] = piece_size;
    });
    for (size_t piece = 0; piece < errors.size(); ++piece) {
      error += errors[piece];
      size += sizes[piece];
    }
  });
}

int64_t bytes_of(const TensorInfo& tensor) {
  return tensor.end - tensor.begin;
}

}  // namespace

graft_nf4_weight Nf4Owned::view() const {
  const bool nested = !absmax8.empty();
  return {packed.data(),
          nested ? nullptr : absmax.data(),
          nested ? absmax8.data() : nullptr,
          nested ? nested_absmax.data() : nullptr,
          offset,
          count,
          block_size,
          type};
}

Nf4Owned quantize_tensor(const SafetensorsFile& file,
                         const TensorInfo& tensor,
                         const Nf4Options& options) {
  return quantize_pieces(tensor.count(), float_type(file, tensor), options, place(file, tensor),
                         [&](int64_t begin, int64_t end, std::span<std::byte> room) -> const void* {
                           const int64_t size = dtype_bytes(tensor.dtype);
                           file.read(tensor, begin * size,
                                     room.first(static_cast<size_t>((end - begin) * size)));
                           return room.data();
                         });
}

Nf4Owned quantize_values(std::span<const float> values,
                         const Nf4Options& options,
                         const std::string& where) {
  return quantize_pieces(
      static_cast<int64_t>(values.size()), GRAFT_F32, options, where,
      [&](int64_t begin, int64_t, std::span<std::byte>) { return values.data() + begin; });
}

void decode_range(const graft_nf4_weight& weight,
                  int64_t begin,
                  int64_t end,
                  std::vector<float>& out) {
  // A view that begins at a whole nested block has the same scales at its own start.
  const int64_t unit = int64_t{weight.block_size} * GRAFT_NF4_NESTED_BLOCK;
  const int64_t start = begin / unit * unit;
  graft_nf4_weight part = weight;
  part.packed += start / 2;
  if (part.absmax != nullptr) part.absmax += start / weight.block_size;
  if (part.absmax8 != nullptr) {
    part.absmax8 += start / weight.block_size;
    part.nested_absmax += start / unit;
  }
  part.count = end - start;
  out.resize(static_cast<size_t>(part.count));
  check(graft_nf4_decode(&part, out.data(), GRAFT_CPU, nullptr), "");
  out.erase(out.begin(), out.begin() + (begin - start));
}

bool is_quantized_weight(const TensorInfo& tensor) {
  constexpr std::string_view kEnd = ".weight";
  const std::string_view name = tensor.name;
  if (tensor.shape.size() != 2 || tensor.count() == 0 || name.size() <= kEnd.size() ||
      name.substr(name.size() - kEnd.size()) != kEnd) {
    return false;
  }
  if (tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kF32) {
    return false;
  }
  const std::string_view module = name.substr(0, name.size() - kEnd.size());
  const std::string_view last = module.substr(module.rfind('.') + 1);
  return last.find("embed") == std::string_view::npos && last != "lm_head" && last != "wte" &&
         last != "wpe" && last != "score" && last != "gate";
}

QuantizeReport quantize_directory(const std::string& model_directory,
                                  const std::string& out,
                                  const Nf4Options& options,
                                  const PackedWeights& packed) {
  const SafetensorsDirectory model(model_directory);
  Json config = read_config(model);
  if (config.find("quantization_config") != nullptr) {
    fail(ExitCode::kData, "the model is quantized already", model_directory + "/config.json",
         "quantize the 16-bit model");
  }
  config.set("quantization_config", quantization_config(options, weight_dtype(model)));
  QuantizeReport report;
  double error = 0, size = 0;
  std::vector<std::unique_ptr<Scales>> held;  // of the file that is being written
  const TensorPlan plan = [&](const SafetensorsFile& file) {
    held.clear();
    std::vector<OutputTensor> output;
    for (const TensorInfo& tensor : file.tensors()) {
      report.bytes_before += bytes_of(tensor);
      if (!is_quantized_weight(tensor)) {
        output.push_back(copied_tensor(file, tensor));
        ++report.copied_tensors;
        continue;
      }
      const std::optional<graft_nf4_weight> ready =
          packed ? packed(tensor.name) : std::optional<graft_nf4_weight>();
      if (ready) {
        held.push_back(std::make_unique<Scales>(scales_of(*ready, tensor)));
      } else {
        const Nf4Owned weight = quantize_tensor(file, tensor, options);
        add_error(weight, file, tensor, error, size);
        held.push_back(std::make_unique<Scales>(scales_of(weight.view(), tensor)));
      }
      add_quantized(output,
                    ready ? ready_tensor(*ready, tensor) : packed_tensor(file, tensor, options),
                    tensor, options, *held.back());
      ++report.quantized_tensors;
      report.weights += tensor.count();
    }
    for (const OutputTensor& tensor : output) {
      int64_t count = 1;
      for (const int64_t dimension : tensor.spec.shape) count *= dimension;
      report.bytes_after += count * dtype_bytes(tensor.spec.dtype);
    }
    return output;
  };
  write_checkpoint(model, out, config, plan, "quantize");
  report.relative_error = size > 0 ? std::sqrt(error / size) : 0;
  return report;
}

void decode_directory(const std::string& model_directory, const std::string& out) {
  const SafetensorsDirectory model(model_directory);
  Json::Object members = read_config(model).as_object();
  members.erase(std::remove_if(members.begin(), members.end(),
                               [](const auto& m) { return m.first == "quantization_config"; }),
                members.end());
  std::vector<std::unique_ptr<Nf4Tensor>> held;
  const TensorPlan plan = [&](const SafetensorsFile& file) {
    held.clear();
    std::vector<OutputTensor> output;
    for (const TensorInfo& tensor : file.tensors()) {
      if (is_quantization_tensor(tensor.name)) continue;
      constexpr std::string_view kEnd = ".weight";
      const bool is_weight =
          tensor.name.size() > kEnd.size() &&
          tensor.name.compare(tensor.name.size() - kEnd.size(), kEnd.size(), kEnd) == 0;
      auto packed = is_weight
                        ? find_nf4(model, tensor.name.substr(0, tensor.name.size() - kEnd.size()))
                        : std::nullopt;
      if (!packed) {
        output.push_back(copied_tensor(file, tensor));
        continue;
      }
      held.push_back(std::make_unique<Nf4Tensor>(std::move(*packed)));
      const Nf4Tensor* weight = held.back().get();
      output.push_back(
          {{tensor.name, weight->dtype(), weight->shape()}, [weight](const ByteSink& sink) {
             std::vector<float> values;
             for (int64_t begin = 0; begin < weight->count(); begin += kPiece) {
               const int64_t end = std::min(begin + kPiece, weight->count());
               decode_range(weight->view(), begin, end, values);
               write_floats(values, weight->dtype(), sink);
             }
           }});
    }
    return output;
  };
  bool any = false;
  for (const std::string& name : model.names()) any = any || is_quantization_tensor(name);
  if (!any) {
    fail(ExitCode::kData, "nothing in the model is quantized", model_directory,
         "give a checkpoint that graft quantize or bitsandbytes wrote");
  }
  write_checkpoint(model, out, Json(std::move(members)), plan, "decode");
}

}  // namespace graft::adapters
