#include "train/model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "adapters/nf4_checkpoint.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/safetensors.h"
#include "kernels/optimizer.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

constexpr std::string_view kProjectionNames[kProjections] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",
};

struct Size {
  int64_t out;
  int64_t in;
};

Size projection_size(const ModelConfig& config, Projection projection) {
  switch (projection) {
    case kQ:
      return {config.q_width(), config.hidden_size};
    case kK:
    case kV:
      return {config.kv_width(), config.hidden_size};
    case kO:
      return {config.hidden_size, config.q_width()};
    case kGate:
    case kUp:
      return {config.intermediate_size, config.hidden_size};
    default:
      return {config.hidden_size, config.intermediate_size};
  }
}

std::string layer_prefix(size_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

// Names, shapes and rotary frequencies; no weights yet.
std::unique_ptr<Model> empty_model(const ModelConfig& config) {
  auto model = std::make_unique<Model>();
  model->config = config;
  model->layers.resize(static_cast<size_t>(config.layers));
  for (size_t layer = 0; layer < model->layers.size(); ++layer) {
    for (int p = 0; p < kProjections; ++p) {
      const auto projection = static_cast<Projection>(p);
      Linear& linear = model->layers[layer].linears[static_cast<size_t>(p)];
      linear.name = layer_prefix(layer) + std::string(projection_name(projection));
      linear.in = projection_size(config, projection).in;
      linear.out = projection_size(config, projection).out;
      linear.lora.stream = layer * kProjections + static_cast<uint64_t>(p);
    }
  }
  // float32 power of a float32 exponent, as Hugging Face computes the frequencies.
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(config.head_dim);
    model->inv_freq.push_back(1.0F / std::pow(static_cast<float>(config.rope_theta), exponent));
  }
  return model;
}

// Reads tensors of a checkpoint as float32, checked for shape and finiteness.
class WeightReader {
 public:
  explicit WeightReader(const SafetensorsDirectory& files) : files_(files) {}

  at::Tensor read(const std::string& name, std::initializer_list<int64_t> shape) const {
    const auto entry = files_.at(name);
    const std::string where = entry.file->path() + ": " + name;
    if (entry.info->shape != std::vector<int64_t>(shape)) {
      fail(ExitCode::kData,
           "expected shape " + shape_text(std::vector<int64_t>(shape)) +
               " (from config.json), got " + shape_text(entry.info->shape),
           where, "config.json and the weights do not belong together");
    }
    at::Tensor tensor = empty_f32(shape);
    convert_to_f32(entry.info->dtype, entry.bytes(), f32(tensor), tensor.numel());
    int64_t not_finite = 0;
    check(graft_count_not_finite(f32(tensor), tensor.numel(), &not_finite));
    if (not_finite > 0) {
      fail(ExitCode::kData, std::to_string(not_finite) + " weights are NaN or infinite", where,
           "fetch the checkpoint again");
    }
    return tensor;
  }

  BaseWeight read_linear(const Linear& linear, Precision precision) const {
    if (const auto packed = adapters::find_nf4(files_, linear.name)) {
      return copy_packed(linear, *packed);
    }
    BaseWeight base;
    base.dense = read(linear.name + ".weight", {linear.out, linear.in});
    return precision == Precision::kNf4 ? quantize(base.dense) : base;
  }

 private:
  BaseWeight copy_packed(const Linear& linear, const adapters::Nf4Tensor& stored) const {
    if (stored.shape() != std::vector<int64_t>{linear.out, linear.in}) {
      fail(ExitCode::kData,
           "expected shape " + shape_text(std::vector<int64_t>{linear.out, linear.in}) +
               " (from config.json), got " + shape_text(stored.shape()),
           files_.directory() + ": " + linear.name + ".weight",
           "config.json and the weights do not belong together");
    }
    const graft_nf4_weight& view = stored.view();
    const int64_t blocks = graft_nf4_block_count(view.count, view.block_size);
    BaseWeight base;
    base.block_size = view.block_size;
    base.count = view.count;
    base.offset = view.offset;
    base.type = view.type;
    base.packed = copy_u8(view.packed, graft_nf4_packed_bytes(view.count));
    if (stored.nested()) {
      base.absmax8 = copy_u8(view.absmax8, blocks);
      base.nested_absmax = copy_f32(view.nested_absmax, nested_blocks(blocks));
    } else {
      base.absmax = copy_f32(view.absmax, blocks);
    }
    return base;
  }

  static int64_t nested_blocks(int64_t blocks) {
    return (blocks + GRAFT_NF4_NESTED_BLOCK - 1) / GRAFT_NF4_NESTED_BLOCK;
  }

  static at::Tensor copy_u8(const uint8_t* data, int64_t count) {
    at::Tensor tensor = empty_u8(count);
    std::memcpy(tensor.data_ptr(), data, static_cast<size_t>(count));
    return tensor;
  }

  static at::Tensor copy_f32(const float* data, int64_t count) {
    at::Tensor tensor = empty_f32({count});
    std::memcpy(tensor.data_ptr(), data, tensor.nbytes());
    return tensor;
  }

  static BaseWeight quantize(const at::Tensor& dense) {
    BaseWeight base;
    base.block_size = kNf4BlockSize;
    base.count = dense.numel();
    const int64_t blocks = graft_nf4_block_count(base.count, base.block_size);
    const at::Tensor absmax = empty_f32({blocks});
    base.packed = empty_u8(graft_nf4_packed_bytes(base.count));
    base.absmax8 = empty_u8(blocks);
    base.nested_absmax = empty_f32({nested_blocks(blocks)});
    check(graft_nf4_quantize(f32(dense), base.count, base.block_size,
                             base.packed.data_ptr<uint8_t>(), f32(absmax), GRAFT_CPU, nullptr));
    check(graft_nf4_compress_absmax(f32(absmax), blocks, base.absmax8.data_ptr<uint8_t>(),
                                    f32(base.nested_absmax), &base.offset, GRAFT_CPU, nullptr));
    return base;
  }

  const SafetensorsDirectory& files_;
};

// Fresh normal weights; the stream is named by the tensor, so that the order of making does not
// matter.
at::Tensor normal_tensor(const std::string& name,
                         uint64_t seed,
                         double deviation,
                         std::initializer_list<int64_t> shape) {
  at::Tensor tensor = empty_f32(shape);
  const Philox random(seed, xxh3_64(name));
  float* values = f32(tensor);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    values[i] = static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
  }
  return tensor;
}

at::Tensor ones(int64_t count) {
  at::Tensor tensor = empty_f32({count});
  std::fill_n(f32(tensor), count, 1.0F);
  return tensor;
}

// Calls visit(name, tensor) for every dense tensor of the base, in checkpoint order.
template <typename Visit>
void visit_dense(Model& model, Visit visit) {
  visit("model.embed_tokens.weight", model.embedding, model.embedding_grad);
  for (size_t at = 0; at < model.layers.size(); ++at) {
    Layer& layer = model.layers[at];
    visit(layer_prefix(at) + "input_layernorm.weight", layer.attention_norm,
          layer.attention_norm_grad);
    for (Linear& linear : layer.linears) {
      visit(linear.name + ".weight", linear.base.dense, linear.base_grad);
    }
    visit(layer_prefix(at) + "post_attention_layernorm.weight", layer.mlp_norm,
          layer.mlp_norm_grad);
  }
  visit("model.norm.weight", model.final_norm, model.final_norm_grad);
  if (!model.config.tied_embeddings) {
    visit("lm_head.weight", model.head, model.head_grad);
  }
}

}  // namespace

std::string_view projection_name(Projection projection) {
  return kProjectionNames[projection];
}

graft_nf4_weight BaseWeight::nf4() const {
  graft_nf4_weight weight{};
  weight.packed = packed.data_ptr<uint8_t>();
  weight.absmax = f32_or_null(absmax);
  weight.absmax8 = absmax8.defined() ? absmax8.data_ptr<uint8_t>() : nullptr;
  weight.nested_absmax = f32_or_null(nested_absmax);
  weight.offset = offset;
  weight.count = count;
  weight.block_size = block_size;
  weight.type = type;
  return weight;
}

int64_t BaseWeight::bytes() const {
  size_t total = 0;
  for (const at::Tensor* part : {&dense, &packed, &absmax, &absmax8, &nested_absmax}) {
    total += part->defined() ? part->nbytes() : 0;
  }
  return static_cast<int64_t>(total);
}

bool Model::quantized() const {
  return std::any_of(layers.begin(), layers.end(), [](const Layer& layer) {
    return std::any_of(layer.linears.begin(), layer.linears.end(),
                       [](const Linear& linear) { return linear.base.quantized(); });
  });
}

int64_t Model::trained_count() const {
  int64_t count = 0;
  for (const Parameter& parameter : trained) {
    count += parameter.value.numel();
  }
  return count;
}

int64_t Model::base_bytes() const {
  size_t bytes = embedding.nbytes() + final_norm.nbytes();
  if (!config.tied_embeddings) {
    bytes += head.nbytes();
  }
  for (const Layer& layer : layers) {
    bytes += layer.attention_norm.nbytes() + layer.mlp_norm.nbytes();
    for (const Linear& linear : layer.linears) {
      bytes += static_cast<size_t>(linear.base.bytes());
    }
  }
  return static_cast<int64_t>(bytes);
}

std::unique_ptr<Model> load_model(const std::string& directory, Precision precision) {
  std::unique_ptr<Model> model = empty_model(read_model_config(directory));
  const ModelConfig& config = model->config;
  const SafetensorsDirectory files(directory);
  const WeightReader reader(files);
  model->embedding =
      reader.read("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  for (size_t at = 0; at < model->layers.size(); ++at) {
    Layer& layer = model->layers[at];
    layer.attention_norm =
        reader.read(layer_prefix(at) + "input_layernorm.weight", {config.hidden_size});
    layer.mlp_norm =
        reader.read(layer_prefix(at) + "post_attention_layernorm.weight", {config.hidden_size});
    for (Linear& linear : layer.linears) {
      linear.base = reader.read_linear(linear, precision);
    }
  }
  model->final_norm = reader.read("model.norm.weight", {config.hidden_size});
  model->head = config.tied_embeddings
                    ? model->embedding
                    : reader.read("lm_head.weight", {config.vocab_size, config.hidden_size});
  return model;
}

std::unique_ptr<Model> make_model(const std::string& directory, uint64_t seed) {
  std::unique_ptr<Model> model = empty_model(read_model_config(directory));
  const ModelConfig& config = model->config;
  const auto normal = [&](const std::string& name, std::initializer_list<int64_t> shape) {
    return normal_tensor(name, seed, config.initializer_range, shape);
  };
  model->embedding = normal("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  for (Layer& layer : model->layers) {
    layer.attention_norm = ones(config.hidden_size);
    layer.mlp_norm = ones(config.hidden_size);
    for (Linear& linear : layer.linears) {
      linear.base.dense = normal(linear.name + ".weight", {linear.out, linear.in});
    }
  }
  model->final_norm = ones(config.hidden_size);
  model->head = config.tied_embeddings
                    ? model->embedding
                    : normal("lm_head.weight", {config.vocab_size, config.hidden_size});
  return model;
}

void train_everything(Model& model) {
  if (model.quantized()) {
    fail(ExitCode::kUsage, "the weights are stored in 4 bits and cannot be trained themselves",
         "adapter: none", "set adapter: qlora, or use the checkpoint in full precision");
  }
  visit_dense(model, [&](const std::string& name, at::Tensor& value, at::Tensor& grad) {
    grad = empty_f32({value.numel()}).view(value.sizes());
    model.trained.push_back({name, value, grad, value.dim() > 1});
  });
  if (model.config.tied_embeddings) {
    model.head_grad = model.embedding_grad;  // both uses add to one gradient
  }
}

void save_model(const Model& model,
                const std::string& template_directory,
                const std::string& directory) {
  make_directories(directory);
  std::vector<TensorBytes> tensors;
  // Only names, shapes and values are read.
  visit_dense(const_cast<Model&>(model), [&](const std::string& name, const at::Tensor& value,
                                             const at::Tensor&) {
    tensors.push_back({{name, DType::kF32, {value.sizes().begin(), value.sizes().end()}},
                       {static_cast<const std::byte*>(value.data_ptr()), value.nbytes()}});
  });
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
