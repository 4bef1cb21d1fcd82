#include "tests/train/reference.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "kernels/elementwise.h"
#include "train/engine/tensor.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace graft::test {
namespace {

class Oracle {
 public:
  Oracle(const train::Model& model, at::ScalarType dtype, uint64_t dropout_seed)
      : model_(model), dtype_(dtype), dropout_seed_(dropout_seed) {
    for (const train::Parameter& parameter : model.trained) {
      at::Tensor leaf = parameter.value.detach().to(dtype, false, true).requires_grad_(true);
      by_data_[parameter.value.data_ptr()] = leaf;
      leaves_.emplace_back(parameter.name, leaf);
    }
  }

  at::Tensor document(const at::Tensor& ids, const int64_t* token_index) {
    token_index_ = token_index;
    const train::ModelConfig& config = model_.config;
    const at::Tensor embedded = at::embedding(get(model_.embedding), ids);
    watch(embedded, embedded.detach().abs(), embedding_sensitivity_);
    at::Tensor x = embedded * scalar(config.embedding_scale);
    // So that gradients reach everything that depends on it.
    if (!x.requires_grad()) x.requires_grad_(true);
    for (size_t index = 0; index < model_.layers.size(); ++index) {
      const train::Layer& layer = model_.layers[index];
      const at::Tensor a = attention(layer, config.layers[index], norm(layer.attention_norm, x));
      x = x + norm(layer.attention_out_norm, a) * scalar(config.residual_scale);
      const at::Tensor m = mlps(layer, norm(layer.mlp_norm, x));
      x = x + norm(layer.mlp_out_norm, m) * scalar(config.residual_scale);
    }
    const at::Tensor last = norm(model_.final_norm, x);
    watch(last, last.detach().abs(), narrow_sensitivity_);
    const at::Tensor logits =
        product(last, get(model_.head), model_.head_operands, scalar(config.logit_scale));
    return capped(logits, config.logit_cap);
  }

  Leaves& leaves() { return leaves_; }
  double product_sensitivity() const { return product_sensitivity_; }
  double embedding_sensitivity() const { return embedding_sensitivity_; }
  double narrow_sensitivity() const { return narrow_sensitivity_; }
  const std::vector<at::Tensor>& router_probabilities() const { return router_probabilities_; }

 private:
  // The leaf of a trained tensor, else a constant.
  at::Tensor get(const at::Tensor& tensor) {
    const auto found = by_data_.find(tensor.data_ptr());
    return found != by_data_.end() ? found->second : tensor.to(dtype_);
  }

  static double scalar(float value) { return static_cast<double>(value); }

  static at::Tensor rounded(const at::Tensor& x) { return x.to(at::kBFloat16).to(x.scalar_type()); }

  // x where a narrow model rounds it. A rounding has the gradient 1.
  at::Tensor narrowed(const at::Tensor& x) {
    watch(x, x.detach().abs(), narrow_sensitivity_);
    return model_.narrow ? x + (rounded(x) - x).detach() : x;
  }
  // Likewise, and its gradient is rounded too.
  at::Tensor narrow(const at::Tensor& x) {
    const at::Tensor result = narrowed(x);
    if (model_.narrow) result.register_hook(rounded);
    return result;
  }

  // scale x W^T with frozen W. A rounding has the gradient 1; dy is rounded before it is scaled.
  at::Tensor product(const at::Tensor& x,
                     const at::Tensor& weight,
                     graft_float_type operands,
                     double scale = 1) {
    const bool rounds = operands == GRAFT_BF16;
    const at::Tensor operand = rounds ? x + (rounded(x) - x).detach() : x;
    const at::Tensor y = operand.matmul(weight.t()) * scale;
    if (rounds && y.requires_grad()) y.register_hook(rounded);
    watch(y, x.detach().abs().matmul(weight.detach().abs().t()) * scale, product_sensitivity_);
    return y;
  }

  // sum += sum |dL/dy| change, when the gradient comes.
  static void watch(const at::Tensor& y, const at::Tensor& change, double& sum) {
    if (!y.requires_grad()) return;
    y.register_hook(
        [change, &sum](const at::Tensor& d) { sum += (d.abs() * change).sum().item<double>(); });
  }

  static at::Tensor capped(const at::Tensor& x, float cap) {
    return cap > 0 ? (x / scalar(cap)).tanh() * scalar(cap) : x;
  }

  at::Tensor attention(const train::Layer& layer,
                       const train::LayerConfig& shape,
                       const at::Tensor& x) {
    const train::ModelConfig& config = model_.config;
    const int64_t tokens = x.size(0);
    const at::Tensor input = narrowed(x);
    std::vector<at::Tensor> planes;
    for (const train::Linear& one : layer.qkv) {
      const std::vector<at::Tensor> parts =
          narrow(linear(one, input)).split_with_sizes(one.parts, 1);
      planes.insert(planes.end(), parts.begin(), parts.end());
    }
    const auto heads = [&](const at::Tensor& plane) {
      return plane.view({tokens, -1, config.head_dim});
    };
    const auto turned = [&](const at::Tensor& plane, const train::Norm& weight) {
      const bool whole = config.qk_norm == train::QkNorm::kFull;
      at::Tensor normed = heads(plane);
      if (weight.size > 0) {
        normed = whole ? heads(narrow_norm(weight, plane)) : narrow_norm(weight, normed);
      }
      return narrow(rotate(normed.transpose(0, 1), shape));
    };
    const int64_t repeat = config.heads / config.kv_heads;
    const at::Tensor q = turned(planes[0], layer.q_norm);
    const at::Tensor k = turned(planes[1], layer.k_norm).repeat_interleave(repeat, 0);
    const at::Tensor v = heads(planes[2]).transpose(0, 1).repeat_interleave(repeat, 0);
    at::Tensor seen = at::ones({tokens, tokens}, at::kBool).tril();
    if (shape.window > 0) seen = seen.logical_and(at::ones_like(seen).triu(1 - shape.window));
    const at::Tensor scores =
        capped(q.matmul(k.transpose(1, 2)) * scalar(config.attention_scale), config.attention_cap);
    const at::Tensor visible = scores.masked_fill(seen.logical_not(), -INFINITY);
    const at::Tensor attended = visible.softmax(-1).matmul(v);
    return linear(layer.o, rounded_attention(attended, visible.logsumexp(-1, true))
                               .transpose(0, 1)
                               .reshape({tokens, config.q_width()}));
  }

  // The backward pass has dS = P (dP - dO O) with O as it was kept, rounded to O + c: its gradient
  // by a score is less by P c dO, which is c times that of the log of the sum of exp.
  at::Tensor rounded_attention(const at::Tensor& attended, const at::Tensor& lse) {
    watch(attended, attended.detach().abs(), narrow_sensitivity_);
    if (!model_.narrow) return attended;
    const at::Tensor change = (rounded(attended) - attended).detach();
    const at::Tensor result = attended + change * (1 - (lse - lse.detach()));
    result.register_hook(rounded);
    return result;
  }

  // `share` [rows, 1]: the router's weights, which the engine puts before `down`. In exact sums
  // that is the same as behind it, but not where `down`'s operands are rounded.
  at::Tensor mlp(const train::Mlp& mlp,
                 const at::Tensor& x,
                 const at::Tensor& rows,
                 const at::Tensor& share = {}) {
    const at::Tensor input = narrowed(x);
    std::vector<at::Tensor> planes;
    for (const train::Linear& one : mlp.in) {
      const std::vector<at::Tensor> parts =
          narrow(linear(one, input, rows)).split_with_sizes(one.parts, 1);
      planes.insert(planes.end(), parts.begin(), parts.end());
    }
    const at::Tensor gate = model_.config.activation == train::Activation::kSilu
                                ? at::silu(planes[0])
                                : at::gelu(planes[0], "tanh");
    const at::Tensor inner = narrow(gate * planes[1]);
    return linear(mlp.down, share.defined() ? inner * share : inner, rows);
  }

  at::Tensor mlps(const train::Layer& layer, const at::Tensor& x) {
    const at::Tensor all = at::arange(x.size(0));
    if (!layer.router) return mlp(layer.mlps[0], x, all);
    at::Tensor probabilities = linear(*layer.router, x).softmax(-1);
    router_probabilities_.push_back(probabilities.detach());
    auto [weight, chosen] = probabilities.topk(model_.config.experts_per_token, -1);
    if (model_.config.renormalises_experts) weight = weight / weight.sum(-1, true);
    at::Tensor sum = at::zeros_like(x);
    for (size_t expert = 0; expert < layer.mlps.size(); ++expert) {
      const at::Tensor places = chosen.eq(static_cast<int64_t>(expert)).nonzero();
      if (places.size(0) == 0) continue;
      const at::Tensor rows = places.select(1, 0);
      const at::Tensor share = weight.index({rows, places.select(1, 1)}).unsqueeze(1);
      sum = sum.index_add(0, rows, mlp(layer.mlps[expert], x.index_select(0, rows), rows, share));
    }
    return sum;
  }

  at::Tensor linear(const train::Linear& linear, const at::Tensor& x) {
    return this->linear(linear, x, at::arange(x.size(0)));
  }

  // rows: which tokens of the document x holds.
  at::Tensor linear(const train::Linear& linear, const at::Tensor& x, const at::Tensor& rows) {
    const at::Tensor weight = get(linear.base.dense);
    const at::Tensor base = product(x, weight, linear.operands);
    at::Tensor y = base;
    if (linear.lora.rank > 0) {
      const at::Tensor a = get(linear.lora.a), b = get(linear.lora.b);
      const at::Tensor low = dropped(linear, x, rows);
      const at::Tensor u = narrow(low.matmul(narrowed(a).t()));
      const at::Tensor change = u.matmul(narrowed(scalar(linear.lora.scale) * b).t());
      y = base + change;
      // What joins the residual stream is not rounded, but its gradient.
      if (model_.narrow) y.register_hook(rounded);
      if (linear.lora.magnitude.defined()) {
        // PEFT: the norm is a constant, and dropout reaches the base's part of the change too.
        const at::Tensor sum = (weight + scalar(linear.lora.scale) * b.matmul(a)).detach();
        const at::Tensor gain = get(linear.lora.magnitude) / sum.pow(2).sum(1).sqrt();
        y = base - product(low, weight, linear.operands) +
            gain * (product(low, weight, linear.operands) + change);
      }
    }
    return linear.has_bias ? y + get(linear.bias) : y;
  }

  at::Tensor dropped(const train::Linear& linear, const at::Tensor& x, const at::Tensor& rows) {
    if (dropout_seed_ == 0 || linear.lora.dropout == 0) {
      return x;
    }
    const at::Tensor mask = at::ones({x.size(0), linear.in}, at::kFloat);
    std::vector<int64_t> index;
    for (int64_t row = 0; row < x.size(0); ++row) {
      index.push_back(token_index_[rows[row].item<int64_t>()]);
    }
    train::check(graft_dropout_mask_apply(mask.data_ptr<float>(), x.size(0), linear.in,
                                          index.data(), dropout_seed_, linear.lora.stream,
                                          linear.lora.dropout));
    return x * mask.to(dtype_);
  }

  // Over the last dimension; x itself where there is no such norm.
  at::Tensor norm(const train::Norm& norm, const at::Tensor& x) {
    return norm.size == 0 ? x : normal(x) * factor(norm);
  }
  at::Tensor normal(const at::Tensor& x) const {
    return x * (x.pow(2).mean(-1, true) + scalar(model_.config.rms_norm_eps)).rsqrt();
  }
  at::Tensor factor(const train::Norm& norm) {
    const bool plus_one = model_.config.norm == GRAFT_RMSNORM_ONE_PLUS_WEIGHT;
    return plus_one ? 1 + get(norm.weight) : get(norm.weight);
  }
  // From bfloat16 to bfloat16, as kernels/rmsnorm.h says: some families round twice.
  at::Tensor narrow_norm(const train::Norm& norm, const at::Tensor& x) {
    const bool twice = model_.config.norm == GRAFT_RMSNORM_WEIGHT;
    return narrow((twice ? narrowed(normal(x)) : normal(x)) * factor(norm));
  }

  // x [heads, tokens, head_dim], from position 0 on.
  at::Tensor rotate(const at::Tensor& x, const train::LayerConfig& shape) {
    if (shape.rope < 0) return x;
    const train::RopeConfig& rope = model_.config.ropes[static_cast<size_t>(shape.rope)];
    const std::vector<float> inverse = train::rope_frequencies(rope, x.size(1));
    const at::Tensor frequencies = at::tensor(at::ArrayRef<float>(inverse)).to(dtype_);
    const at::Tensor angles = at::arange(x.size(1), dtype_).unsqueeze(1) * frequencies.unsqueeze(0);
    const at::Tensor both = at::cat({angles, angles}, 1);
    const int64_t half = rope.rotary_dim / 2;
    const at::Tensor turning = x.narrow(-1, 0, rope.rotary_dim);
    const at::Tensor swapped =
        at::cat({-turning.narrow(-1, half, half), turning.narrow(-1, 0, half)}, -1);
    const at::Tensor turned = (turning * both.cos() + swapped * both.sin()) * rope.cos_sin_scale;
    return at::cat({turned, x.narrow(-1, rope.rotary_dim, x.size(-1) - rope.rotary_dim)}, -1);
  }

  const train::Model& model_;
  at::ScalarType dtype_;
  uint64_t dropout_seed_;
  const int64_t* token_index_ = nullptr;  // of the document at hand
  std::map<void*, at::Tensor> by_data_;
  Leaves leaves_;
  double product_sensitivity_ = 0;
  double embedding_sensitivity_ = 0;
  double narrow_sensitivity_ = 0;
  std::vector<at::Tensor> router_probabilities_;
};

}  // namespace

ReferenceResult reference(const train::Model& model,
                          const train::Batch& batch,
                          double scale,
                          at::ScalarType dtype,
                          uint64_t dropout_seed) {
  Oracle oracle(model, dtype, dropout_seed);
  std::vector<at::Tensor> logits;
  for (int64_t d = 0; d < batch.documents(); ++d) {
    const auto at = static_cast<size_t>(d);
    const int32_t begin = batch.cu_seqlens[at];
    const int32_t end = batch.cu_seqlens[at + 1];
    const at::Tensor ids =
        at::tensor(at::ArrayRef<int>(batch.ids.data() + begin, static_cast<size_t>(end - begin)))
            .to(at::kLong);
    logits.push_back(oracle.document(ids, batch.token_index.data() + begin));
  }
  ReferenceResult result;
  result.logits = at::cat(logits, 0);
  const auto as_long = [](const std::vector<int32_t>& values) {
    return at::tensor(at::ArrayRef<int>(values)).to(at::kLong);
  };
  const at::Tensor picked = result.logits.index_select(0, as_long(batch.predicting));
  const at::Tensor losses =
      -picked.log_softmax(-1).gather(1, as_long(batch.labels).unsqueeze(1)).squeeze(1);
  const at::Tensor weights = at::tensor(at::ArrayRef<float>(batch.weights)).to(dtype);
  const at::Tensor loss = (losses * weights).sum() * scale;
  result.loss = loss.item<double>();
  if (!oracle.leaves().empty()) {
    loss.backward();
  }
  for (auto& [name, leaf] : oracle.leaves()) {
    // An expert that no token chose has none.
    result.gradients.emplace_back(name, leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf));
  }
  result.product_sensitivity = oracle.product_sensitivity();
  result.embedding_sensitivity = oracle.embedding_sensitivity();
  result.narrow_sensitivity = oracle.narrow_sensitivity();
  result.router_probabilities = oracle.router_probabilities();
  result.logits = result.logits.detach();
  return result;
}

namespace {

constexpr TinyFamily kFamilies[] = {
    {"llama", R"("model_type": "llama", "rms_norm_eps": 1e-5, "attention_bias": true,
        "mlp_bias": true, "rope_scaling": {"rope_type": "llama3", "factor": 8,
        "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 16})"},
    {"mistral", R"("model_type": "mistral", "sliding_window": 5, "head_dim": 16)"},
    {"qwen2", R"("model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4,
        "max_window_layers": 1, "tie_word_embeddings": true,
        "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32})"},
    {"qwen3", R"("model_type": "qwen3", "head_dim": 16, "attention_bias": true,
        "rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 8)"},
    {"gemma", R"("model_type": "gemma", "head_dim": 16)"},
    {"gemma2", R"("model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 12,
        "sliding_window": 5, "attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.2)"},
    {"gemma3", R"("model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 12,
        "sliding_window": 5, "sliding_window_pattern": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 8})"},
    {"phi3", R"("model_type": "phi3", "sliding_window": 7, "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 12, "rope_scaling": {"type": "longrope",
        "short_factor": [1, 1.1, 1.2], "long_factor": [1.5, 2, 3]})"},
    {"olmo2", R"("model_type": "olmo2", "attention_bias": true)"},
    {"granite", R"("model_type": "granite", "embedding_multiplier": 6, "logits_scaling": 3,
        "residual_multiplier": 0.4, "attention_multiplier": 0.3, "attention_bias": true,
        "mlp_bias": true, "tie_word_embeddings": true)"},
    {"smollm3", R"("model_type": "smollm3", "no_rope_layers": [1, 0, 1],
        "use_sliding_window": true, "sliding_window": 5)"},
    {"mixtral", R"("model_type": "mixtral", "sliding_window": 9, "num_local_experts": 6,
        "num_experts_per_tok": 3)"},
    {"qwen3_moe", R"("model_type": "qwen3_moe", "head_dim": 16, "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [1])"},
};

}  // namespace

std::span<const TinyFamily> tiny_families() {
  return kFamilies;
}

const TinyFamily& tiny_family(std::string_view name) {
  const auto* found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                   [&](const TinyFamily& one) { return one.name == name; });
  if (found == std::end(kFamilies)) fail(ExitCode::kBug, "no tiny family " + std::string(name));
  return *found;
}

std::string write_family_config(const std::string& directory,
                                const TinyFamily& family,
                                int layers) {
  write_file_atomically(join_path(directory, "config.json"), R"({"hidden_size": 32,
  "intermediate_size": 56, "num_attention_heads": 4, "num_key_value_heads": 2,
  "vocab_size": 37, "initializer_range": 0.15, "num_hidden_layers": )" +
                                                                 std::to_string(layers) + ", " +
                                                                 std::string(family.config) + "}");
  return directory;
}

std::unique_ptr<train::Model> make_rough_model(const std::string& directory, uint64_t seed) {
  std::unique_ptr<train::Model> model = train::make_model(directory, seed);
  for (const train::BaseTensor& tensor : train::base_tensors(*model)) {
    if (tensor.shape.size() > 1) continue;
    const Philox random(seed, xxh3_64(tensor.name));
    for (int64_t i = 0; i < tensor.value->numel(); ++i) {
      train::f32(*tensor.value)[i] += 0.4F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  return model;
}

RoughBase::RoughBase(const TinyFamily& family, int layers) {
  const std::string made = write_family_config(dir_.path(), family, layers);
  train::save_model(*make_rough_model(made, 7), made, path());
}

std::unique_ptr<train::Model> RoughBase::load(graft_float_type operands,
                                              train::Precision precision,
                                              const std::vector<std::string>& trained) const {
  return train::load_model(path(), precision, {}, {operands, trained});
}

void spread_pairs(train::Model& model) {
  for (train::Parameter& parameter : model.trained) {
    if (parameter.value.dim() == 1) continue;  // magnitudes are lengths of rows
    const Philox random(11, xxh3_64(parameter.name));
    for (int64_t i = 0; i < parameter.value.numel(); ++i) {
      train::f32(parameter.value)[i] = 0.3F * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  train::refresh_trained(model);
}

std::string write_tiny_config(const std::string& directory, bool tied) {
  write_file_atomically(
      join_path(directory, "config.json"), std::string(R"({"model_type": "llama", "hidden_size": 32,
  "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 37, "max_position_embeddings": 128,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "initializer_range": 0.15,
  "tie_word_embeddings": )") + (tied ? "true" : "false") +
                                               "}");
  return directory;
}

train::StepPlan poisoned(const train::Model& model, int64_t tokens, train::Keep keep) {
  train::StepPlan plan = train::StepPlan::of(model, tokens, keep);
  plan.poison = train::Poison::kYes;
  return plan;
}

train::Batch tiny_batch(int64_t vocab_size, std::vector<int64_t> lengths, uint64_t seed) {
  const Philox random(seed, 1);
  const float weights[3] = {0.0F, 1.0F, 0.5F};
  train::Batch batch;
  uint64_t draw = 0;
  int64_t index = 0;
  for (const int64_t length : lengths) {
    std::vector<int32_t> ids;
    std::vector<uint8_t> loss;
    for (int64_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<int32_t>(random.below(draw++, static_cast<uint64_t>(vocab_size))));
      loss.push_back(static_cast<uint8_t>(random.below(draw++, 3)));
    }
    batch.add(ids, loss, weights, index);
    index += length;
  }
  return batch;
}

}  // namespace graft::test
