#include "train/engine/step_buffers.h"

#include <algorithm>

#include "kernels/attention.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {
namespace {

// What the linears of a half need at most.
struct Extent {
  int64_t rank = 0;
  int64_t in = 0;
  int64_t dora = 0;     // outputs of the widest linear with DoRA
  int64_t decoded = 0;  // bytes of the largest weight in 4 bits, decoded
  // Of the linears with bfloat16 operands: inputs, outputs of a part, inputs with DoRA.
  int64_t rounded_in = 0;
  int64_t rounded_part = 0;
  int64_t rounded_dora = 0;
  bool dropout = false;

  void add(const StepPlan& plan, LinearGroup group, bool resident, bool narrow) {
    if (narrow) {
      if (in_4_bits(plan, group) && !resident) {
        decoded = std::max(decoded, 2 * extended_count(group));
      }
      return;
    }
    for (const Linear& linear : group) add(plan, linear, resident);
  }

 private:
  void add(const StepPlan& plan, const Linear& linear, bool resident) {
    rank = std::max(rank, linear.lora.rank);
    in = std::max(in, linear.in);
    if (linear.lora.magnitude.defined()) dora = std::max(dora, linear.out);
    dropout = dropout || linear.lora.dropout > 0;
    if (in_4_bits(plan, linear) && !resident) {
      decoded = std::max(decoded, linear.in * linear.out * size_of(linear.operands));
    }
    if (linear.operands != GRAFT_BF16) return;
    rounded_in = std::max(rounded_in, linear.in);
    for (const int64_t rows : linear.parts) rounded_part = std::max(rounded_part, rows);
    if (linear.lora.magnitude.defined()) rounded_dora = std::max(rounded_dora, linear.in);
  }
};

struct Extents {
  Extent attention, mlp;
};

// One layer's sizes.
struct LayerShape {
  LayerShape(const Model& model, const StepPlan& plan, size_t index)
      : config(model.config),
        of_layer(model.config.layers[index]),
        layer(model.layers[index]),
        tokens(plan.tokens),
        routes(of_layer.experts > 0),
        own_memory(plan.own_memory()),
        narrow(model.narrow),
        rows(tokens * (routes ? config.experts_per_token : 1)),
        inner(rows * of_layer.intermediate_size) {
    const bool libraries = plan.device == GRAFT_CUDA && narrow && Flash::takes(config);
    if (libraries) flash_bytes = flash_extent(model, plan).workspace_bytes(plan.deterministic);
    const bool resident = plan.layers[index].resident;
    extents.attention.add(plan, layer.qkv, resident, narrow);
    extents.attention.add(plan, {&layer.o, 1}, resident, narrow);
    if (layer.router) extents.mlp.add(plan, {&*layer.router, 1}, resident, narrow);
    for (const Mlp& mlp : layer.mlps) {
      extents.mlp.add(plan, mlp.in, resident, narrow);
      extents.mlp.add(plan, {&mlp.down, 1}, resident, narrow);
    }
  }

  const ModelConfig& config;
  const LayerConfig& of_layer;
  const Layer& layer;
  int64_t tokens;
  bool routes;
  bool own_memory;
  bool narrow;
  int64_t rows;             // R
  int64_t inner;            // R F
  int64_t flash_bytes = 0;  // of a library's attention
  Extents extents;

  int64_t hidden() const { return tokens * config.hidden_size; }
  // What an input linear keeps of a sorted row: the most of all experts'.
  int64_t kept_in(size_t linear) const {
    int64_t width = 0;
    for (const Mlp& mlp : layer.mlps) width = std::max(width, mlp.in[linear].kept_width());
    return width;
  }
  int64_t kept_down() const {
    int64_t width = 0;
    for (const Mlp& mlp : layer.mlps) width = std::max(width, mlp.down.kept_width());
    return width;
  }
};

HalfState make_half(const LayerShape& shape, Buffers& buffers) {
  HalfState half;
  half.inv_rms = buffers.f32(shape.tokens);
  if (shape.config.placement != Placement::kPre) {
    half.branch = buffers.f32(shape.hidden());
    half.branch_inv_rms = buffers.f32(shape.tokens);
  }
  return half;
}

void make_narrow_attention(const LayerShape& shape, NarrowAttention& own, Buffers& buffers) {
  const int64_t tokens = shape.tokens;
  const GroupShape qkv = shape_of(shape.layer.qkv), o = shape_of({&shape.layer.o, 1});
  own.x = buffers.make<uint16_t>(tokens * qkv.stride());
  own.qkv = buffers.make<uint16_t>(tokens * qkv.wide());
  own.attended = buffers.make<uint16_t>(tokens * o.stride());
}

void make_attention_state(const LayerShape& shape, AttentionState& state, Buffers& buffers) {
  const ModelConfig& config = shape.config;
  const int64_t tokens = shape.tokens;
  state.half = make_half(shape, buffers);
  if (config.qk_norm != QkNorm::kNone) {
    const bool whole = config.qk_norm == QkNorm::kFull;
    state.q_inv_rms = buffers.f32(tokens * (whole ? 1 : config.heads));
    state.k_inv_rms = buffers.f32(tokens * (whole ? 1 : config.kv_heads));
  }
  state.lse = buffers.f32(tokens * config.heads);
  if (shape.narrow) {
    make_narrow_attention(shape, state.narrow, buffers);
    return;
  }
  state.q = buffers.f32(tokens * config.q_width());
  state.k = buffers.f32(tokens * config.kv_width());
  state.v = buffers.f32(tokens * config.kv_width());
  state.attended = buffers.f32(tokens * config.q_width());
  state.kept_qkv.clear();
  for (const Linear& linear : shape.layer.qkv) {
    state.kept_qkv.push_back(buffers.f32(tokens * linear.kept_width()));
  }
  state.kept_o = buffers.f32(tokens * shape.layer.o.kept_width());
}

// Of an MlpState, what is kept with everything but gate and up.
void make_routing(const LayerShape& shape, MlpState& state, Buffers& buffers) {
  state.half = make_half(shape, buffers);
  if (!shape.routes) return;
  const int64_t pairs = shape.tokens * shape.config.experts_per_token;
  state.kept_router = buffers.f32(shape.tokens * shape.layer.router->kept_width());
  state.probabilities = buffers.f32(shape.tokens * shape.of_layer.experts);
  state.weight = buffers.f32(pairs);
  state.expert = buffers.make<int32_t>(pairs);
  state.offsets = buffers.make<int32_t>(shape.of_layer.experts + 1);
  state.row_pair = buffers.make<int32_t>(pairs);
  state.pair_row = buffers.make<int32_t>(pairs);
  state.token_index = buffers.make<int64_t>(pairs);
  SortedRows& sorted = state.sorted;
  if (!shape.own_memory) {
    sorted = {state.offsets, state.row_pair, state.token_index, buffers.make<int32_t>(pairs)};
  }
}

// Of a device with memory of its own; in a region on the host.
void make_sorted_rows(const LayerShape& shape, SortedRows& sorted, Buffers& buffers) {
  const int64_t pairs = shape.rows;
  sorted.offsets = buffers.make<int32_t>(shape.of_layer.experts + 1);
  sorted.row_pair = buffers.make<int32_t>(pairs);
  sorted.token_index = buffers.make<int64_t>(pairs);
  sorted.row = buffers.make<int32_t>(pairs);
}

void make_inner(const LayerShape& shape, MlpState& state, Buffers& buffers) {
  if (shape.narrow) {
    const Mlp& mlp = shape.layer.mlps[0];
    const int64_t tokens = shape.tokens;
    const GroupShape in = shape_of(mlp.in), down = shape_of({&mlp.down, 1});
    NarrowMlp& own = state.narrow;
    own.x = buffers.make<uint16_t>(tokens * in.stride());
    own.inner = buffers.make<uint16_t>(tokens * in.wide());
    own.product = buffers.make<uint16_t>(tokens * down.stride());
    return;
  }
  state.gate = buffers.f32(shape.inner);
  state.up = buffers.f32(shape.inner);
  state.kept_in.clear();
  for (size_t i = 0; i < shape.layer.mlps[0].in.size(); ++i) {
    state.kept_in.push_back(buffers.f32(shape.rows * shape.kept_in(i)));
  }
}

// What linears of a half use, forward or backward; `last` gives what joins the residual stream.
void make_linear_scratch(const LayerShape& shape,
                         const Extent& extent,
                         const Linear& last,
                         bool backward,
                         Scratch& scratch,
                         Buffers& buffers) {
  scratch.decoded = buffers.make<std::byte>(extent.decoded);
  if (!shape.narrow || shape.config.placement != Placement::kPre) {
    scratch.normed = buffers.f32(shape.hidden());
  }
  if (shape.narrow) {
    if (!backward) return;
    scratch.narrow.dy = buffers.make<uint16_t>(shape.tokens * shape_of({&last, 1}).wide());
    return;
  }
  const int64_t rounded = std::max(extent.rounded_in, backward ? extent.rounded_part : 0);
  scratch.rounded = buffers.make<uint16_t>(shape.rows * rounded);
  if (extent.dropout) {
    scratch.dropped = buffers.f32(shape.rows * extent.in);
    scratch.rounded_dropped = buffers.make<uint16_t>(shape.rows * extent.rounded_dora);
  }
  if (backward) {
    scratch.low_rank = buffers.f32(shape.rows * extent.rank);
    scratch.dora = buffers.f32(shape.rows * extent.dora);
  }
}

void make_half_gradients(const LayerShape& shape, Scratch& scratch, Buffers& buffers) {
  scratch.d_normed = buffers.f32(shape.hidden());
  if (shape.config.residual_scale != 1) scratch.d_branch = buffers.f32(shape.hidden());
  if (shape.config.placement != Placement::kPre) scratch.d_unnormed = buffers.f32(shape.hidden());
}

Scratch make_attention_scratch(const LayerShape& shape, bool backward, Buffers& buffers) {
  const ModelConfig& config = shape.config;
  const int64_t q = shape.tokens * config.q_width(), k = shape.tokens * config.kv_width();
  Scratch scratch;
  make_linear_scratch(shape, shape.extents.attention, shape.layer.o, backward, scratch, buffers);
  const bool norms = config.qk_norm != QkNorm::kNone;
  NarrowScratch& narrow = scratch.narrow;
  if (norms && shape.narrow) {
    narrow.q = buffers.make<uint16_t>(q);
    narrow.k = buffers.make<uint16_t>(k);
  } else if (norms) {
    scratch.q = buffers.f32(q);
    scratch.k = buffers.f32(k);
  }
  if (!backward) return scratch;
  make_half_gradients(shape, scratch, buffers);
  const int64_t room = shape.narrow ? shape.layer.o.lora.rank : 0;
  if (shape.narrow) {
    narrow.d_qkv = buffers.make<uint16_t>(shape.tokens * shape_of(shape.layer.qkv).wide());
    if (norms) {
      narrow.d_q = buffers.make<uint16_t>(q);
      narrow.d_k = buffers.make<uint16_t>(k);
      narrow.d_q_unnormed = buffers.make<uint16_t>(q);
      narrow.d_k_unnormed = buffers.make<uint16_t>(k);
    }
    narrow.d_attended = buffers.make<uint16_t>(q + shape.tokens * room);
  } else {
    scratch.d_q = buffers.f32(q);
    scratch.d_k = buffers.f32(k);
    scratch.d_v = buffers.f32(k);
    if (norms) {
      scratch.d_q_unnormed = buffers.f32(q);
      scratch.d_k_unnormed = buffers.f32(k);
    }
    scratch.d_attended = buffers.f32(q);
  }
  // One document of all tokens: on every device the workspace depends on the tokens only.
  const int32_t ends[2] = {0, static_cast<int32_t>(shape.tokens)};
  graft_attention_shape attention{};
  attention.documents = 1;
  attention.cu_seqlens = ends;
  attention.heads = config.heads;
  attention.kv_heads = config.kv_heads;
  attention.head_dim = config.head_dim;
  attention.q_stride = config.q_width();
  attention.out_stride = config.q_width() + room;
  attention.k_stride = attention.v_stride = config.kv_width();
  attention.scale = config.attention_scale;
  attention.tokens = shape.tokens;
  attention.type = shape.narrow ? GRAFT_BF16 : GRAFT_F32;
  scratch.attention_workspace_bytes =
      static_cast<int64_t>(std::max(graft_attention_workspace_bytes(&attention, GRAFT_CPU),
                                    graft_attention_workspace_bytes(&attention, GRAFT_EMU)));
  scratch.attention_workspace_bytes =
      std::max(scratch.attention_workspace_bytes, shape.flash_bytes);
  scratch.attention_workspace = buffers.make<std::byte>(scratch.attention_workspace_bytes);
  return scratch;
}

Scratch make_mlp_scratch(const LayerShape& shape, bool backward, Buffers& buffers) {
  Scratch scratch;
  make_linear_scratch(shape, shape.extents.mlp, shape.layer.mlps[0].down, backward, scratch,
                      buffers);
  if (shape.narrow) {
    if (!backward) return scratch;
    make_half_gradients(shape, scratch, buffers);
    scratch.narrow.d_product = buffers.make<uint16_t>(shape.inner);
    return scratch;
  }
  scratch.product = buffers.f32(shape.inner);
  if (shape.routes) {
    scratch.rows = buffers.f32(shape.rows * shape.config.hidden_size);
    scratch.out_rows = buffers.f32(shape.rows * shape.config.hidden_size);
    scratch.logits = buffers.f32(shape.tokens * shape.of_layer.experts);
  }
  if (!backward) return scratch;
  make_half_gradients(shape, scratch, buffers);
  scratch.d_product = buffers.f32(shape.inner);
  if (shape.routes) {
    scratch.weighed = buffers.f32(shape.inner);
    scratch.d_weight = buffers.f32(shape.tokens * shape.config.experts_per_token);
  }
  return scratch;
}

HeadBuffers make_head(const Model& model, const StepPlan& plan, Buffers& buffers) {
  const int64_t chunk = plan.head_chunk;
  const int64_t hidden = chunk * model.config.hidden_size, vocab = chunk * model.config.vocab_size;
  HeadBuffers head;
  head.rows = buffers.f32(hidden);
  head.normed = buffers.f32(hidden);
  head.inv_rms = buffers.f32(chunk);
  head.logits = buffers.f32(vocab);
  if (model.head_operands == GRAFT_BF16) {
    const bool backward = plan.keep == Keep::kForBackward;
    head.rounded = buffers.make<uint16_t>(backward ? std::max(hidden, vocab) : hidden);
  }
  if (plan.keep == Keep::kForBackward) head.d_rows = buffers.f32(hidden);
  head.loss = buffers.f32(plan.tokens);
  head.correct = buffers.make<uint8_t>(plan.tokens);
  return head;
}

// A block's buffers forward and backward, by what it keeps.
class BlockMaker {
 public:
  BlockMaker(const Model& model, const StepPlan& plan, size_t index, Buffers& buffers)
      : shape_(model, plan, index),
        time_(plan),
        index_(index),
        memory_(plan.layers[index].memory),
        drops_input_(plan.drops_input(index)),
        runs_again_(plan.runs_again(index)),
        goes_back_(plan.keep == Keep::kForBackward && index >= plan.lowest),
        buffers_(buffers) {}

  void make(StepBuffers& step) {
    BlockBuffers& forward = step.forward[index_];
    BlockBuffers& backward = step.backward[index_];
    const bool keeps_block = memory_ == LayerMemory::kKeep || memory_ == LayerMemory::kRecomputeMlp;
    const bool keeps_inner = memory_ == LayerMemory::kKeep;
    const bool offloads = memory_ == LayerMemory::kOffloadInput;
    const int in = time_.forward_attention(index_), out = time_.forward_mlp(index_);
    const int begin = time_.backward_begin(index_), mlp = time_.backward_mlp(index_);
    const int end = time_.backward_attention(index_);

    // The block before writes the input.
    region("input", std::max(in - 1, 0), in, end, !offloads && !drops_input_);
    forward.input = buffers_.f32(shape_.hidden());
    region("middle", in, out, mlp, keeps_block);
    forward.middle = buffers_.f32(shape_.hidden());
    region("attention", in, in, end, keeps_block);
    make_attention_state(shape_, forward.attention, buffers_);
    region("MLP's norms and routing", out, out, mlp, keeps_block);
    make_routing(shape_, forward.mlp, buffers_);
    if (shape_.routes && shape_.own_memory) {
      const int last = keeps_block && goes_back_ ? mlp : out;
      buffers_.region(name("routing on the host"), out, last, Place::kHost);
      make_sorted_rows(shape_, forward.mlp.sorted, buffers_);
    }
    region("what down keeps", out, out, mlp, true);
    if (shape_.narrow) {
      // Where its input is kept it lies there; where its output is normed down runs again.
      const bool apart = goes_back_ && !keeps_inner && shape_.config.placement == Placement::kPre;
      forward.mlp.narrow.u_down =
          buffers_.make<uint16_t>(apart ? shape_.tokens * shape_.kept_down() : 0);
    } else {
      forward.mlp.kept_down = buffers_.f32(shape_.rows * shape_.kept_down());
    }
    region("gate and up", out, out, mlp, keeps_inner);
    make_inner(shape_, forward.mlp, buffers_);
    buffers_.region(name("attention's scratch"), in, in);
    forward.attention_scratch = make_attention_scratch(shape_, false, buffers_);
    buffers_.region(name("MLP's scratch"), out, out);
    forward.mlp_scratch = make_mlp_scratch(shape_, false, buffers_);
    if (!goes_back_) return;

    backward = forward;
    if (offloads) {
      const int needed = runs_again_ ? time_.again_attention(index_) : begin;
      buffers_.region(name("input on the host"), in, needed, Place::kHost);
      step.host_input[index_] = buffers_.f32(shape_.hidden());
      buffers_.region(name("input from the host"), needed, end);
      backward.input = buffers_.f32(shape_.hidden());
    }
    if (drops_input_) {
      buffers_.region(name("input again"), input_again(), end);
      backward.input = buffers_.f32(shape_.hidden());
    }
    if (runs_again_) make_forward_again(step.forward_again[index_], forward);
    if (!keeps_block) {
      buffers_.region(name("middle again"), begin, mlp);
      backward.middle = buffers_.f32(shape_.hidden());
      buffers_.region(name("attention again"), begin, end);
      make_attention_state(shape_, backward.attention, buffers_);
      buffers_.region(name("attention's scratch again"), begin, begin);
      step.again[index_] = make_attention_scratch(shape_, false, buffers_);
      buffers_.region(name("MLP's norms and routing again"), mlp, mlp);
      make_routing(shape_, backward.mlp, buffers_);
      if (shape_.routes && shape_.own_memory) {
        buffers_.region(name("routing on the host again"), mlp, mlp, Place::kHost);
        make_sorted_rows(shape_, backward.mlp.sorted, buffers_);
      }
    }
    if (!keeps_inner) {
      buffers_.region(name("gate and up again"), mlp, mlp);
      make_inner(shape_, backward.mlp, buffers_);
    }
    buffers_.region(name("MLP's gradients"), mlp, mlp);
    backward.mlp_scratch = make_mlp_scratch(shape_, true, buffers_);
    buffers_.region(name("attention's gradients"), end, end);
    backward.attention_scratch = make_attention_scratch(shape_, true, buffers_);
  }

 private:
  // The phase that makes a dropped input again.
  int input_again() const {
    if (index_ > 0) return time_.again_mlp(index_ - 1);
    return runs_again_ ? time_.again_attention(0) : time_.backward_begin(0);
  }
  // Nothing of it lasts but its output, the next block's input.
  void make_forward_again(BlockBuffers& block, const BlockBuffers& forward) {
    const int in = time_.again_attention(index_), out = time_.again_mlp(index_);
    // What `down` keeps is kept, and will be the same.
    block.mlp.kept_down = forward.mlp.kept_down;
    block.mlp.narrow.u_down = forward.mlp.narrow.u_down;
    buffers_.region(name("middle, forward again"), in, out);
    block.middle = buffers_.f32(shape_.hidden());
    buffers_.region(name("attention, forward again"), in, in);
    make_attention_state(shape_, block.attention, buffers_);
    buffers_.region(name("attention's scratch, forward again"), in, in);
    block.attention_scratch = make_attention_scratch(shape_, false, buffers_);
    buffers_.region(name("MLP, forward again"), out, out);
    make_routing(shape_, block.mlp, buffers_);
    make_inner(shape_, block.mlp, buffers_);
    if (shape_.routes && shape_.own_memory) {
      buffers_.region(name("routing on the host, forward again"), out, out, Place::kHost);
      make_sorted_rows(shape_, block.mlp.sorted, buffers_);
    }
    buffers_.region(name("MLP's scratch, forward again"), out, out);
    block.mlp_scratch = make_mlp_scratch(shape_, false, buffers_);
  }

  std::string name(const char* what) const {
    return "block " + std::to_string(index_) + ", " + what;
  }
  // In use from `first` until `last`, or, when it is kept for the backward pass, until `back`.
  void region(const char* what, int first, int last, int back, bool keeps) {
    buffers_.region(name(what), first, keeps && goes_back_ ? back : last);
  }

  LayerShape shape_;
  Timeline time_;
  size_t index_;
  LayerMemory memory_;
  bool drops_input_;
  bool runs_again_;
  bool goes_back_;
  Buffers& buffers_;
};

// All the time.
BatchBuffers make_batch(const StepPlan& plan, Buffers& buffers) {
  BatchBuffers batch;
  if (!plan.own_memory()) return batch;
  buffers.region("batch", 0, Timeline(plan).end());
  batch.ids = buffers.make<int32_t>(plan.tokens);
  batch.cu_seqlens = buffers.make<int32_t>(plan.tokens + 1);
  batch.token_index = buffers.make<int64_t>(plan.tokens);
  batch.predicting = buffers.make<int32_t>(plan.tokens);
  batch.labels = buffers.make<int32_t>(plan.tokens);
  batch.weights = buffers.f32(plan.tokens);
  return batch;
}

Rotation make_rotation(const Model& model, const StepPlan& plan, Buffers& buffers) {
  buffers.region("rotations", 0, Timeline(plan).end());
  return Rotation(model.config, plan.tokens, buffers);
}

// In one phase.
EmbeddingBuffers make_embedding(const Model& model,
                                const StepPlan& plan,
                                int phase,
                                Buffers& buffers) {
  EmbeddingBuffers rows;
  const int64_t values = plan.tokens * model.config.hidden_size;
  if (plan.embeds_on_host && plan.own_memory()) {
    buffers.region("embeddings on the host", phase, phase, Place::kHost);
    rows.host_rows = buffers.make<std::byte>(values * size_of(model.embedding_type));
  }
  if (model.embedding_type == GRAFT_BF16) {
    buffers.region("embeddings in bfloat16", phase, phase);
    rows.half_rows = buffers.make<uint16_t>(values);
  }
  return rows;
}

}  // namespace

FlashExtent flash_extent(const Model& model, const StepPlan& plan) {
  const ModelConfig& config = model.config;
  FlashExtent extent;
  extent.tokens = plan.tokens;
  extent.longest = plan.longest > 0 ? std::min(plan.longest, plan.tokens) : plan.tokens;
  extent.heads = config.heads;
  extent.kv_heads = config.kv_heads;
  extent.head_dim = config.head_dim;
  for (const Layer& layer : model.layers) {
    extent.q_stride = std::max(extent.q_stride, shape_of(layer.qkv).wide());
  }
  return extent;
}

StepBuffers::StepBuffers(const Model& model, const StepPlan& plan, Buffers& buffers)
    : batch(make_batch(plan, buffers)),
      rotation(make_rotation(model, plan, buffers)),
      embedding(make_embedding(model, plan, 0, buffers)),
      forward(model.layers.size()),
      forward_again(model.layers.size()),
      backward(model.layers.size()),
      again(model.layers.size()),
      host_input(model.layers.size()) {
  const Timeline time(plan);
  if (!plan.layers.empty() && plan.drops_input(0)) {
    const int phase = plan.runs_again(0) ? time.again_attention(0) : time.backward_begin(0);
    embedding_again = make_embedding(model, plan, phase, buffers);
  }
  for (size_t index = 0; index < model.layers.size(); ++index) {
    BlockMaker(model, plan, index, buffers).make(*this);
  }
  const int64_t hidden = plan.tokens * model.config.hidden_size;
  buffers.region("residual stream", time.head() - 1, time.head());
  residual = buffers.f32(hidden);
  buffers.region("head", time.head(), time.head());
  head = make_head(model, plan, buffers);
  if (plan.keep == Keep::kForBackward) {
    buffers.region("gradient of the residual stream", time.head(), time.end());
    d_residual = buffers.f32(hidden);
  }
}

}  // namespace graft::train
