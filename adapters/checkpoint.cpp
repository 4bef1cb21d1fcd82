#include "adapters/checkpoint.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include <unistd.h>

#include "adapters/pieces.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "kernels/elementwise.h"

namespace graft::adapters {
namespace {

bool is_floating(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

constexpr std::string_view kIndexName = "model.safetensors.index.json";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Weights in any form are the plan's business; pickles are not carried on.
bool is_weight_file(std::string_view name) {
  for (const std::string_view end :
       {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
        ".ckpt", ".h5", ".msgpack"}) {
    if (ends_with(name, end)) return true;
  }
  return false;
}

void copy_file(const std::string& from, const std::string& to) {
  const MappedFile source(from);
  AtomicFile target(to);
  target.write(source.bytes());
  target.commit();
}

void copy_other_files(const std::string& from, const std::string& to) {
  for (const std::string& name : list_directory(from)) {
    const std::string path = join_path(from, name);
    if (name == "config.json" || is_weight_file(name) || directory_exists(path)) continue;
    copy_file(path, join_path(to, name));
  }
}

int64_t total_bytes(const SafetensorsDirectory& model) {
  int64_t total = 0;
  for (const auto& file : model.files()) {
    for (const TensorInfo& tensor : file->tensors()) total += tensor.end - tensor.begin;
  }
  return total;
}

// A directory under a temporary name until commit().
class OutputDirectory {
 public:
  explicit OutputDirectory(std::string path)
      : path_(std::move(path)), temporary_(path_ + ".tmp-" + std::to_string(::getpid())) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
    temporary_ = path_ + ".tmp-" + std::to_string(::getpid());
    if (std::filesystem::exists(path_)) {
      fail(ExitCode::kUsage, "the output directory exists already", path_,
           "give a new name, or remove it");
    }
    make_directories(temporary_);
  }
  ~OutputDirectory() {
    std::error_code ignored;  // a destructor may not throw; the name says what it is
    if (!committed_) std::filesystem::remove_all(temporary_, ignored);
  }
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  const std::string& temporary() const { return temporary_; }
  void commit() {
    sync_directory(temporary_);
    rename_path(temporary_, path_);
    committed_ = true;
  }

 private:
  std::string path_;
  std::string temporary_;
  bool committed_ = false;
};

// Writes one output file; gives its bytes of tensors.
int64_t write_file(const SafetensorsFile& input,
                   const std::string& path,
                   std::vector<OutputTensor> tensors) {
  std::vector<TensorSpec> specs;
  for (const OutputTensor& tensor : tensors) specs.push_back(tensor.spec);
  SafetensorsWriter writer(path, std::move(specs), input.metadata());
  int64_t bytes = 0;
  for (const TensorSpec& spec : writer.order()) {
    const auto tensor = std::find_if(
        tensors.begin(), tensors.end(),
        [&](const OutputTensor& candidate) { return candidate.spec.name == spec.name; });
    tensor->write([&](std::span<const std::byte> piece) {
      writer.write(spec.name, piece);
      bytes += static_cast<int64_t>(piece.size());
    });
  }
  writer.commit();
  return bytes;
}

}  // namespace

OutputTensor copied_tensor(const SafetensorsFile& file, const TensorInfo& tensor) {
  return {{tensor.name, tensor.dtype, tensor.shape},
          [&file, &tensor](const ByteSink& sink) { sink(file.bytes(tensor)); }};
}

void write_checkpoint(const SafetensorsDirectory& model,
                      const std::string& out,
                      const Json& config,
                      const TensorPlan& plan,
                      const std::string& label,
                      const std::string& tokenizer) {
  OutputDirectory output(out);
  Json weight_map = Json::object();
  Progress progress(label, total_bytes(model), "bytes");
  int64_t read = 0, written = 0;
  for (const auto& file : model.files()) {
    const std::string name = base_name(file->path());
    std::vector<OutputTensor> tensors = plan(*file);
    for (const OutputTensor& tensor : tensors) weight_map.set(tensor.spec.name, name);
    written += write_file(*file, join_path(output.temporary(), name), std::move(tensors));
    for (const TensorInfo& tensor : file->tensors()) read += tensor.end - tensor.begin;
    progress.update(read);
  }
  JsonStyle style;
  style.indent = 2;
  style.sort_keys = true;
  if (file_exists(join_path(model.directory(), kIndexName))) {
    Json index = Json::object();
    index.set("metadata", Json::object({{"total_size", Json(written)}}));
    index.set("weight_map", weight_map);
    write_file_atomically(join_path(output.temporary(), kIndexName),
                          dump_json(index, style) + "\n");
  }
  write_file_atomically(join_path(output.temporary(), "config.json"),
                        dump_json(config, style) + "\n");
  copy_other_files(model.directory(), output.temporary());
  if (!tokenizer.empty()) copy_tokenizer(tokenizer, output.temporary());
  output.commit();
  progress.finish();
}

bool has_tokenizer(const std::string& directory) {
  return file_exists(join_path(directory, "tokenizer.json")) ||
         file_exists(join_path(directory, "tokenizer.model"));
}

void copy_tokenizer(const std::string& from, const std::string& to) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                           "special_tokens_map.json", "chat_template.jinja"}) {
    const std::string path = join_path(from, name);
    if (file_exists(path)) copy_file(path, join_path(to, name));
  }
}

Json with_vocab_size(const Json& config, int64_t vocab_size) {
  constexpr std::string_view kKey = "vocab_size";
  Json result = config;
  const Json* text = config.find("text_config");
  if (text != nullptr && text->is_object()) {
    Json inner = *text;
    inner.set(std::string(kKey), vocab_size);
    result.set("text_config", inner);
    if (config.find(kKey) == nullptr) return result;
  }
  result.set(std::string(kKey), vocab_size);
  return result;
}

Json read_config(const SafetensorsDirectory& model) {
  return read_json_file(join_path(model.directory(), "config.json"));
}

graft_float_type float_type(const SafetensorsFile& file, const TensorInfo& tensor) {
  if (!is_floating(tensor.dtype)) {
    fail(ExitCode::kData,
         "the tensor is " + std::string(dtype_name(tensor.dtype)) + ", expected F32, BF16 or F16",
         file.path() + ": " + tensor.name,
         "save the weights in one of these, or as a bitsandbytes checkpoint in 4 bits");
  }
  return tensor.dtype == DType::kF32    ? GRAFT_F32
         : tensor.dtype == DType::kBF16 ? GRAFT_BF16
                                        : GRAFT_F16;
}

void read_floats(const SafetensorsFile& file,
                 const TensorInfo& tensor,
                 int64_t begin,
                 std::span<float> out) {
  const graft_float_type type = float_type(file, tensor);
  const int64_t size = dtype_bytes(tensor.dtype);
  for_each_piece(static_cast<int64_t>(out.size()), [&](int64_t, int64_t first, int64_t end) {
    const int64_t count = end - first, at = (begin + first) * size;
    float* const values = out.data() + first;
    if (type == GRAFT_F32) {
      file.read(tensor, at, std::as_writable_bytes(std::span(values, static_cast<size_t>(count))));
      return;
    }
    std::array<uint16_t, kPieceValues> stored;
    const auto bytes = std::as_writable_bytes(std::span(stored).first(static_cast<size_t>(count)));
    file.read(tensor, at, bytes);
    if (type == GRAFT_F16) {  // which graft_convert does not know
      convert_to_f32(tensor.dtype, bytes, values, count);
    } else if (graft_convert(stored.data(), type, count, values, GRAFT_F32, count, 1, count, 1) !=
               GRAFT_OK) {
      fail(ExitCode::kBug, graft_last_error());
    }
  });
}

void write_floats(std::span<const float> values, DType dtype, const ByteSink& sink) {
  if (dtype == DType::kF32) {
    sink(std::as_bytes(values));
    return;
  }
  if (!is_floating(dtype)) {
    fail(ExitCode::kData, "cannot round weights to " + std::string(dtype_name(dtype)));
  }
  std::vector<uint16_t> rounded(values.size());
  for_each_piece(static_cast<int64_t>(values.size()), [&](int64_t, int64_t first, int64_t end) {
    std::transform(values.begin() + first, values.begin() + end, rounded.begin() + first,
                   dtype == DType::kBF16 ? f32_to_bf16 : f32_to_f16);
  });
  sink(std::as_bytes(std::span<const uint16_t>(rounded)));
}

}  // namespace graft::adapters
