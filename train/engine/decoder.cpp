#include "train/engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

// Rows of logits at a time: bounds the buffer (4 MB at a vocabulary of 1,024, 131 MB at 128k) and
// is tall enough for the product to run at its full rate.
constexpr int64_t kHeadChunk = 256;

int64_t largest_weight(const Model& model) {
  int64_t largest = 0;
  for (const Linear& linear : model.layers[0].linears) {
    largest = std::max(largest, linear.in * linear.out);
  }
  return largest;
}

struct LoraExtent {
  int64_t rank = 0;
  bool dropout = false;
};

LoraExtent lora_extent(const Model& model) {
  LoraExtent extent;
  for (const Layer& layer : model.layers) {
    for (const Linear& linear : layer.linears) {
      extent.rank = std::max(extent.rank, linear.lora.rank);
      extent.dropout = extent.dropout || linear.lora.dropout > 0;
    }
  }
  return extent;
}

graft_attention_shape attention_shape(const ModelConfig& config, const Batch& batch) {
  const int64_t row = config.q_width() + 2 * config.kv_width();
  graft_attention_shape shape{};
  shape.documents = batch.documents();
  shape.cu_seqlens = batch.cu_seqlens.data();
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.q_stride = row;
  shape.k_stride = row;
  shape.v_stride = row;
  shape.out_stride = config.q_width();
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  return shape;
}

}  // namespace

at::Tensor Decoder::make(std::initializer_list<int64_t> shape) {
  at::Tensor tensor = empty_f32(shape);
  buffer_bytes_ += static_cast<int64_t>(tensor.nbytes());
  return tensor;
}

Decoder::Decoder(Model& model, int64_t max_tokens, Keep keep)
    : model_(model), max_tokens_(max_tokens), keep_(keep) {
  const ModelConfig& config = model.config;
  const int64_t tokens = max_tokens;
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q_width = config.q_width();
  const int64_t qkv_width = q_width + 2 * config.kv_width();
  const LoraExtent lora = lora_extent(model);
  const bool backward = keep == Keep::kForBackward;

  states_.resize(backward ? model.layers.size() : 1);
  for (BlockState& state : states_) {
    state.input = make({tokens, hidden});
    state.middle = make({tokens, hidden});
    state.qkv = make({tokens, qkv_width});
    state.attended = make({tokens, q_width});
    state.lse = make({tokens, config.heads});
    state.gate = make({tokens, inner});
    state.up = make({tokens, inner});
    state.inv_rms_attention = make({tokens});
    state.inv_rms_mlp = make({tokens});
    for (at::Tensor& u : state.u) {
      u = make({tokens, std::max<int64_t>(lora.rank, 1)});
    }
  }
  residual_ = make({tokens, hidden});
  normed_ = make({tokens, hidden});
  product_ = make({tokens, inner});
  cos_ = make({tokens, config.head_dim / 2});
  sin_ = make({tokens, config.head_dim / 2});
  if (model.quantized()) {
    weight_ = make({largest_weight(model)});
  }
  low_rank_ = make({tokens, std::max<int64_t>(lora.rank, 1)});
  if (lora.dropout) {
    dropped_ = make({tokens, std::max(hidden, std::max(inner, q_width))});
  }
  if (backward) {
    d_residual_ = make({tokens, hidden});
    d_normed_ = make({tokens, hidden});
    d_product_ = make({tokens, inner});
    d_gate_ = make({tokens, inner});
    d_up_ = make({tokens, inner});
    d_qkv_ = make({tokens, qkv_width});
    d_attended_ = make({tokens, q_width});
    d_head_rows_ = make({kHeadChunk, hidden});
  }
  head_rows_ = make({kHeadChunk, hidden});
  head_normed_ = make({kHeadChunk, hidden});
  head_inv_rms_ = make({kHeadChunk});
  logits_ = make({kHeadChunk, config.vocab_size});
  chunk_loss_.resize(kHeadChunk);
  chunk_correct_.resize(kHeadChunk);
  workspace_.weight = f32_or_null(weight_);
  workspace_.low_rank = f32(low_rank_);
  workspace_.dropped = f32_or_null(dropped_);
}

Decoder::BlockState& Decoder::state(size_t layer) {
  return states_[keep_ == Keep::kForBackward ? layer : 0];
}

float* Decoder::gradient_buffer() {
  return f32_or_null(d_residual_);
}

const float* Decoder::forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache) {
  const ModelConfig& config = model_.config;
  const int64_t tokens = batch.tokens();
  if (tokens > max_tokens_) {
    fail(ExitCode::kBug, "a micro-batch of " + std::to_string(tokens) + " tokens, at most " +
                             std::to_string(max_tokens_) + " were planned");
  }
  if (cache != nullptr && (cache->positions_ + tokens > cache->max_positions_ ||
                           batch.documents() != 1 || (cache->positions_ > 0 && tokens != 1))) {
    fail(ExitCode::kBug, "a cache of " + std::to_string(cache->max_positions_) +
                             " positions takes one document when empty, then one token at a time");
  }
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= config.vocab_size) {
      fail(ExitCode::kData,
           "token id " + std::to_string(id) + " is outside the model's vocabulary of " +
               std::to_string(config.vocab_size),
           "", "use the tokenizer that belongs to the model");
    }
  }
  workspace_.token_index = batch.token_index.data();
  workspace_.dropout_seed = dropout_seed;
  check(graft_rope_tables(batch.positions.data(), tokens, model_.inv_freq.data(),
                          config.head_dim / 2, 1.0F, f32(cos_), f32(sin_)));
  check(graft_embedding_forward(batch.ids.data(), tokens, f32(model_.embedding), config.vocab_size,
                                config.hidden_size, f32(state(0).input)));
  for (size_t layer = 0; layer < model_.layers.size(); ++layer) {
    const bool last = layer + 1 == model_.layers.size();
    float* output = f32(last ? residual_ : state(layer + 1).input);
    block_forward(batch, layer, state(layer), cache, output);
  }
  if (cache != nullptr) {
    cache->positions_ += tokens;
  }
  return f32(residual_);
}

KvCache::KvCache(const ModelConfig& config, int64_t max_positions) : max_positions_(max_positions) {
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    keys_.push_back(empty_f32({max_positions, config.kv_width()}));
    values_.push_back(empty_f32({max_positions, config.kv_width()}));
  }
}

void Decoder::attend(const Batch& batch, size_t layer_index, BlockState& state, KvCache* cache) {
  const ModelConfig& config = model_.config;
  const int64_t kv_width = config.kv_width();
  const int64_t row = config.q_width() + 2 * kv_width;
  const graft_attention_shape shape = attention_shape(config, batch);
  const float* q = f32(state.qkv);
  const float* k = q + config.q_width();
  const float* v = k + kv_width;
  if (cache != nullptr) {
    const auto bytes = static_cast<size_t>(kv_width) * sizeof(float);
    float* keys = f32(cache->keys_[layer_index]) + cache->positions_ * kv_width;
    float* values = f32(cache->values_[layer_index]) + cache->positions_ * kv_width;
    for (int64_t token = 0; token < batch.tokens(); ++token) {
      std::memcpy(keys + token * kv_width, k + token * row, bytes);
      std::memcpy(values + token * kv_width, v + token * row, bytes);
    }
    if (cache->positions_ > 0) {
      check(graft_attention_decode(q, f32(cache->keys_[layer_index]),
                                   f32(cache->values_[layer_index]), cache->positions_ + 1,
                                   config.heads, config.kv_heads, config.head_dim, shape.scale,
                                   f32(state.attended)));
      return;
    }
  }
  check(graft_attention_forward(&shape, q, k, v, f32(state.attended), f32(state.lse)));
}

void Decoder::block_forward(
    const Batch& batch, size_t layer_index, BlockState& state, KvCache* cache, float* output) {
  const ModelConfig& config = model_.config;
  const Layer& layer = model_.layers[layer_index];
  const int64_t tokens = batch.tokens();
  const int64_t hidden = config.hidden_size;
  const int64_t q_width = config.q_width();
  const int64_t kv_width = config.kv_width();
  const int64_t qkv_width = q_width + 2 * kv_width;
  float* q = f32(state.qkv);
  float* k = q + q_width;
  float* v = k + kv_width;
  const auto forward = [&](Projection projection, const float* x, float* y, int64_t ldy) {
    linear_forward(layer.linears[projection], workspace_, x, tokens, y, ldy,
                   f32(state.u[projection]));
  };

  check(graft_rmsnorm_forward(f32(state.input), f32(layer.attention_norm), config.rms_norm_eps,
                              tokens, hidden, f32(normed_), f32(state.inv_rms_attention)));
  forward(kQ, f32(normed_), q, qkv_width);
  forward(kK, f32(normed_), k, qkv_width);
  forward(kV, f32(normed_), v, qkv_width);
  check(graft_rope_apply(q, tokens, config.heads, config.head_dim, qkv_width, f32(cos_), f32(sin_),
                         GRAFT_ROPE_FORWARD));
  check(graft_rope_apply(k, tokens, config.kv_heads, config.head_dim, qkv_width, f32(cos_),
                         f32(sin_), GRAFT_ROPE_FORWARD));
  attend(batch, layer_index, state, cache);
  forward(kO, f32(state.attended), f32(state.middle), hidden);
  check(graft_add(f32(state.middle), f32(state.input), tokens * hidden));

  check(graft_rmsnorm_forward(f32(state.middle), f32(layer.mlp_norm), config.rms_norm_eps, tokens,
                              hidden, f32(normed_), f32(state.inv_rms_mlp)));
  forward(kGate, f32(normed_), f32(state.gate), config.intermediate_size);
  forward(kUp, f32(normed_), f32(state.up), config.intermediate_size);
  check(graft_swiglu_forward(f32(state.gate), f32(state.up), tokens * config.intermediate_size,
                             f32(product_)));
  // `output` may be this state's own input when blocks share one state: it is dead by now.
  forward(kDown, f32(product_), output, hidden);
  check(graft_add(output, f32(state.middle), tokens * hidden));
}

void Decoder::backward(const Batch& batch, float* d_residual) {
  for (size_t layer = model_.layers.size(); layer-- > 0;) {
    const bool needs_input_grad = layer > 0 || model_.embedding_grad.defined();
    block_backward(batch, model_.layers[layer], states_[layer], d_residual, needs_input_grad);
  }
  if (model_.embedding_grad.defined()) {
    check(graft_embedding_backward(d_residual, batch.ids.data(), batch.tokens(),
                                   model_.config.vocab_size, model_.config.hidden_size,
                                   f32(model_.embedding_grad)));
  }
}

void Decoder::block_backward(const Batch& batch,
                             const Layer& layer,
                             BlockState& state,
                             float* d_residual,
                             bool needs_input_grad) {
  const ModelConfig& config = model_.config;
  const int64_t tokens = batch.tokens();
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q_width = config.q_width();
  const int64_t kv_width = config.kv_width();
  const int64_t qkv_width = q_width + 2 * kv_width;
  const auto backward = [&](Projection projection, const float* x, const float* dy, int64_t ld_dy,
                            float* dx, InputGrad mode) {
    linear_backward(layer.linears[projection], workspace_, x, f32(state.u[projection]), tokens, dy,
                    ld_dy, dx, mode);
  };

  // MLP: residual += down(silu(gate(n)) * up(n)), n = norm(middle).
  check(graft_swiglu_forward(f32(state.gate), f32(state.up), tokens * inner, f32(product_)));
  backward(kDown, f32(product_), d_residual, hidden, f32(d_product_), InputGrad::kOverwrite);
  check(graft_swiglu_backward(f32(d_product_), f32(state.gate), f32(state.up), tokens * inner,
                              f32(d_gate_), f32(d_up_)));
  check(graft_rmsnorm_forward(f32(state.middle), f32(layer.mlp_norm), config.rms_norm_eps, tokens,
                              hidden, f32(normed_), f32(state.inv_rms_mlp)));
  backward(kGate, f32(normed_), f32(d_gate_), inner, f32(d_normed_), InputGrad::kOverwrite);
  backward(kUp, f32(normed_), f32(d_up_), inner, f32(d_normed_), InputGrad::kAdd);
  check(graft_rmsnorm_backward(f32(d_normed_), f32(state.middle), f32(layer.mlp_norm),
                               f32(state.inv_rms_mlp), tokens, hidden, d_residual,
                               f32_or_null(layer.mlp_norm_grad)));

  // Attention: middle = input + o(attention(q(n), k(n), v(n))), n = norm(input).
  backward(kO, f32(state.attended), d_residual, hidden, f32(d_attended_), InputGrad::kOverwrite);
  const graft_attention_shape shape = attention_shape(config, batch);
  const size_t bytes = graft_attention_workspace_bytes(&shape);
  if (!attention_workspace_.defined() || attention_workspace_.nbytes() < bytes) {
    attention_workspace_ = empty_u8(static_cast<int64_t>(bytes));
  }
  const float* q = f32(state.qkv);
  float* d_q = f32(d_qkv_);
  float* d_k = d_q + q_width;
  float* d_v = d_k + kv_width;
  check(graft_attention_backward(&shape, q, q + q_width, q + q_width + kv_width,
                                 f32(state.attended), f32(state.lse), f32(d_attended_), d_q, d_k,
                                 d_v, attention_workspace_.data_ptr(), bytes));
  check(graft_rope_apply(d_q, tokens, config.heads, config.head_dim, qkv_width, f32(cos_),
                         f32(sin_), GRAFT_ROPE_INVERSE));
  check(graft_rope_apply(d_k, tokens, config.kv_heads, config.head_dim, qkv_width, f32(cos_),
                         f32(sin_), GRAFT_ROPE_INVERSE));
  check(graft_rmsnorm_forward(f32(state.input), f32(layer.attention_norm), config.rms_norm_eps,
                              tokens, hidden, f32(normed_), f32(state.inv_rms_attention)));
  const InputGrad first = needs_input_grad ? InputGrad::kOverwrite : InputGrad::kSkip;
  const InputGrad rest = needs_input_grad ? InputGrad::kAdd : InputGrad::kSkip;
  backward(kQ, f32(normed_), d_q, qkv_width, f32(d_normed_), first);
  backward(kK, f32(normed_), d_k, qkv_width, f32(d_normed_), rest);
  backward(kV, f32(normed_), d_v, qkv_width, f32(d_normed_), rest);
  if (needs_input_grad) {
    check(graft_rmsnorm_backward(f32(d_normed_), f32(state.input), f32(layer.attention_norm),
                                 f32(state.inv_rms_attention), tokens, hidden, d_residual,
                                 f32_or_null(layer.attention_norm_grad)));
  }
}

Decoder::HeadResult Decoder::head_loss(
    const Batch& batch, const float* residual, double scale, float* d_residual, float* row_loss) {
  const ModelConfig& config = model_.config;
  const int64_t hidden = config.hidden_size;
  const int64_t vocab = config.vocab_size;
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  const bool gradient = d_residual != nullptr;
  const float* head = f32(model_.head);
  if (gradient) {
    std::memset(d_residual, 0, static_cast<size_t>(batch.tokens()) * row_bytes);
  }
  HeadResult result;
  for (int64_t begin = 0; begin < batch.supervised(); begin += kHeadChunk) {
    const int64_t rows = std::min(kHeadChunk, batch.supervised() - begin);
    const int32_t* places = batch.predicting.data() + begin;
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(f32(head_rows_) + row * hidden, residual + places[row] * hidden, row_bytes);
    }
    check(graft_rmsnorm_forward(f32(head_rows_), f32(model_.final_norm), config.rms_norm_eps, rows,
                                hidden, f32(head_normed_), f32(head_inv_rms_)));
    check(graft_gemm_f32(GRAFT_N, GRAFT_T, rows, vocab, hidden, 1, f32(head_normed_), hidden, head,
                         hidden, 0, f32(logits_), vocab));
    const float* weights = batch.weights.data() + begin;
    check(graft_cross_entropy(f32(logits_), batch.labels.data() + begin, weights, rows, vocab,
                              static_cast<float>(scale), chunk_loss_.data(), chunk_correct_.data(),
                              gradient ? GRAFT_CE_WITH_GRADIENT : GRAFT_CE_LOSS_ONLY));
    for (int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<size_t>(row);
      result.loss_sum += static_cast<double>(weights[row]) * static_cast<double>(chunk_loss_[at]);
      result.weight_sum += static_cast<double>(weights[row]);
      result.correct += chunk_correct_[at];
      if (row_loss != nullptr) {
        row_loss[begin + row] = chunk_loss_[at];
      }
    }
    if (!gradient) {
      continue;
    }
    if (model_.head_grad.defined()) {
      check(graft_gemm_f32(GRAFT_T, GRAFT_N, vocab, hidden, rows, 1, f32(logits_), vocab,
                           f32(head_normed_), hidden, 1, f32(model_.head_grad), hidden));
    }
    check(graft_gemm_f32(GRAFT_N, GRAFT_N, rows, hidden, vocab, 1, f32(logits_), vocab, head,
                         hidden, 0, f32(head_normed_), hidden));
    std::memset(f32(d_head_rows_), 0, static_cast<size_t>(rows) * row_bytes);
    check(graft_rmsnorm_backward(f32(head_normed_), f32(head_rows_), f32(model_.final_norm),
                                 f32(head_inv_rms_), rows, hidden, f32(d_head_rows_),
                                 f32_or_null(model_.final_norm_grad)));
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(d_residual + places[row] * hidden, f32(d_head_rows_) + row * hidden, row_bytes);
    }
  }
  result.supervised = batch.supervised();
  return result;
}

void Decoder::head_logits(const float* residual, int64_t rows, float* logits) {
  const int64_t hidden = model_.config.hidden_size;
  const int64_t vocab = model_.config.vocab_size;
  for (int64_t begin = 0; begin < rows; begin += kHeadChunk) {
    const int64_t count = std::min(kHeadChunk, rows - begin);
    check(graft_rmsnorm_forward(residual + begin * hidden, f32(model_.final_norm),
                                model_.config.rms_norm_eps, count, hidden, f32(head_normed_),
                                f32(head_inv_rms_)));
    check(graft_gemm_f32(GRAFT_N, GRAFT_T, count, vocab, hidden, 1, f32(head_normed_), hidden,
                         f32(model_.head), hidden, 0, logits + begin * vocab, vocab));
  }
}

}  // namespace graft::train
