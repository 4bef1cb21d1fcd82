#include "train/model/weights.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <sstream>

#include "adapters/checkpoint.h"
#include "adapters/nf4_checkpoint.h"
#include "adapters/pieces.h"
#include "adapters/quantize.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/safetensors.h"
#include "kernels/elementwise.h"
#include "kernels/optimizer.h"
#include "train/engine/tensor.h"
#include "train/model/new_tokens.h"

namespace graft::train {
namespace {

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The names of tensors in the files. The language model inside a multimodal checkpoint has a
// prefix: transformers writes language_model.model.*, and wrote model.language_model.* for a time.
class StoredNames {
 public:
  StoredNames(const ModelConfig& config, const SafetensorsDirectory& files) {
    if (!config.nested) return;
    const std::string newer = "model.language_model.";
    model_ = files.find(newer + "embed_tokens.weight") ? newer : "language_model.model.";
    head_ = files.find("lm_head.weight") ? "" : "language_model.";
  }
  std::string of(const std::string& name) const {
    constexpr std::string_view kModel = "model.";
    return name.rfind(kModel, 0) == 0 ? model_ + name.substr(kModel.size()) : head_ + name;
  }

 private:
  std::string model_ = "model.";
  std::string head_;
};

[[noreturn]] void refuse_digest(const std::string& path,
                                const std::string& actual,
                                const std::string& expected) {
  fail(ExitCode::kData, "the file's SHA-256 is " + actual + ", SHA256SUMS says " + expected, path,
       "fetch the file again");
}

// sha256sum's format: "<64 hex digits>  <name>" or " *<name>", one a line.
void check_digests(const SafetensorsDirectory& files) {
  const std::string path = join_path(files.directory(), "SHA256SUMS");
  if (!file_exists(path)) return;
  std::istringstream lines(read_file(path, int64_t{1} << 20));
  std::string digest, name;
  while (lines >> digest >> name) {
    if (!name.empty() && name[0] == '*') name.erase(0, 1);
    const auto file = std::find_if(files.files().begin(), files.files().end(),
                                   [&](const auto& one) { return base_name(one->path()) == name; });
    if (file == files.files().end()) continue;
    const std::string actual = sha256_file((*file)->path());
    if (actual != digest) refuse_digest((*file)->path(), actual, digest);
  }
}

// A tensor of a layer that the model does not have: then config.json says something else than the
// weights, and the result would be wrong without a word.
void check_surplus(Model& model, const StoredNames& names, const SafetensorsDirectory& files) {
  std::set<std::string> known;
  for (const BaseTensor& tensor : base_tensors(model)) known.insert(names.of(tensor.name));
  const std::string prefix = names.of("model.layers.");
  for (const std::string& name : files.names()) {
    const bool buffer = ends_with(name, "rotary_emb.inv_freq");  // old files store what is computed
    if (name.rfind(prefix, 0) != 0 || buffer || known.count(name) > 0) continue;
    if (adapters::is_quantization_tensor(name)) continue;
    fail(ExitCode::kData, "the model that config.json describes has no such tensor",
         files.at(name).file->path() + ": " + name,
         "config.json and the weights do not belong together");
  }
}

at::Tensor copy_u8(const uint8_t* data, int64_t count) {
  at::Tensor tensor = empty_u8(count);
  std::memcpy(tensor.data_ptr(), data, static_cast<size_t>(count));
  return tensor;
}

at::Tensor copy_f32(const float* data, int64_t count) {
  at::Tensor tensor = empty_f32({count});
  std::memcpy(tensor.data_ptr(), data, tensor.nbytes());
  return tensor;
}

BaseWeight shaped_like(const graft_nf4_weight& weight) {
  BaseWeight base;
  base.block_size = weight.block_size;
  base.count = weight.count;
  base.offset = weight.offset;
  base.type = weight.type;
  return base;
}

BaseWeight copy_owned(const adapters::Nf4Owned& owned) {
  const graft_nf4_weight view = owned.view();
  const int64_t blocks = graft_nf4_block_count(view.count, view.block_size);
  BaseWeight base = shaped_like(view);
  base.packed = copy_u8(view.packed, graft_nf4_packed_bytes(view.count));
  base.absmax8 = copy_u8(view.absmax8, blocks);
  base.nested_absmax =
      copy_f32(view.nested_absmax, graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK));
  return base;
}

// Reads tensors of a checkpoint, checked for shape, dtype and finiteness.
class WeightReader {
 public:
  WeightReader(const SafetensorsDirectory& files, const StoredNames& names)
      : files_(files), names_(names) {}

  bool holds_packed_weights() const {
    const std::vector<std::string> all = files_.names();
    return std::any_of(all.begin(), all.end(), adapters::is_quantization_tensor);
  }

  at::Tensor read(const std::string& name,
                  const std::vector<int64_t>& shape,
                  graft_float_type type) const {
    const auto entry = entry_of(name, shape);
    at::Tensor tensor = empty_of(type, {entry.info->count()}).view(shape);
    read_into(entry, type, tensor);
    return tensor;
  }

  // A tensor of the base in its type, which may have more rows than the checkpoint: those are 0.
  at::Tensor read(const BaseTensor& base) const {
    const graft_float_type type = base.type != nullptr ? *base.type : GRAFT_F32;
    const auto entry = entry_of(base.name, base.stored_shape());
    at::Tensor tensor = empty_of(type, {base.count()}).view(base.shape);
    at::Tensor stored = tensor.narrow(0, 0, base.shape[0] - base.added_rows);
    read_into(entry, type, stored);
    const size_t bytes = stored.nbytes();
    std::memset(static_cast<char*>(tensor.data_ptr()) + bytes, 0, tensor.nbytes() - bytes);
    return tensor;
  }

  // What read() and read_linear() check before they read.
  void check_header(const BaseTensor& tensor) const {
    const std::string name = names_.of(tensor.name);
    if (tensor.linear != nullptr) {
      const std::string module = name.substr(0, name.rfind('.'));
      if (const auto packed = adapters::find_nf4(files_, module)) {
        check_shape(files_.directory() + ": " + name, tensor.shape, packed->shape());
        return;
      }
    }
    const auto entry = files_.at(name);
    const std::string where = entry.file->path() + ": " + name;
    check_shape(where, tensor.stored_shape(), entry.info->shape);
    adapters::float_type(*entry.file, *entry.info);
  }

  BaseWeight read_linear(const Linear& linear, Precision precision) const {
    const std::string name = names_.of(linear.name + ".weight");
    const std::string module = name.substr(0, name.rfind('.'));
    const std::vector<int64_t> shape = {linear.out, linear.in};
    if (const auto packed = adapters::find_nf4(files_, module)) {
      check_shape(files_.directory() + ": " + name, shape, packed->shape());
      const BaseWeight base = copy_packed(*packed);
      return linear.quantizes ? base : decoded(base, linear);
    }
    if (precision == Precision::kNf4 && linear.quantizes) {
      const auto entry = files_.at(name);
      check_shape(entry.file->path() + ": " + name, shape, entry.info->shape);
      return copy_owned(adapters::quantize_tensor(*entry.file, *entry.info, {}));
    }
    BaseWeight base;
    base.dense = read(linear.name + ".weight", shape, linear.operands);
    return base;
  }

 private:
  SafetensorsDirectory::Entry entry_of(const std::string& name,
                                       const std::vector<int64_t>& shape) const {
    const auto entry = files_.at(names_.of(name));
    check_shape(entry.file->path() + ": " + entry.info->name, shape, entry.info->shape);
    return entry;
  }

  // Read, looked at and rounded by pieces on all threads, each while it is in a thread's cache.
  static void read_into(const SafetensorsDirectory::Entry& entry,
                        graft_float_type type,
                        at::Tensor& tensor) {
    // bfloat16 has float32's exponents; what is nearer to 2^128 than to its largest value rounds to
    // infinity.
    constexpr float kTooLarge = 0x1.ffp127F;
    std::atomic<int64_t> not_finite{0}, too_large{0};
    adapters::for_each_piece(tensor.numel(), [&](int64_t, int64_t begin, int64_t end) {
      std::array<float, adapters::kPieceValues> wide;
      const std::span<float> values(type == GRAFT_BF16 ? wide.data() : f32(tensor) + begin,
                                    static_cast<size_t>(end - begin));
      adapters::read_floats(*entry.file, *entry.info, begin, values);
      int64_t found = 0;
      check(graft_count_not_finite(values.data(), end - begin, &found));
      not_finite += found;
      if (type != GRAFT_BF16) return;
      too_large += std::count_if(values.begin(), values.end(),
                                 [](float value) { return std::fabs(value) >= kTooLarge; });
      check(graft_convert(values.data(), GRAFT_F32, end - begin, bf16(tensor) + begin, GRAFT_BF16,
                          end - begin, 1, end - begin, 1));
    });
    const std::string where = entry.file->path() + ": " + entry.info->name;
    if (not_finite > 0) {
      fail(ExitCode::kData,
           std::to_string(not_finite) + " of " + std::to_string(tensor.numel()) +
               " weights: NaN or infinite",
           where, "fetch the checkpoint again");
    }
    if (too_large > 0) {
      fail(ExitCode::kData, "a weight is too large for bfloat16, whose largest is 3.39e38", where,
           "set compute: fp32");
    }
  }

  static void check_shape(const std::string& where,
                          const std::vector<int64_t>& expected,
                          const std::vector<int64_t>& got) {
    if (expected == got) return;
    fail(ExitCode::kData,
         "expected shape " + shape_text(expected) + " (from config.json), got " + shape_text(got),
         where, "config.json and the weights do not belong together");
  }

  static BaseWeight decoded(const BaseWeight& packed, const Linear& linear) {
    BaseWeight base;
    base.dense = empty_f32({linear.out, linear.in});
    const graft_nf4_weight weight = packed.nf4();
    check(graft_nf4_decode(&weight, f32(base.dense), GRAFT_CPU, nullptr));
    return base;
  }

  // The packed arrays without the small ones.
  static BaseWeight copy_packed(const adapters::Nf4Tensor& stored) {
    const graft_nf4_weight& view = stored.view();
    const int64_t blocks = graft_nf4_block_count(view.count, view.block_size);
    BaseWeight base = shaped_like(view);
    base.packed = empty_u8(graft_nf4_packed_bytes(view.count));
    stored.read_packed({base.packed.data_ptr<uint8_t>(), base.packed.nbytes()});
    if (stored.nested()) {
      base.absmax8 = empty_u8(blocks);
      stored.read_absmax8({base.absmax8.data_ptr<uint8_t>(), base.absmax8.nbytes()});
      base.nested_absmax =
          copy_f32(view.nested_absmax, graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK));
    } else {
      base.absmax = copy_f32(view.absmax, blocks);
    }
    return base;
  }

  const SafetensorsDirectory& files_;
  const StoredNames& names_;
};

// Fresh normal weights; the stream is named by the tensor, so that the order of making does not
// matter.
void fill_normal(const std::string& name, uint64_t seed, double deviation, at::Tensor& tensor) {
  const Philox random(seed, xxh3_64(name));
  float* values = f32(tensor);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    values[i] = static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
  }
}

// What the model has not got yet.
void read_weights(const WeightReader& reader, Precision precision, Model& model) {
  for (const BaseTensor& tensor : base_tensors(model)) {
    if (tensor.linear == nullptr) {
      *tensor.value = reader.read(tensor);
    } else if (!tensor.linear->base.quantized()) {
      tensor.linear->base = reader.read_linear(*tensor.linear, precision);
    }
  }
  if (model.config.tied_embeddings) model.head = model.embedding;
  begin_rows(model);
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& directory,
                                  Precision precision,
                                  const QuantizedCache& cache,
                                  const Rounding& rounding) {
  return load_model(read_model_config(directory), directory, precision, cache, rounding);
}

std::unique_ptr<Model> load_model(const ModelConfig& config,
                                  const std::string& directory,
                                  Precision precision,
                                  const QuantizedCache& cache,
                                  const Rounding& rounding) {
  std::unique_ptr<Model> model = empty_model(config);
  if (rounding.operands == GRAFT_BF16) round_operands(*model, rounding.trained);
  const SafetensorsDirectory files(directory);
  check_digests(files);
  const StoredNames names(config, files);
  check_surplus(*model, names, files);
  const WeightReader reader(files, names);
  const bool quantizes = precision == Precision::kNf4 && !reader.holds_packed_weights();
  const bool cached = quantizes && load_quantized(cache, files, *model);
  read_weights(reader, precision, *model);
  if (quantizes && !cached) keep_quantized(cache, files, *model);
  return model;
}

std::unique_ptr<Model> load_first_layers(const ModelConfig& config,
                                         const std::string& directory,
                                         Precision precision,
                                         const Rounding& rounding) {
  std::unique_ptr<Model> model = empty_model(config);
  if (rounding.operands == GRAFT_BF16) round_operands(*model, rounding.trained);
  const SafetensorsDirectory files(directory);
  const StoredNames names(config, files);
  read_weights(WeightReader(files, names), precision, *model);
  return model;
}

void check_weight_files(const ModelConfig& config, const std::string& directory) {
  const std::unique_ptr<Model> model = empty_model(config);
  const SafetensorsDirectory files(directory);
  const StoredNames names(config, files);
  check_surplus(*model, names, files);
  const WeightReader reader(files, names);
  for (const BaseTensor& tensor : base_tensors(*model)) reader.check_header(tensor);
}

struct OriginalWeights::State {
  explicit State(const std::string& directory)
      : files(directory), names(read_model_config(directory), files), reader(files, names) {}
  SafetensorsDirectory files;
  StoredNames names;
  WeightReader reader;
};

OriginalWeights::OriginalWeights(const std::string& directory)
    : state_(std::make_unique<State>(directory)) {
  if (state_->reader.holds_packed_weights()) {
    fail(ExitCode::kUsage,
         "the checkpoint is in 4 bits: the weights that were quantized are not known", directory,
         "give the original model, or set init_lora_weights: default");
  }
}

OriginalWeights::~OriginalWeights() = default;

at::Tensor OriginalWeights::read(const Linear& linear) const {
  return state_->reader.read(linear.name + ".weight", {linear.out, linear.in}, GRAFT_F32);
}

std::unique_ptr<Model> make_model(const std::string& directory, uint64_t seed) {
  return make_model(read_model_config(directory), seed);
}

std::unique_ptr<Model> make_model(const ModelConfig& config, uint64_t seed) {
  std::unique_ptr<Model> model = empty_model(config);
  const float neutral_norm = config.norm == GRAFT_RMSNORM_ONE_PLUS_WEIGHT ? 0.0F : 1.0F;
  for (const BaseTensor& tensor : base_tensors(*model)) {
    const int64_t count = tensor.count();
    at::Tensor& value = *tensor.value = empty_f32({count}).view(tensor.shape);
    if (tensor.shape.size() > 1) {
      fill_normal(tensor.name, seed, config.initializer_range, value);
    } else {
      std::fill_n(f32(value), count, ends_with(tensor.name, ".bias") ? 0.0F : neutral_norm);
    }
  }
  if (config.tied_embeddings) model->head = model->embedding;
  return model;
}

BaseWeight quantize_weight(const at::Tensor& weight, const std::string& where) {
  const std::span<const float> values(f32(weight), static_cast<size_t>(weight.numel()));
  return copy_owned(adapters::quantize_values(values, {}, where));
}

void save_changed_base(const Model& model, const std::string& directory, const std::string& out) {
  std::map<std::string, const Linear*> by_tensor;
  const SafetensorsDirectory files(directory);
  const StoredNames names(model.config, files);
  for (const Linear* const linear : model.linears()) {
    if (linear->base.quantized()) by_tensor[names.of(linear->name + ".weight")] = linear;
  }
  const adapters::PackedWeights packed =
      [&](const std::string& tensor) -> std::optional<graft_nf4_weight> {
    const auto found = by_tensor.find(tensor);
    if (found == by_tensor.end()) return std::nullopt;
    return found->second->base.nf4();
  };
  adapters::quantize_directory(directory, out, {}, packed);
}

void save_model(const Model& model,
                const std::string& template_directory,
                const std::string& directory) {
  make_directories(directory);
  std::vector<TensorBytes> tensors;
  // Only names, shapes and values are read.
  for (const BaseTensor& tensor : base_tensors(const_cast<Model&>(model))) {
    const bool half = tensor.type != nullptr && *tensor.type == GRAFT_BF16;
    tensors.push_back(
        {{tensor.name, half ? DType::kBF16 : DType::kF32, tensor.shape},
         {static_cast<const std::byte*>(tensor.value->data_ptr()), tensor.value->nbytes()}});
  }
  for (const std::string& name : list_directory(template_directory)) {
    const bool copies = name == "config.json" || name == "generation_config.json" ||
                        name == "chat_template.jinja" || name == "special_tokens_map.json" ||
                        name.rfind("tokenizer", 0) == 0;
    const std::string from = join_path(template_directory, name);
    if (copies && file_exists(from) && from != join_path(directory, name)) {
      write_file_atomically(join_path(directory, name), read_file(from));
    }
  }
  write_safetensors(join_path(directory, "model.safetensors"), std::move(tensors));
}

}  // namespace graft::train
