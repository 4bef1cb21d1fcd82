#include "train/engine/decoder.h"

#include <cstring>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "train/engine/tensor.h"

namespace graft::train {

Decoder::Decoder(Model& model, int64_t max_tokens, Keep keep, int64_t head_chunk)
    : model_(model),
      max_tokens_(max_tokens),
      keep_(keep),
      rotation_(model.config, max_tokens),
      scratch_(model, max_tokens, keep, buffers_),
      head_(model, keep, head_chunk, buffers_) {
  if (keep == Keep::kForBackward) {
    for (size_t layer = 0; layer < model.layers.size(); ++layer) {
      states_.push_back(
          make_state(model.config, StateShape::of(model, layer), max_tokens, buffers_));
    }
    d_residual_ = buffers_.make({max_tokens, model.config.hidden_size});
  } else {
    states_.push_back(make_state(model.config, StateShape::of_all(model), max_tokens, buffers_));
  }
  residual_ = buffers_.make({max_tokens, model.config.hidden_size});
}

float* Decoder::gradient_buffer() {
  return f32_or_null(d_residual_);
}

const float* Decoder::block_input(size_t layer) const {
  return f32(states_.at(layer).input);
}

void Decoder::check_batch(const Batch& batch, const KvCache* cache) const {
  const int64_t tokens = batch.tokens();
  if (tokens > max_tokens_) {
    fail(ExitCode::kBug, "a micro-batch of " + std::to_string(tokens) + " tokens, at most " +
                             std::to_string(max_tokens_) + " were planned");
  }
  if (cache != nullptr && (cache->positions() + tokens > cache->max_positions() ||
                           batch.documents() != 1 || (cache->positions() > 0 && tokens != 1))) {
    fail(ExitCode::kBug, "a cache of " + std::to_string(cache->max_positions()) +
                             " positions takes one document when empty, then one token at a time");
  }
  for (const int32_t id : batch.ids) {
    if (id < 0 || id >= model_.config.vocab_size) {
      fail(ExitCode::kData,
           "token id " + std::to_string(id) + " is outside the model's vocabulary of " +
               std::to_string(model_.config.vocab_size),
           "", "use the tokenizer that belongs to the model");
    }
  }
}

Pass Decoder::make_pass(const Batch& batch, KvCache* cache) {
  LinearWorkspace linear = scratch_.linear;
  linear.token_index = batch.token_index.data();
  linear.row = batch.row.data();
  linear.dropout_seed = dropout_seed_;
  return {model_.config, batch, rotation_, scratch_, linear, cache};
}

const float* Decoder::forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache) {
  check_batch(batch, cache);
  const ModelConfig& config = model_.config;
  dropout_seed_ = dropout_seed;
  rotation_.prepare(batch);
  float* embedded = f32(state(0).input);
  check(graft_embedding_forward(batch.ids.data(), batch.tokens(), f32(model_.embedding),
                                config.vocab_size, config.hidden_size, embedded));
  if (config.embedding_scale != 1) {
    check(graft_scale(embedded, config.embedding_scale, batch.tokens() * config.hidden_size));
  }
  const Pass pass = make_pass(batch, cache);
  for (size_t index = 0; index < model_.layers.size(); ++index) {
    const Layer& layer = model_.layers[index];
    BlockState& kept = state(index);
    const bool last = index + 1 == model_.layers.size();
    // This state's own input when blocks share one state: it is dead once the halves are done.
    float* output = f32(last ? residual_ : state(index + 1).input);
    attention_half_forward(pass, layer, index, kept.attention, f32(kept.input), f32(kept.middle));
    mlp_half_forward(pass, layer, index, kept.mlp, f32(kept.middle), output);
  }
  if (cache != nullptr) cache->advance(batch.tokens());
  return f32(residual_);
}

void Decoder::backward(const Batch& batch, float* d_residual) {
  const ModelConfig& config = model_.config;
  const bool trains_embedding = model_.embedding_grad.defined();
  size_t lowest = 0;  // no gradient is needed below the first block that trains something
  while (!trains_embedding && lowest < model_.layers.size() && !model_.layers[lowest].trains()) {
    ++lowest;
  }
  const Pass pass = make_pass(batch, nullptr);
  for (size_t index = model_.layers.size(); index-- > lowest;) {
    const Layer& layer = model_.layers[index];
    BlockState& kept = states_[index];
    mlp_half_backward(pass, layer, index, kept.mlp, f32(kept.middle), d_residual);
    attention_half_backward(pass, layer, index, kept.attention, f32(kept.input), d_residual,
                            index > lowest || trains_embedding);
  }
  if (trains_embedding) {
    if (config.embedding_scale != 1) {
      check(graft_scale(d_residual, config.embedding_scale, batch.tokens() * config.hidden_size));
    }
    check(graft_embedding_backward(d_residual, batch.ids.data(), batch.tokens(), config.vocab_size,
                                   config.hidden_size, f32(model_.embedding_grad)));
  }
}

void Decoder::finish_gradients() {
  if (!model_.config.tied_embeddings || !model_.head_grad.defined()) return;
  check(graft_add(f32(model_.embedding_grad), f32(model_.head_grad), model_.head_grad.numel()));
  std::memset(f32(model_.head_grad), 0, model_.head_grad.nbytes());
}

}  // namespace graft::train
