#include "train/engine/planner.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "train/engine/head.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"

namespace graft::train {
namespace {

constexpr int64_t kFloat = sizeof(float);

// What the choices weigh, by device.
struct Costs {
  // A resident weight is read where one in 4 bits is decoded first: that costs as much as so many
  // multiply-adds of a product for each weight.
  double decode_flops;
  // The products of a micro-batch with fewer tokens take as long as with so many.
  double full_rate;
  // Head chunks in the order of preference: the product runs at its full rate from the first on.
  std::array<int64_t, 5> head_chunks;  // 0 = there is none after it
};
// Measured on two cores of a Zen 3; packing the head's weights costs 512 rows a twentieth.
constexpr Costs kProcessor = {20, 256, {512, 256, 128, 64}};
// Of an H200's 4.3 TB/s for 2.5 bytes a weight and 770 TFLOP/s; its products of fewer rows do not
// fill it.
constexpr Costs kGpu = {225, 4096, {2048, 1024, 512, 256, 128}};

const Costs& costs_of(graft_device device) {
  return device == GRAFT_CUDA ? kGpu : kProcessor;
}

// Weights stay decoded only where that saves at least this share of a step: they cost eight times
// the memory.
constexpr double kWorthwhile = 0.02;

// As train/model/weights.cpp quantizes: blocks of 64, nested absmax.
int64_t quantized_bytes(int64_t count) {
  const int64_t blocks = graft_nf4_block_count(count, 64);
  const int64_t nested = graft_nf4_block_count(blocks, GRAFT_NF4_NESTED_BLOCK);
  return graft_nf4_packed_bytes(count) + blocks + nested * kFloat;
}

int64_t weight_bytes(const Model& model, const StepPlan& plan) {
  int64_t bytes = 0;
  std::set<const Linear*> extended;
  for (const Layer& layer : model.layers) {
    for (const LinearGroup group : layer.groups()) {
      if (!model.narrow || in_4_bits(plan, group)) continue;
      bytes += 2 * extended_count(group);
      for (const Linear& linear : group) extended.insert(&linear);
    }
  }
  // Only names, shapes and what is there are read.
  for (const BaseTensor& tensor : base_tensors(const_cast<Model&>(model))) {
    if (tensor.linear != nullptr && tensor.linear->base.quantized()) {
      bytes += tensor.linear->base.bytes();
    } else if (tensor.linear != nullptr && in_4_bits(plan, *tensor.linear)) {
      bytes += quantized_bytes(tensor.count());
    } else if (extended.count(tensor.linear) == 0) {
      bytes += tensor.bytes();
    }
  }
  return bytes;
}

int64_t embedding_bytes(const Model& model) {
  return model.config.vocab_size * model.config.hidden_size * size_of(model.embedding_type);
}

// Pairs, with DoRA magnitudes and what belongs to them, and the rows of added tokens.
int64_t adapter_bytes(const Model& model) {
  size_t bytes = 0;
  for (const TableRows* rows : {&model.embedding_rows, &model.head_rows}) {
    bytes += rows->value.defined() ? rows->value.nbytes() : 0;
  }
  for (const Linear* linear : model.linears()) {
    const Lora& lora = linear->lora;
    for (const at::Tensor* tensor :
         {&lora.a, &lora.b, &lora.magnitude, &lora.base_squares, &lora.gain, &lora.inverse_norm,
          &lora.initial_a, &lora.initial_b}) {
      bytes += tensor->defined() ? tensor->nbytes() : 0;
    }
  }
  return static_cast<int64_t>(bytes);
}

int64_t base_count(const Model& model) {
  return model.parameter_count();
}

int64_t moments_of(const Model& model, const PlanRequest& request) {
  int64_t bytes = 0;
  if (request.trains_everything) {
    for (const BaseTensor& tensor : base_tensors(const_cast<Model&>(model))) {
      bytes += moment_bytes(request.moments, tensor.count());
    }
  } else {
    for (const Parameter& parameter : model.trained) {
      bytes += moment_bytes(request.moments, parameter.value.numel());
    }
  }
  return bytes;
}

// Products of a linear of `rows` rows, without the adapter's gradients' share of A and B.
struct LinearFlops {
  double forward = 0, backward = 0;
};

LinearFlops flops_of(const Linear& linear, double rows, bool trains_base) {
  const double base = 2 * rows * static_cast<double>(linear.in) * static_cast<double>(linear.out);
  const double adapter = 2 * rows * static_cast<double>(linear.lora.rank) *
                         static_cast<double>(linear.in + linear.out);
  return {base + adapter, base * (trains_base ? 2 : 1) + 2 * adapter};
}

// Forward operations of the parts of one block, and backward ones of all of it.
struct BlockFlops {
  double attention = 0;  // q, k, v, o and the attention itself
  double inner = 0;      // router, gate, up
  double down = 0;
  double backward = 0;
  double forward() const { return attention + inner + down; }
};

BlockFlops block_flops(const Model& model, const PlanRequest& request, size_t index) {
  const Layer& layer = model.layers[index];
  const LayerConfig& config = model.config.layers[index];
  const auto tokens = static_cast<double>(request.rows * request.sequence_len);
  BlockFlops flops;
  const auto add = [&](const Linear& linear, double rows, double& part) {
    const LinearFlops of = flops_of(linear, rows, request.trains_everything);
    part += of.forward;
    flops.backward += of.backward;
  };
  for (const Linear& linear : layer.qkv) add(linear, tokens, flops.attention);
  add(layer.o, tokens, flops.attention);
  if (layer.router) add(*layer.router, tokens, flops.inner);
  // The experts share a token's choices evenly, on average.
  const double share = config.experts > 0 ? static_cast<double>(model.config.experts_per_token) /
                                                static_cast<double>(config.experts)
                                          : 1;
  for (const Mlp& mlp : layer.mlps) {
    for (const Linear& linear : mlp.in) add(linear, tokens * share, flops.inner);
    add(mlp.down, tokens * share, flops.down);
  }
  // Rows of one document: half of the square is seen, or a window of it. Forward two products,
  // backward five.
  const auto length = static_cast<double>(request.sequence_len);
  const double seen = config.window > 0 && static_cast<double>(config.window) < length
                          ? static_cast<double>(config.window)
                          : length / 2;
  const double product = 2 * tokens * seen * static_cast<double>(model.config.q_width());
  flops.attention += 2 * product;
  flops.backward += 5 * product;
  return flops;
}

// What a choice for a block computes a second time.
double flops_again(const Model& model, const BlockFlops& flops, LayerMemory memory) {
  if (memory == LayerMemory::kKeep) return 0;
  const double down = model.config.placement != Placement::kPre ? flops.down : 0;
  const double mlp = flops.inner + down;
  return memory == LayerMemory::kRecomputeMlp ? mlp : flops.attention + mlp;
}

StepFlops step_flops(const Model& model, const PlanRequest& request, const StepPlan& plan) {
  StepFlops flops;
  for (size_t index = 0; index < model.layers.size(); ++index) {
    const BlockFlops block = block_flops(model, request, index);
    flops.forward += block.forward();
    if (index < plan.lowest) continue;
    flops.backward += block.backward;
    flops.again += flops_again(model, block, plan.layers[index].memory);
    if (plan.runs_again(index)) flops.again += block.forward();
  }
  const double head = 2 * static_cast<double>(plan.tokens) *
                      static_cast<double>(model.config.vocab_size) *
                      static_cast<double>(model.config.hidden_size);
  flops.forward += head;
  flops.backward += head * (request.trains_everything ? 2 : 1);
  return flops;
}

// Bytes that all blocks keep until the backward pass when each makes this choice.
int64_t kept_bytes(const Model& model, StepPlan plan, LayerMemory memory) {
  for (LayerPlan& layer : plan.layers) layer.memory = memory;
  const Layout layout = plan_layout(model, plan);
  return layout.live(Timeline(plan).head(), Place::kDevice);
}

using Layers = std::vector<LayerMemory>;

Layers memory_of(const StepPlan& plan) {
  Layers layers;
  for (const LayerPlan& layer : plan.layers) layers.push_back(layer.memory);
  return layers;
}

// `layers`, with the fewest inputs dropped so that at most `most` blocks have theirs at a time, be
// it kept or made again; the last block keeps its own. Empty when that cannot be.
//
// While a run of blocks goes backward, those below it have kept theirs, and the run has all of its
// own: with the g-th block that keeps its input come at most `most` - g that drop it. So m inputs
// at a time are enough for m (m + 1) / 2 blocks.
Layers drop_inputs(Layers layers, size_t lowest, size_t most) {
  size_t to_drop = layers.size() - lowest - most, kept = 0, index = lowest;
  const auto drop = [&](size_t run) {
    for (; run > 0 && to_drop > 0 && index + 1 < layers.size(); --run, --to_drop) {
      layers[index++] = LayerMemory::kRecomputeInput;
    }
  };
  if (lowest == 0) drop(most);  // from the embedding
  for (; index < layers.size() && kept < most; drop(most - kept)) {
    ++index;
    ++kept;
  }
  return to_drop == 0 && index == layers.size() ? layers : Layers();
}

// From keeping everything to keeping the least that needs no other memory: each lets one block keep
// less, cheaper bytes first, lower blocks first, as what they keep is held longest; then one more
// block drop its input.
std::vector<Layers> savings(const Model& model, const PlanRequest& request, const StepPlan& plan) {
  double mlp = 0, block = 0;
  for (size_t index = plan.lowest; index < model.layers.size(); ++index) {
    const BlockFlops flops = block_flops(model, request, index);
    mlp += flops_again(model, flops, LayerMemory::kRecomputeMlp);
    block += flops_again(model, flops, LayerMemory::kRecomputeBlock);
  }
  const auto keep = static_cast<double>(kept_bytes(model, plan, LayerMemory::kKeep));
  const auto with_mlp = static_cast<double>(kept_bytes(model, plan, LayerMemory::kRecomputeMlp));
  const auto with_block =
      static_cast<double>(kept_bytes(model, plan, LayerMemory::kRecomputeBlock));
  std::vector<LayerMemory> order = {LayerMemory::kRecomputeBlock};
  if (mlp * (keep - with_block) < block * (keep - with_mlp)) {
    order.insert(order.begin(), LayerMemory::kRecomputeMlp);
  }
  std::vector<Layers> steps = {memory_of(plan)};
  for (const LayerMemory memory : order) {
    // The last block goes backward first: what it does not keep it needs again at once, while all
    // others hold what they keep.
    const size_t end = model.layers.size() - (memory == LayerMemory::kRecomputeBlock ? 1 : 0);
    for (size_t index = plan.lowest; index < end; ++index) {
      steps.push_back(steps.back());
      steps.back()[index] = memory;
    }
  }
  const Layers all = steps.back();
  for (size_t most = all.size() - plan.lowest; most-- > 1;) {
    Layers layers = drop_inputs(all, plan.lowest, most);
    if (layers.empty()) break;
    steps.push_back(std::move(layers));
  }
  return steps;
}

// Going on where the host has other memory: inputs go there, as many as leave fewer on the device
// than the above. Nothing more is computed, but the copies take time.
std::vector<Layers> offloads(const StepPlan& plan, const std::vector<Layers>& before) {
  Layers layers = before.back();
  const auto drops =
      static_cast<size_t>(std::count(layers.begin(), layers.end(), LayerMemory::kRecomputeInput));
  std::replace(layers.begin(), layers.end(), LayerMemory::kRecomputeInput,
               LayerMemory::kRecomputeBlock);
  std::vector<Layers> steps;
  for (size_t index = plan.lowest; index + 1 < layers.size(); ++index) {
    layers[index] = LayerMemory::kOffloadInput;
    if (index - plan.lowest >= drops) steps.push_back(layers);
  }
  return steps;
}

// One kind of saving: steps of which each needs less memory, and more time.
struct Stage {
  std::vector<Layers> steps;
  bool embeds_on_host = false;
};

// The fastest first. What needs the host's memory comes last: a run on the device alone does not
// depend on how fast the host is.
std::vector<Stage> stages_of(const Model& model, const PlanRequest& request, const StepPlan& plan) {
  std::vector<Stage> stages = {{savings(model, request, plan)}};
  if (!plan.own_memory()) return stages;
  const bool may_move = model.can_embed_on_host() && !request.trains_everything;
  if (may_move) stages.push_back({stages[0].steps, true});
  stages.push_back({offloads(plan, stages[0].steps), may_move});
  return stages;
}

StepPlan first_plan(const Model& model, const PlanRequest& request) {
  StepPlan plan = StepPlan::of(model, request.rows * request.sequence_len, Keep::kForBackward);
  plan.longest = request.sequence_len;
  plan.device = request.device;
  plan.deterministic = request.deterministic;
  plan.quantizes = request.quantizes;
  if (request.trains_everything) {
    plan.lowest = 0;
    plan.trains_head = true;
  }
  return plan;
}

// A plan, and how far down the stages it is.
struct Choice {
  MemoryPlan plan;
  size_t stage = 0;
  size_t step = 0;

  bool better_than(const Choice& other) const {
    if (plan.fits != other.plan.fits) return plan.fits;
    if (!plan.fits) return plan.on_device() < other.plan.on_device();
    return std::pair(stage, step) < std::pair(other.stage, other.step);
  }
};

// The fewest steps of a stage that fit; all of them when nothing does.
Choice fit_steps(const Model& model,
                 const PlanRequest& request,
                 const StepPlan& first,
                 const Stage& stage) {
  const auto with = [&](size_t step) {
    StepPlan plan = first;
    plan.embeds_on_host = stage.embeds_on_host;
    for (size_t i = 0; i < plan.layers.size(); ++i) plan.layers[i].memory = stage.steps[step][i];
    return Choice{price_plan(model, request, plan), 0, step};
  };
  Choice best = with(0);
  if (best.plan.fits) return best;
  best = with(stage.steps.size() - 1);
  if (!best.plan.fits) return best;
  size_t low = 1, high = stage.steps.size() - 1;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    Choice choice = with(middle);
    if (choice.plan.fits) {
      best = std::move(choice);
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return best;
}

// Of the first stage that has one that fits; the smallest of all when none has.
Choice fit_stages(const Model& model,
                  const PlanRequest& request,
                  const StepPlan& first,
                  const std::vector<Stage>& stages) {
  Choice best;
  for (size_t stage = 0; stage < stages.size() && (stage == 0 || !best.plan.fits); ++stage) {
    if (stages[stage].steps.empty()) continue;
    Choice choice = fit_steps(model, request, first, stages[stage]);
    choice.stage = stage;
    if (stage == 0 || choice.better_than(best)) best = std::move(choice);
  }
  return best;
}

// Decoding the weights of one micro-batch, forward and backward, takes as long as so many
// operations of its products.
double decode_flops(const Model& model, const StepPlan& plan) {
  double weights = 0;
  for (const Layer& layer : model.layers) {
    if (plan.layers[static_cast<size_t>(&layer - model.layers.data())].resident) continue;
    for (const Linear* linear : layer.linears()) {
      if (!in_4_bits(plan, *linear)) continue;
      weights += static_cast<double>(linear->in) * static_cast<double>(linear->out);
    }
  }
  return 2 * costs_of(plan.device).decode_flops * weights;
}

// Lets weights stay decoded where it is worth it, as many blocks as fit.
MemoryPlan keep_decoded(const Model& model, const PlanRequest& request, MemoryPlan plan) {
  const double saved = decode_flops(model, plan.training);
  if (request.cap == 0 || saved < kWorthwhile * plan.flops.total()) return plan;
  for (LayerPlan& layer : plan.training.layers) {
    StepPlan next = plan.training;
    next.layers[static_cast<size_t>(&layer - plan.training.layers.data())].resident = true;
    MemoryPlan priced = price_plan(model, request, next);
    if (!priced.fits) break;
    layer.resident = true;
  }
  return price_plan(model, request, plan.training);
}

}  // namespace

MemoryPlan price_plan(const Model& model, const PlanRequest& request, const StepPlan& training) {
  MemoryPlan plan;
  plan.training = training;
  plan.evaluation = training;
  plan.evaluation.keep = Keep::kNothing;
  for (LayerPlan& layer : plan.evaluation.layers) layer.memory = LayerMemory::kKeep;
  const Layout layouts[] = {plan_layout(model, plan.training), plan_layout(model, plan.evaluation)};
  plan.device_bytes = std::max(layouts[0].bytes[0], layouts[1].bytes[0]);
  plan.host_bytes = std::max(layouts[0].bytes[1], layouts[1].bytes[1]);
  plan.weights = weight_bytes(model, training);
  for (size_t index = 0; index < model.layers.size(); ++index) {
    if (training.layers[index].resident) {
      plan.decoded += decoded_bytes(model, training, model.layers[index]);
    }
  }
  const int64_t values = request.trains_everything ? base_count(model) : model.trained_count();
  plan.trained = adapter_bytes(model);
  plan.gradients = values * kFloat;
  const bool trains_embedding = request.trains_everything || model.embedding_grad.defined();
  if (trains_embedding && model.config.tied_embeddings) {
    plan.gradients += model.config.vocab_size * model.config.hidden_size * kFloat;
  }
  if (model.embedding_rows.grad.defined() && model.config.tied_embeddings) {
    plan.gradients += static_cast<int64_t>(model.head_rows.grad.nbytes());
  }
  plan.moments = moments_of(model, request);
  if (training.own_memory()) {
    plan.host_moments = request.moments == MomentType::k8Bit ? plan.moments : 0;
    plan.host_weights = training.embeds_on_host ? embedding_bytes(model) : 0;
  }
  plan.flops = step_flops(model, request, training);
  plan.fits = request.cap == 0 || plan.on_device() <= request.cap;
  return plan;
}

MemoryPlan choose_plan(const Model& model, const PlanRequest& request) {
  StepPlan first = first_plan(model, request);
  const std::vector<Stage> stages = stages_of(model, request, first);
  // A smaller chunk of the head costs little but helps only where the head needs the most.
  Choice best;
  const auto& chunks = costs_of(request.device).head_chunks;
  const int64_t least = first.trains_head ? kHeadChain : 1;
  for (size_t i = 0; i < chunks.size() && chunks.at(i) >= least; ++i) {
    const int64_t chunk = chunks.at(i);
    // A chunk of more rows than there are only takes memory.
    if (i + 1 < chunks.size() && chunks.at(i + 1) >= std::max(first.tokens, least)) continue;
    first.head_chunk = chunk;
    Choice choice = fit_stages(model, request, first, stages);
    const bool is_first = best.plan.training.tokens == 0;
    if (is_first || choice.better_than(best)) best = std::move(choice);
    if (best.plan.fits && best.stage == 0 && best.step == 0) break;
  }
  return best.plan.fits ? keep_decoded(model, request, std::move(best.plan)) : best.plan;
}

MemoryPlan choose_rows(const Model& model, PlanRequest& request, int64_t step_rows) {
  struct Choice {
    MemoryPlan plan;
    int64_t rows;
    double cost;
  };
  std::vector<Choice> choices;
  for (int64_t rows = 1;; rows = std::min(2 * rows, step_rows)) {
    if (rows * request.sequence_len > INT32_MAX) break;
    request.rows = rows;
    MemoryPlan plan = choose_plan(model, request);
    if (rows > 1 && !plan.fits) break;
    const auto tokens = static_cast<double>(rows * request.sequence_len);
    const int64_t micro_batches = (step_rows + rows - 1) / rows;
    const double cost = plan.flops.total() *
                            std::max(costs_of(request.device).full_rate / tokens, 1.0) *
                            static_cast<double>(step_rows) / static_cast<double>(rows) +
                        decode_flops(model, plan.training) * static_cast<double>(micro_batches);
    choices.push_back({std::move(plan), rows, cost});
    if (rows == step_rows || !choices[0].plan.fits) break;
  }
  const double least = std::ranges::min(choices, {}, &Choice::cost).cost;
  std::erase_if(choices, [&](const Choice& c) { return c.cost > (1 + kWorthwhile) * least; });
  Choice& chosen = *std::ranges::min_element(
      choices, {}, [](const Choice& choice) { return choice.plan.total(); });
  request.rows = chosen.rows;
  return std::move(chosen.plan);
}

std::string layers_text(const StepPlan& plan) {
  std::string text;
  for (size_t begin = 0, end = 0; begin < plan.layers.size(); begin = end) {
    const LayerPlan& layer = plan.layers[begin];
    while (end < plan.layers.size() && plan.layers[end].memory == layer.memory &&
           plan.layers[end].resident == layer.resident) {
      ++end;
    }
    text += text.empty() ? "" : "; ";
    text += kLayerMemoryNames[static_cast<size_t>(layer.memory)];
    if (layer.resident) text += " (decoded)";
    text += end - begin == 1 ? ": block " + std::to_string(begin)
                             : ": blocks " + std::to_string(begin) + "-" + std::to_string(end - 1);
  }
  return text;
}

}  // namespace graft::train
