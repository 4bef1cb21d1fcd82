#include "tests/train/reference.h"

#include <map>

#include <ATen/ATen.h>

#include "core/file.h"
#include "core/hash.h"
#include "kernels/elementwise.h"
#include "train/engine/tensor.h"

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
    const int64_t tokens = ids.size(0);
    at::Tensor x = at::embedding(get(model_.embedding), ids);
    const auto [cosines, sines] = rotation(tokens);
    for (const train::Layer& layer : model_.layers) {
      const at::Tensor n = norm(x, get(layer.attention_norm));
      const auto heads = [&](train::Projection projection, int64_t count) {
        return linear(layer.linears[projection], n)
            .view({tokens, count, config.head_dim})
            .transpose(0, 1);
      };
      const at::Tensor q = rotate(heads(train::kQ, config.heads), cosines, sines);
      const int64_t repeat = config.heads / config.kv_heads;
      const at::Tensor k =
          rotate(heads(train::kK, config.kv_heads), cosines, sines).repeat_interleave(repeat, 0);
      const at::Tensor v = heads(train::kV, config.kv_heads).repeat_interleave(repeat, 0);
      const double scale = 1 / std::sqrt(static_cast<double>(config.head_dim));
      const at::Tensor mask = at::ones({tokens, tokens}, at::kBool).tril().logical_not();
      const at::Tensor scores = (q.matmul(k.transpose(1, 2)) * scale).masked_fill(mask, -INFINITY);
      const at::Tensor attended =
          scores.softmax(-1).matmul(v).transpose(0, 1).reshape({tokens, config.q_width()});
      x = x + linear(layer.linears[train::kO], attended);
      const at::Tensor m = norm(x, get(layer.mlp_norm));
      x = x + linear(layer.linears[train::kDown], at::silu(linear(layer.linears[train::kGate], m)) *
                                                      linear(layer.linears[train::kUp], m));
    }
    return norm(x, get(model_.final_norm)).matmul(get(model_.head).t());
  }

  Leaves& leaves() { return leaves_; }

 private:
  // The leaf of a trained tensor, else a constant.
  at::Tensor get(const at::Tensor& tensor) {
    const auto found = by_data_.find(tensor.data_ptr());
    return found != by_data_.end() ? found->second : tensor.to(dtype_);
  }

  at::Tensor linear(const train::Linear& linear, const at::Tensor& x) {
    at::Tensor y = x.matmul(get(linear.base.dense).t());
    if (linear.lora.rank > 0) {
      y = y + static_cast<double>(linear.lora.scale) *
                  dropped(linear, x).matmul(get(linear.lora.a).t()).matmul(get(linear.lora.b).t());
    }
    return y;
  }

  at::Tensor dropped(const train::Linear& linear, const at::Tensor& x) {
    if (dropout_seed_ == 0 || linear.lora.dropout == 0) {
      return x;
    }
    const at::Tensor mask = at::ones({x.size(0), linear.in}, at::kFloat);
    train::check(graft_dropout_mask_apply(mask.data_ptr<float>(), x.size(0), linear.in,
                                          token_index_, dropout_seed_, linear.lora.stream,
                                          linear.lora.dropout));
    return x * mask.to(dtype_);
  }

  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) {
    const double eps = static_cast<double>(model_.config.rms_norm_eps);
    return x * (x.pow(2).mean(-1, true) + eps).rsqrt() * weight;
  }

  std::pair<at::Tensor, at::Tensor> rotation(int64_t tokens) {
    const at::Tensor frequencies = at::tensor(at::ArrayRef<float>(model_.inv_freq)).to(dtype_);
    const at::Tensor angles = at::arange(tokens, dtype_).unsqueeze(1) * frequencies.unsqueeze(0);
    const at::Tensor both = at::cat({angles, angles}, 1);
    return {both.cos(), both.sin()};
  }

  static at::Tensor rotate(const at::Tensor& x,
                           const at::Tensor& cosines,
                           const at::Tensor& sines) {
    const int64_t half = x.size(-1) / 2;
    const at::Tensor turned = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
    return x * cosines + turned * sines;
  }

  const train::Model& model_;
  at::ScalarType dtype_;
  uint64_t dropout_seed_;
  const int64_t* token_index_ = nullptr;  // of the document at hand
  std::map<void*, at::Tensor> by_data_;
  Leaves leaves_;
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
    result.gradients.emplace_back(name, leaf.grad());
  }
  result.logits = result.logits.detach();
  return result;
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
