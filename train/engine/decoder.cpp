#include "train/engine/decoder.h"

#include <utility>

#include "core/error.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {

namespace {

StepBuffers bind(const Model& model,
                 const StepPlan& plan,
                 const Layout& layout,
                 const Arena& arena) {
  Buffers buffers(layout, arena);
  return {model, plan, buffers};
}

// The halves of a block, by what their activations are.
struct Ways {
  AttentionForward* attention_forward;
  MlpForward* mlp_forward;
  MlpAgain* mlp_again;
  AttentionBackward* attention_backward;
  MlpBackward* mlp_backward;
};
constexpr Ways kWide = {attention_half_forward, mlp_half_forward, mlp_half_again,
                        attention_half_backward, mlp_half_backward};
constexpr Ways kNarrow = {narrow_attention_forward, narrow_mlp_forward, narrow_mlp_again,
                          narrow_attention_backward, narrow_mlp_backward};

const Ways& ways_of(const Model& model) {
  return model.narrow ? kNarrow : kWide;
}

StepPlan on(StepPlan plan, const Device& device) {
  plan.device = device.kind;
  return plan;
}

}  // namespace

Decoder::Decoder(Model& model,
                 const StepPlan& plan,
                 const Device& device,
                 std::shared_ptr<const Arena> arena)
    : model_(model),
      plan_(on(plan, device)),
      time_(plan_),
      device_(device),
      layout_(plan_layout(model, plan_)),
      arena_(arena != nullptr ? std::move(arena)
                              : std::make_shared<const Arena>(
                                    std::vector<const Layout*>{&layout_}, device, plan_.poison)),
      buffers_(bind(model, plan_, layout_, *arena_)),
      head_(model, buffers_.head, plan_.head_chunk, device_, clock_, plan_.tokens) {
  const bool on_host = !device.is_host() && place_of(model.embedding).is_host();
  if (on_host != (plan_.embeds_on_host && plan_.own_memory())) {
    fail(ExitCode::kBug, on_host ? "the embedding lies on the host, which was not planned"
                                 : "the embedding was planned to lie on the host");
  }
  if (model.narrow) {
    flash_ = Flash::load(device, model.config, flash_extent(model, plan_), plan_.deterministic,
                         &no_flash_);
  }
  for (size_t index = 0; index < model.layers.size(); ++index) {
    if (!plan.layers[index].resident) continue;
    for (const std::span<Linear> group : model.layers[index].groups()) keep_decoded(group);
  }
}

void Decoder::keep_decoded(std::span<Linear> group) const {
  if (!is_quantized(group)) return;
  at::Tensor& extended = group[0].base.extended;
  if (model_.narrow) {
    if (extended.defined()) return;
    extended = empty_on(device_, at::kBFloat16, {extended_count(group)});
    make_extended(group, device_, bf16(extended));
    return;
  }
  for (Linear& linear : group) {
    if (!linear.base.quantized() || linear.base.decoded.defined()) continue;
    linear.base.decoded =
        empty_on(device_, linear.operands == GRAFT_BF16 ? at::kBFloat16 : at::kFloat,
                 {linear.out, linear.in});
    decode(device_, linear.base.nf4(), linear.operands, linear.base.decoded.data_ptr());
  }
}

std::string Decoder::attention_text() const {
  if (flash_ == nullptr) return "graft's own kernel (" + no_flash_ + ")";
  return flash_->name() +
         (plan_.deterministic ? ", deterministic" : ", gradients added in any order") +
         (no_flash_.empty() ? "" : " (" + no_flash_ + ")");
}

int64_t Decoder::buffer_bytes() const {
  return layout_.bytes[0] + layout_.bytes[1];
}

const float* Decoder::block_input(size_t layer) const {
  return buffers_.forward.at(layer).input;
}

void Decoder::check_batch(const Batch& batch, const KvCache* cache) const {
  const int64_t tokens = batch.tokens();
  if (tokens > plan_.tokens) {
    fail(ExitCode::kBug, "a micro-batch of " + std::to_string(tokens) + " tokens, at most " +
                             std::to_string(plan_.tokens) + " were planned");
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

void Decoder::place(const Batch& batch) {
  arrays_ = {batch.ids.data(),        batch.cu_seqlens.data(), batch.token_index.data(),
             batch.predicting.data(), batch.labels.data(),     batch.weights.data()};
  if (device_.is_host()) return;
  const auto copy = [&](auto* to, const auto& values, auto*& array) {
    device_.copy(to, values.data(), values.size() * sizeof(values[0]));
    array = to;
  };
  const BatchBuffers& to = buffers_.batch;
  copy(to.ids, batch.ids, arrays_.ids);
  copy(to.cu_seqlens, batch.cu_seqlens, arrays_.cu_seqlens);
  copy(to.token_index, batch.token_index, arrays_.token_index);
  copy(to.predicting, batch.predicting, arrays_.predicting);
  copy(to.labels, batch.labels, arrays_.labels);
  copy(to.weights, batch.weights, arrays_.weights);
  if (flash_ != nullptr) flash_->begin(batch);
}

Pass Decoder::make_pass(const Batch& batch, const Scratch& scratch, KvCache* cache) {
  LinearWorkspace linear;
  linear.device = device_;
  linear.clock = &clock_;
  linear.weight = scratch.decoded;
  linear.rounded = scratch.rounded;
  linear.rounded_dropped = scratch.rounded_dropped;
  linear.low_rank = scratch.low_rank;
  linear.dropped = scratch.dropped;
  linear.weighed = scratch.dora;
  linear.token_index = arrays_.token_index;
  linear.row = batch.row.data();
  linear.dropout_seed = dropout_seed_;
  return {model_.config, batch,  arrays_, buffers_.rotation, device_, clock_,
          scratch,       linear, cache,   flash_.get()};
}

const float* Decoder::forward(const Batch& batch, uint64_t dropout_seed, KvCache* cache) {
  check_batch(batch, cache);
  dropout_seed_ = dropout_seed;
  clock_.start();
  place(batch);
  if (arena_->changes_hands(this)) buffers_.rotation.forget();
  buffers_.rotation.prepare(batch, device_);
  embed(batch, buffers_.embedding, buffers_.forward[0].input);
  const Ways& ways = ways_of(model_);
  for (size_t index = 0; index < model_.layers.size(); ++index) {
    const Layer& layer = model_.layers[index];
    BlockBuffers& block = buffers_.forward[index];
    const bool last = index + 1 == model_.layers.size();
    ways.attention_forward(make_pass(batch, block.attention_scratch, cache), layer, index,
                           block.attention, block.input, block.middle);
    if (buffers_.host_input[index] != nullptr) send_to_host(index, batch);
    end_phase(time_.forward_attention(index));
    ways.mlp_forward(make_pass(batch, block.mlp_scratch, cache), layer, index, block.mlp,
                     block.middle, last ? buffers_.residual : buffers_.forward[index + 1].input);
    end_phase(time_.forward_mlp(index));
  }
  if (cache != nullptr) cache->advance(batch.tokens());
  return buffers_.residual;
}

void Decoder::embed(const Batch& batch, const EmbeddingBuffers& buffers, float* embedded) {
  const int64_t hidden = model_.config.hidden_size, tokens = batch.tokens();
  const graft_float_type type = model_.embedding_type;
  void* const rows =
      type == GRAFT_BF16 ? static_cast<void*>(buffers.half_rows) : static_cast<void*>(embedded);
  const auto gather = [&](const int32_t* ids, void* to, const Device& where) {
    check(graft_embedding_forward(ids, tokens, model_.embedding.data_ptr(),
                                  model_.config.vocab_size, hidden, to, type, where.kind,
                                  where.stream));
  };
  if (buffers.host_rows != nullptr) {
    // The copies of a step before may still read what lies there.
    device_.wait();
    gather(batch.ids.data(), buffers.host_rows, {});
    device_.copy(rows, buffers.host_rows, static_cast<size_t>(tokens * hidden * size_of(type)));
    clock_.lap(Work::kCopies);
  } else {
    gather(arrays_.ids, rows, device_);
  }
  if (type == GRAFT_BF16) {
    check(graft_convert(rows, GRAFT_BF16, hidden, embedded, GRAFT_F32, hidden, tokens, hidden, 1,
                        device_.kind, device_.stream));
  }
  if (model_.config.embedding_scale != 1) {
    check(graft_scale(embedded, model_.config.embedding_scale, tokens * hidden, GRAFT_F32,
                      device_.kind, device_.stream));
  }
  clock_.lap(Work::kRows);
}

void Decoder::send_to_host(size_t index, const Batch& batch) {
  const size_t bytes =
      static_cast<size_t>(batch.tokens() * model_.config.hidden_size) * sizeof(float);
  device_.copy(buffers_.host_input[index], buffers_.forward[index].input, bytes);
  clock_.lap(Work::kCopies);
}

void Decoder::bring_from_host(size_t index, const Batch& batch) {
  const size_t bytes =
      static_cast<size_t>(batch.tokens() * model_.config.hidden_size) * sizeof(float);
  device_.copy(buffers_.backward[index].input, buffers_.host_input[index], bytes);
  clock_.lap(Work::kCopies);
}

HeadResult Decoder::head_loss(const Batch& batch,
                              const float* residual,
                              double scale,
                              float* d_residual,
                              float* row_loss,
                              const HeadResult& before,
                              uint8_t* row_correct) {
  clock_.start();
  const HeadResult sums =
      head_.loss(batch, arrays_, residual, scale, d_residual, row_loss, before, row_correct);
  // Without a gradient the residual stream may be asked for again.
  if (d_residual != nullptr) end_phase(time_.head());
  return sums;
}

void Decoder::make_inputs(const Batch& batch, size_t last) {
  const Ways& ways = ways_of(model_);
  const size_t first = plan_.run_begin(last);
  if (plan_.drops_input(first)) {
    embed(batch, buffers_.embedding_again, buffers_.backward[first].input);
  } else if (buffers_.host_input[first] != nullptr) {
    bring_from_host(first, batch);
  }
  for (size_t index = first; index < last; ++index) {
    const Layer& layer = model_.layers[index];
    BlockBuffers& block = buffers_.forward_again[index];
    ways.attention_forward(make_pass(batch, block.attention_scratch, nullptr), layer, index,
                           block.attention, buffers_.backward[index].input, block.middle);
    end_phase(time_.again_attention(index));
    ways.mlp_forward(make_pass(batch, block.mlp_scratch, nullptr), layer, index, block.mlp,
                     block.middle, buffers_.backward[index + 1].input);
    end_phase(time_.again_mlp(index));
  }
}

void Decoder::run_again(const Batch& batch, size_t index) {
  if (plan_.layers[index].memory == LayerMemory::kKeep) return;
  const Layer& layer = model_.layers[index];
  const Ways& ways = ways_of(model_);
  BlockBuffers& block = buffers_.backward[index];
  if (buffers_.host_input[index] != nullptr && !plan_.runs_again(index)) {
    bring_from_host(index, batch);
  }
  if (plan_.attends_again(index)) {
    ways.attention_forward(make_pass(batch, buffers_.again[index], nullptr), layer, index,
                           block.attention, block.input, block.middle);
    end_phase(time_.backward_begin(index));
  }
  ways.mlp_again(make_pass(batch, block.mlp_scratch, nullptr), layer, index, block.mlp,
                 block.middle);
}

void Decoder::backward(const Batch& batch, float* d_residual) {
  const ModelConfig& config = model_.config;
  const bool trains_embedding = model_.trains_embedding();
  const Ways& ways = ways_of(model_);
  clock_.start();
  for (size_t index = model_.layers.size(); index-- > plan_.lowest;) {
    const Layer& layer = model_.layers[index];
    BlockBuffers& block = buffers_.backward[index];
    if (plan_.ends_run(index)) make_inputs(batch, index);
    run_again(batch, index);
    ways.mlp_backward(make_pass(batch, block.mlp_scratch, nullptr), layer, index, block.mlp,
                      block.middle, d_residual);
    end_phase(time_.backward_mlp(index));
    ways.attention_backward(make_pass(batch, block.attention_scratch, nullptr), layer, index,
                            block.attention, block.input, d_residual,
                            index > plan_.lowest || trains_embedding || plan_.input_gradient);
    end_phase(time_.backward_attention(index));
  }
  if (!trains_embedding) return;
  if (config.embedding_scale != 1) {
    check(graft_scale(d_residual, config.embedding_scale, batch.tokens() * config.hidden_size,
                      GRAFT_F32, device_.kind, device_.stream));
  }
  if (model_.embedding_grad.defined()) {
    check(graft_embedding_backward(d_residual, arrays_.ids, batch.tokens(), config.vocab_size,
                                   config.hidden_size, f32(model_.embedding_grad), GRAFT_F32,
                                   device_.kind, device_.stream));
  } else {
    add_row_gradients(batch, d_residual);
  }
  clock_.lap(Work::kRows);
}

// Token by token, in the order of graft_embedding_backward. Added tokens are few.
void Decoder::add_row_gradients(const Batch& batch, const float* d_embedded) {
  const AddedTokens& added = model_.config.added;
  const int64_t hidden = model_.config.hidden_size;
  for (int64_t token = 0; token < batch.tokens(); ++token) {
    const int64_t row = batch.ids[static_cast<size_t>(token)] - added.first;
    if (row < 0 || row >= added.count()) continue;
    check(graft_add(f32(model_.embedding_rows.grad) + row * hidden, d_embedded + token * hidden,
                    hidden, GRAFT_F32, device_.kind, device_.stream));
  }
}

void Decoder::finish_gradients() {
  if (!model_.config.tied_embeddings || !model_.trains_head()) return;
  clock_.start();
  const bool whole = model_.head_grad.defined();
  const at::Tensor& embedding = whole ? model_.embedding_grad : model_.embedding_rows.grad;
  const at::Tensor& head = whole ? model_.head_grad : model_.head_rows.grad;
  check(
      graft_add(f32(embedding), f32(head), head.numel(), GRAFT_F32, device_.kind, device_.stream));
  device_.zero(f32(head), head.nbytes());
  clock_.lap(Work::kRows);
}

}  // namespace graft::train
