#include "train/model/lora.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include <ATen/ops/cat.h>

#include "adapters/fit.h"
#include "adapters/nf4_checkpoint.h"
#include "core/error.h"
#include "core/hash.h"
#include "kernels/gemm.h"
#include "train/engine/tensor.h"
#include "train/model/dora.h"
#include "train/model/extended.h"
#include "train/model/init/initialisation.h"
#include "train/model/new_tokens.h"
#include "train/model/saved.h"
#include "train/model/targets.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

adapters::AdapterSpec spec_of(const LoraSettings& settings) {
  adapters::AdapterSpec spec;
  spec.r = settings.rank;
  spec.lora_alpha = settings.alpha;
  spec.use_rslora = settings.rslora;
  spec.lora_dropout = settings.dropout;
  spec.rank_pattern = settings.rank_pattern;
  spec.alpha_pattern = settings.alpha_pattern;
  return spec;
}

template <typename Value>
std::vector<std::string> keys_of(const adapters::Patterns<Value>& patterns) {
  std::vector<std::string> keys;
  for (const auto& [pattern, value] : patterns) keys.push_back(pattern);
  return keys;
}

// What PEFT needs as target_modules: a short name where every linear of that name is adapted, else
// the whole paths.
std::vector<std::string> target_names(const Model& model) {
  std::map<std::string_view, bool> all_adapted;  // by short name
  for (const Linear* const linear : model.linears()) {
    const auto [entry, fresh] = all_adapted.emplace(last_part(linear->name), true);
    entry->second = entry->second && linear->lora.rank > 0;
  }
  std::set<std::string> names;
  for (const Linear* const linear : model.linears()) {
    if (linear->lora.rank == 0) continue;
    const std::string_view short_name = last_part(linear->name);
    names.insert(all_adapted[short_name] ? std::string(short_name)
                                         : peft_path(model, linear->name));
  }
  return {names.begin(), names.end()};
}

// `packed`: the linears that quantize are in 4 bits.
void check_init(const Initialisation& init, const Linear& linear, bool packed) {
  const bool in_4bit = packed && linear.quantizes;
  const std::string name(init.name);
  if (init.needs_4bit && !in_4bit) {
    fail(ExitCode::kUsage,
         name + " makes up for quantization, and " + linear.name + " is in full precision",
         "init_lora_weights",
         packed ? "name it in lora_exclude_modules"
                : "set adapter: qlora, or init_lora_weights: pissa");
  }
  if (!init.changes_base || in_4bit) return;
  if (packed) {
    fail(ExitCode::kUsage,
         name + " changes the weights, and the files have only those in 4 bits, which " +
             linear.name + " is not",
         "init_lora_weights", "name it in lora_exclude_modules");
  }
  if (linear.operands == GRAFT_BF16) {
    fail(ExitCode::kUsage,
         name +
             " changes the weights, and bfloat16 would round what is left of them: the adapter "
             "in its files would not be the one that was trained",
         "compute", "set compute: fp32");
  }
}

void check_combination(const LoraSettings& settings,
                       const Initialisation& init,
                       const std::vector<Linear*>& targets,
                       bool packed) {
  if (settings.dora && init.changes_base && !packed) {
    fail(ExitCode::kUsage,
         "DoRA's magnitudes belong to the weights of the checkpoint, which " +
             std::string(init.name) + " changes",
         "use_dora", "use one of the two");
  }
  for (const Linear* const linear : targets) {
    check_init(init, *linear, packed);
    if (settings.dora && linear->name.find(".experts.") != std::string::npos) {
      fail(ExitCode::kUsage, "PEFT has no DoRA for the linears of experts, such as " + linear->name,
           "use_dora", "name other linears in lora_target_modules, or leave out use_dora");
    }
  }
}

void check_rank(const Linear& linear, const Initialisation& init) {
  const int64_t most = std::min(linear.in, linear.out);
  if (!init.takes_iterations || linear.lora.rank <= most) return;
  fail(ExitCode::kUsage,
       std::string(init.name) + " takes singular values, of which " + linear.name + " has " +
           std::to_string(most) + ", and the rank is " + std::to_string(linear.lora.rank),
       "lora_r", "set lora_r to at most " + std::to_string(most));
}

// A and B of every targeted linear, not filled. Returns those linears.
std::vector<Linear*> make_pairs(Model& model,
                                const LoraSettings& settings,
                                const Initialisation& init,
                                bool packed) {
  const std::vector<Linear*> targets = find_targets(model, settings);
  check_keys(model, targets, keys_of(settings.rank_pattern), "lora_rank_pattern");
  check_keys(model, targets, keys_of(settings.alpha_pattern), "lora_alpha_pattern");
  check_combination(settings, init, targets, packed);
  const adapters::AdapterSpec spec = spec_of(settings);
  for (Linear* const linear : targets) {
    const std::string path = peft_path(model, linear->name);
    Lora& lora = linear->lora;
    lora.rank = spec.rank_of(path);
    lora.scale = static_cast<float>(spec.scale_of(path));
    lora.dropout = static_cast<float>(settings.dropout);
    check_rank(*linear, init);
    lora.a = empty_f32({lora.rank, linear->in});
    lora.b = empty_f32({linear->out, lora.rank});
  }
  return targets;
}

// A and B beside what they began as: [A; A0] and [B, -B0] give B A - B0 A0.
struct DoubledPair {
  at::Tensor a;  // [2 rank, in]
  at::Tensor b;  // [out, 2 rank]
};

std::vector<DoubledPair> double_pairs(const Model& model) {
  std::vector<DoubledPair> pairs;
  for (const Linear* const linear : model.linears()) {
    const Lora& lora = linear->lora;
    if (lora.rank == 0) continue;
    pairs.push_back({at::cat({lora.a, lora.initial_a}, 0),
                     at::cat({lora.b, lora.initial_b.neg()}, 1).contiguous()});
  }
  return pairs;
}

// The settings that give pairs of twice the rank the same scales.
adapters::AdapterSpec doubled_spec(const Model& model, const adapters::AdapterSpec& spec) {
  adapters::AdapterSpec doubled = spec;
  doubled.use_rslora = false;
  doubled.rank_pattern.clear();
  doubled.alpha_pattern.clear();
  const auto alpha = [&](std::string_view path) {
    return spec.scale_of(path) * 2 * static_cast<double>(spec.rank_of(path));
  };
  doubled.r = 2 * spec.r;
  doubled.lora_alpha = alpha("");
  for (const Linear* const linear : model.linears()) {
    if (linear->lora.rank == 0) continue;
    const std::string path = peft_path(model, linear->name);
    const int64_t rank = 2 * spec.rank_of(path);
    if (rank != doubled.r) doubled.rank_pattern.emplace_back(path, rank);
    if (alpha(path) != doubled.lora_alpha) doubled.alpha_pattern.emplace_back(path, alpha(path));
  }
  return doubled;
}

// Which weights the adapter was trained on: merging and loading have to know.
std::map<std::string, std::string> base_metadata(const Model& model) {
  std::map<std::string, std::string> metadata = {
      {"base_quantization", model.quantized() ? "nf4" : "none"}};
  if (!model.base_changed()) return metadata;
  uint64_t sum = 0;
  for (const Linear* const linear : model.linears()) {
    if (linear->lora.rank > 0) sum += adapters::nf4_digest(linear->base.nf4());
  }
  metadata.emplace(adapters::kBaseDigest, hex64(sum));
  return metadata;
}

}  // namespace

void add_lora(Model& model,
              const LoraSettings& settings,
              uint64_t seed,
              const std::string& base_directory) {
  const ChosenInit init = find_initialisation(settings.init);
  const std::vector<Linear*> targets = make_pairs(model, settings, *init.row, model.quantized());
  std::unique_ptr<OriginalWeights> original;  // opened when the first linear asks
  InitContext context{seed, init.iterations, settings.loftq_iter, [&](const Linear& linear) {
                        if (!original) original = std::make_unique<OriginalWeights>(base_directory);
                        return original->read(linear);
                      }};
  for (Linear* const linear : targets) {
    init.row->run(*linear, context);
    if (settings.dora) add_magnitude(*linear);
  }
  train_pairs(model, static_cast<float>(settings.b_lr_ratio));
  train_modules(model, settings.saved);
  train_rows(model);
}

void add_lora_shapes(Model& model, const LoraSettings& settings, Precision precision) {
  const Initialisation& init = *find_initialisation(settings.init).row;
  const bool packed = precision == Precision::kNf4;
  for (Linear* const linear : make_pairs(model, settings, init, packed)) {
    Lora& lora = linear->lora;
    if (settings.dora) {
      for (at::Tensor* const rows :
           {&lora.magnitude, &lora.base_squares, &lora.gain, &lora.inverse_norm}) {
        *rows = empty_f32({linear->out});
      }
    }
    if (init.changes_base && !packed) {
      lora.initial_a = empty_f32({lora.rank, linear->in});
      lora.initial_b = empty_f32({linear->out, lora.rank});
    }
  }
  train_pairs(model, static_cast<float>(settings.b_lr_ratio));
  for (const BaseTensor& tensor : base_tensors(model)) {
    if (!trains_module(model, tensor, settings.saved)) continue;
    *tensor.value = empty_f32({tensor.count()}).view(tensor.shape);
  }
  train_modules(model, settings.saved);
  train_rows(model);
}

void refresh_trained(Model& model) {
  refresh_gains(model);
  refresh_rows(model);
  refresh_extended(model);
}

namespace {

// Of a group's linears; those of A one behind the other.
void make_gradients(std::span<Linear> group) {
  const GroupShape shape = shape_of(group);
  if (shape.rank == 0) return;
  const at::Tensor grad_a = zeros_f32({shape.rank, shape.in});
  int64_t row = 0;
  for (Linear& linear : group) {
    Lora& lora = linear.lora;
    if (lora.rank == 0) continue;
    lora.grad_a = grad_a.narrow(0, row, lora.rank);
    lora.grad_b = zeros_f32({linear.out, lora.rank});
    row += lora.rank;
  }
}

void train_pair(Model& model, Linear& linear, float b_lr_ratio) {
  Lora& lora = linear.lora;
  model.trained.push_back({linear.name + ".lora_A.weight", lora.a, lora.grad_a, true});
  model.trained.push_back({linear.name + ".lora_B.weight", lora.b, lora.grad_b, true, b_lr_ratio});
  if (!lora.magnitude.defined()) return;
  lora.grad_magnitude = zeros_f32({linear.out});
  model.trained.push_back(
      {linear.name + ".lora_magnitude_vector", lora.magnitude, lora.grad_magnitude, false});
}

}  // namespace

void train_pairs(Model& model, float b_lr_ratio) {
  for (Layer& layer : model.layers) {
    for (const std::span<Linear> group : layer.groups()) {
      make_gradients(group);
      for (Linear& linear : group) {
        if (linear.lora.rank > 0) train_pair(model, linear, b_lr_ratio);
      }
    }
  }
}

void load_adapter(Model& model, const std::string& directory) {
  std::map<std::string, Linear*, std::less<>> by_name;
  for (Linear* const linear : model.linears()) by_name[linear->name] = linear;
  const adapters::FindLinear find =
      [&](const std::string& name) -> std::optional<adapters::LinearShape> {
    const auto found = by_name.find(name);
    if (found == by_name.end()) return std::nullopt;
    return adapters::LinearShape{found->second->out, found->second->in};
  };
  const adapters::Adapter adapter =
      adapters::fit_adapter(adapters::read_peft(directory), find, directory);
  for (const adapters::AdapterModule& module : adapter.modules) {
    Linear& linear = *by_name.at(module.name);
    linear.lora.rank = module.rank;
    linear.lora.scale = static_cast<float>(module.scale);
    linear.lora.a = empty_f32({module.rank, module.in});
    linear.lora.b = empty_f32({module.out, module.rank});
    std::memcpy(linear.lora.a.data_ptr(), module.a.data(), linear.lora.a.nbytes());
    std::memcpy(linear.lora.b.data_ptr(), module.b.data(), linear.lora.b.nbytes());
    if (!module.magnitude.empty()) set_magnitude(linear, module.magnitude.data());
  }
  adapters::check_base(
      adapter,
      [&](const std::string& module) -> std::optional<uint64_t> {
        const BaseWeight& base = by_name.at(module)->base;
        return base.quantized() ? std::optional(adapters::nf4_digest(base.nf4())) : std::nullopt;
      },
      directory);
  load_tables(model, adapter, directory);
}

void remove_adapter(Model& model) {
  for (Linear* const linear : model.linears()) {
    Lora& lora = linear->lora;
    if (lora.initial_a.defined()) {
      check(graft_gemm_f32(GRAFT_N, GRAFT_N, linear->out, linear->in, lora.rank, lora.scale,
                           f32(lora.initial_b), lora.rank, f32(lora.initial_a), linear->in, 1,
                           f32(linear->base.dense), linear->in));
    }
    Lora none;
    none.stream = lora.stream;
    lora = none;
  }
  clear_saved(model);
  clear_rows(model);
}

std::string save_adapter(Model& model,
                         const LoraSettings& settings,
                         const std::string& base_name,
                         const std::string& directory) {
  adapters::AdapterSpec spec = spec_of(settings);
  spec.base_model_name_or_path = base_name;
  spec.target_modules = target_names(model);
  spec.use_dora = settings.dora;
  spec.modules_to_save = saved_modules(model);
  spec.ensure_weight_tying = model.config.tied_embeddings && model.embedding_grad.defined();
  const std::vector<adapters::TokenRowsView> rows = row_views(model);
  for (const adapters::TokenRowsView& table : rows) {
    spec.trainable_token_indices.emplace_back(last_part(table.name), table.ids);
  }
  const std::vector<const Linear*> linears = std::as_const(model).linears();
  const bool converts = std::any_of(linears.begin(), linears.end(), [](const Linear* linear) {
    return linear->lora.initial_a.defined();
  });
  std::vector<DoubledPair> doubled;
  if (converts) {
    doubled = double_pairs(model);
    spec = doubled_spec(model, spec);
  }
  std::vector<adapters::AdapterTensors> modules;
  for (const Linear* const linear : linears) {
    const Lora& lora = linear->lora;
    if (lora.rank == 0) continue;
    const bool weighs = lora.magnitude.defined();
    if (converts) {
      const DoubledPair& pair = doubled[modules.size()];
      modules.push_back({peft_path(model, linear->name), linear->in, linear->out, 2 * lora.rank,
                         f32(pair.a), f32(pair.b), nullptr});
    } else {
      modules.push_back({peft_path(model, linear->name), linear->in, linear->out, lora.rank,
                         f32(lora.a), f32(lora.b), weighs ? f32(lora.magnitude) : nullptr});
    }
  }
  return adapters::write_peft(directory, spec, modules, base_metadata(model), saved_tensors(model),
                              rows);
}

}  // namespace graft::train
