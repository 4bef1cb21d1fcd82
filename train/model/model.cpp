#include "train/model/model.h"

#include <algorithm>
#include <memory>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "train/engine/device.h"
#include "train/engine/tensor.h"
#include "train/model/saved.h"

namespace graft::train {
namespace {

std::string layer_prefix(size_t layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

Linear make_linear(std::string name, int64_t in, std::vector<int64_t> parts, bool has_bias) {
  Linear linear;
  linear.name = std::move(name);
  linear.in = in;
  linear.parts = std::move(parts);
  for (const int64_t rows : linear.parts) linear.out += rows;
  linear.has_bias = has_bias;
  return linear;
}

void make_attention(const ModelConfig& config, const std::string& prefix, Layer& layer) {
  const std::string stem = prefix + "self_attn.";
  const int64_t hidden = config.hidden_size, q = config.q_width(), kv = config.kv_width();
  if (config.fused) {
    layer.qkv.push_back(make_linear(stem + "qkv_proj", hidden, {q, kv, kv}, config.qkv_bias));
  } else {
    layer.qkv.push_back(make_linear(stem + "q_proj", hidden, {q}, config.qkv_bias));
    layer.qkv.push_back(make_linear(stem + "k_proj", hidden, {kv}, config.qkv_bias));
    layer.qkv.push_back(make_linear(stem + "v_proj", hidden, {kv}, config.qkv_bias));
  }
  layer.o = make_linear(stem + "o_proj", q, {hidden}, config.o_bias);
  if (config.qk_norm != QkNorm::kNone) {
    const bool whole = config.qk_norm == QkNorm::kFull;
    layer.q_norm = {stem + "q_norm", whole ? q : config.head_dim, {}, {}};
    layer.k_norm = {stem + "k_norm", whole ? kv : config.head_dim, {}, {}};
  }
}

void make_norms(const ModelConfig& config, const std::string& prefix, Layer& layer) {
  const auto norm = [&](const char* name) {
    return Norm{prefix + name, config.hidden_size, {}, {}};
  };
  if (config.placement == Placement::kPost) {
    layer.attention_out_norm = norm("post_attention_layernorm");
    layer.mlp_out_norm = norm("post_feedforward_layernorm");
    return;
  }
  layer.attention_norm = norm("input_layernorm");
  if (config.placement == Placement::kPre) {
    layer.mlp_norm = norm("post_attention_layernorm");
    return;
  }
  layer.attention_out_norm = norm("post_attention_layernorm");
  layer.mlp_norm = norm("pre_feedforward_layernorm");
  layer.mlp_out_norm = norm("post_feedforward_layernorm");
}

struct MlpNames {
  std::string gate, up, down;
};

Mlp make_mlp(const ModelConfig& config,
             const std::string& stem,
             const MlpNames& names,
             int64_t inner) {
  const int64_t hidden = config.hidden_size;
  Mlp mlp;
  if (config.fused) {
    mlp.in.push_back(make_linear(stem + "gate_up_proj", hidden, {inner, inner}, config.mlp_bias));
  } else {
    mlp.in.push_back(make_linear(stem + names.gate, hidden, {inner}, config.mlp_bias));
    mlp.in.push_back(make_linear(stem + names.up, hidden, {inner}, config.mlp_bias));
  }
  mlp.down = make_linear(stem + names.down, inner, {hidden}, config.mlp_bias);
  return mlp;
}

void make_mlps(const ModelConfig& config,
               const LayerConfig& shape,
               const std::string& prefix,
               Layer& layer) {
  const MlpNames plain = {"gate_proj", "up_proj", "down_proj"};
  const bool mixtral = config.family->experts == ExpertNames::kMixtral;
  const std::string stem = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
  if (shape.experts == 0) {
    layer.mlps.push_back(make_mlp(config, prefix + "mlp.", plain, shape.intermediate_size));
    return;
  }
  layer.router = make_linear(stem + "gate", config.hidden_size, {shape.experts}, false);
  layer.router->quantizes = false;
  for (int64_t expert = 0; expert < shape.experts; ++expert) {
    layer.mlps.push_back(make_mlp(config, stem + "experts." + std::to_string(expert) + ".",
                                  mixtral ? MlpNames{"w1", "w3", "w2"} : plain,
                                  shape.intermediate_size));
  }
}

// Calls visit(linears) for each group of a layer, const or not.
template <typename Group, typename AnyLayer, typename Visit>
void visit_groups(AnyLayer& layer, const Visit& visit) {
  visit(Group(layer.qkv));
  visit(Group(&layer.o, 1));
  if (layer.router) visit(Group(&*layer.router, 1));
  for (auto& mlp : layer.mlps) {
    visit(Group(mlp.in));
    visit(Group(&mlp.down, 1));
  }
}

// Calls visit(linear) for each linear of a layer.
template <typename Visit>
void visit_linears(Layer& layer, const Visit& visit) {
  visit_groups<std::span<Linear>>(layer, [&](std::span<Linear> group) {
    for (Linear& linear : group) visit(linear);
  });
}
template <typename Visit>
void visit_linears(const Layer& layer, const Visit& visit) {
  visit_groups<LinearGroup>(layer, [&](LinearGroup group) {
    for (const Linear& linear : group) visit(linear);
  });
}

}  // namespace

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
  for (const at::Tensor* part : {&dense, &extended, &packed, &absmax, &absmax8, &nested_absmax}) {
    total += part->defined() ? part->nbytes() : 0;
  }
  return static_cast<int64_t>(total);
}

std::vector<Linear*> Layer::linears() {
  std::vector<Linear*> all;
  visit_linears(*this, [&](Linear& linear) { all.push_back(&linear); });
  return all;
}

std::vector<const Linear*> Layer::linears() const {
  std::vector<const Linear*> all;
  visit_linears(*this, [&](const Linear& linear) { all.push_back(&linear); });
  return all;
}

std::vector<std::span<Linear>> Layer::groups() {
  std::vector<std::span<Linear>> all;
  visit_groups<std::span<Linear>>(*this, [&](std::span<Linear> group) { all.push_back(group); });
  return all;
}

std::vector<LinearGroup> Layer::groups() const {
  std::vector<LinearGroup> all;
  visit_groups<LinearGroup>(*this, [&](LinearGroup group) { all.push_back(group); });
  return all;
}

bool Layer::trains() const {
  bool trains = false;
  visit_linears(*this, [&](const Linear& linear) { trains = trains || linear.trains(); });
  for (const Norm* norm :
       {&attention_norm, &attention_out_norm, &mlp_norm, &mlp_out_norm, &q_norm, &k_norm}) {
    trains = trains || norm->grad.defined();
  }
  return trains;
}

std::vector<Linear*> Model::linears() {
  std::vector<Linear*> all;
  for (Layer& layer : layers) {
    visit_linears(layer, [&](Linear& linear) { all.push_back(&linear); });
  }
  return all;
}

std::vector<const Linear*> Model::linears() const {
  std::vector<const Linear*> all;
  for (const Layer& layer : layers) {
    visit_linears(layer, [&](const Linear& linear) { all.push_back(&linear); });
  }
  return all;
}

bool Model::quantized() const {
  const std::vector<const Linear*> all = linears();
  return std::any_of(all.begin(), all.end(),
                     [](const Linear* linear) { return linear->base.quantized(); });
}

bool Model::base_changed() const {
  const std::vector<const Linear*> all = linears();
  return std::any_of(all.begin(), all.end(),
                     [](const Linear* linear) { return linear->base.changed; });
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  // Only names and shapes are read.
  for (const BaseTensor& tensor : base_tensors(const_cast<Model&>(*this))) {
    count += tensor.count();
  }
  return count;
}

int64_t Model::trained_count() const {
  int64_t count = 0;
  for (const Parameter& parameter : trained) count += parameter.value.numel();
  return count;
}

int64_t Model::base_bytes() const {
  int64_t bytes = 0;
  for (const BaseTensor& tensor : base_tensors(const_cast<Model&>(*this))) {
    bytes += tensor.linear != nullptr ? tensor.linear->base.bytes()
                                      : static_cast<int64_t>(tensor.value->nbytes());
  }
  return bytes;
}

int64_t Model::mapped_bytes() const {
  int64_t bytes = 0;
  for (const Linear* linear : linears()) bytes += linear->base.mapped ? linear->base.bytes() : 0;
  return bytes;
}

std::vector<int64_t> BaseTensor::stored_shape() const {
  std::vector<int64_t> stored = shape;
  stored[0] -= added_rows;
  return stored;
}

int64_t BaseTensor::count() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

int64_t BaseTensor::bytes() const {
  return count() * size_of(type != nullptr ? *type : GRAFT_F32);
}

std::vector<BaseTensor> base_tensors(Model& model) {
  std::vector<BaseTensor> all;
  const std::vector<int64_t> table = {model.config.vocab_size, model.config.hidden_size};
  const AddedTokens& added = model.config.added;
  const int64_t added_rows = added.count() > 0 ? model.config.vocab_size - added.stored : 0;
  const auto add_norm = [&](Norm& norm) {
    if (norm.size > 0) {
      all.push_back({norm.name + ".weight", {norm.size}, &norm.weight, &norm.grad});
    }
  };
  const auto add_linear = [&](Linear& linear) {
    all.push_back({linear.name + ".weight",
                   {linear.out, linear.in},
                   &linear.base.dense,
                   &linear.base_grad,
                   &linear.operands,
                   &linear});
    if (linear.has_bias) {
      all.push_back({linear.name + ".bias", {linear.out}, &linear.bias, &linear.bias_grad});
    }
  };
  all.push_back({"model.embed_tokens.weight", table, &model.embedding, &model.embedding_grad,
                 &model.embedding_type, nullptr, added_rows});
  for (Layer& layer : model.layers) {
    add_norm(layer.attention_norm);
    add_norm(layer.q_norm);
    add_norm(layer.k_norm);
    visit_linears(layer, add_linear);
    add_norm(layer.attention_out_norm);
    add_norm(layer.mlp_norm);
    add_norm(layer.mlp_out_norm);
  }
  add_norm(model.final_norm);
  if (!model.config.tied_embeddings) {
    all.push_back({"lm_head.weight", table, &model.head, &model.head_grad, &model.head_operands,
                   nullptr, added_rows});
  }
  return all;
}

std::unique_ptr<Model> empty_model(const ModelConfig& config) {
  auto model = std::make_unique<Model>();
  model->config = config;
  model->final_norm = {"model.norm", config.hidden_size, {}, {}};
  model->layers.resize(config.layers.size());
  uint64_t stream = 0;
  for (size_t at = 0; at < model->layers.size(); ++at) {
    Layer& layer = model->layers[at];
    const std::string prefix = layer_prefix(at);
    make_attention(config, prefix, layer);
    make_norms(config, prefix, layer);
    make_mlps(config, config.layers[at], prefix, layer);
    visit_linears(layer, [&](Linear& linear) { linear.lora.stream = stream++; });
  }
  return model;
}

void round_operands(Model& model, const std::vector<std::string>& trained) {
  for (const BaseTensor& tensor : base_tensors(model)) {
    const bool router = tensor.linear != nullptr && !tensor.linear->quantizes;
    if (tensor.type == nullptr || router || trains_module(model, tensor, trained)) continue;
    *tensor.type = GRAFT_BF16;
  }
  if (model.config.tied_embeddings) model.head_operands = model.embedding_type;
}

at::Tensor weight_of(const Linear& linear) {
  const bool rounds = linear.operands == GRAFT_BF16;
  if (!linear.base.quantized() && !rounds) return linear.base.dense;
  at::Tensor weight = linear.base.dense;
  const Device device = place_of(linear.base.quantized() ? linear.base.packed : weight);
  const int64_t shape[] = {linear.out, linear.in};
  if (linear.base.quantized()) {
    weight = empty_on(device, rounds ? at::kBFloat16 : at::kFloat, shape);
    decode(device, linear.base.nf4(), linear.operands, weight.data_ptr());
  }
  if (!rounds) return weight;
  const at::Tensor wide = empty_on(device, at::kFloat, shape);
  check(graft_convert(bf16(weight), GRAFT_BF16, linear.in, f32(wide), GRAFT_F32, linear.in,
                      linear.out, linear.in, 1, device.kind, device.stream));
  return wide;
}

void train_everything(Model& model) {
  if (model.quantized()) {
    fail(ExitCode::kUsage, "the weights are stored in 4 bits and cannot be trained themselves",
         "adapter: none", "set adapter: qlora, or use the checkpoint in full precision");
  }
  if (model.config.nested) {
    fail(ExitCode::kUsage,
         "the language model is one part of a multimodal checkpoint; the others are not read and "
         "could not be saved",
         "adapter: none", "set adapter: lora or qlora, or use a text-only checkpoint");
  }
  if (model.embedding_type == GRAFT_BF16) {
    fail(ExitCode::kUsage, "weights held in bfloat16 cannot be trained themselves", "compute: bf16",
         "train every tensor with compute: fp32");
  }
  for (const BaseTensor& tensor : base_tensors(model)) {
    *tensor.grad = empty_f32({tensor.value->numel()}).view(tensor.value->sizes());
    model.trained.push_back({tensor.name, *tensor.value, *tensor.grad, tensor.shape.size() > 1});
  }
  if (model.config.tied_embeddings) {
    model.head_grad = zeros_f32({model.config.vocab_size, model.config.hidden_size});
  }
}

}  // namespace graft::train
