#include "train/model/placed.h"

#include <map>
#include <set>

#include <ATen/ops/from_blob.h>

#include "core/error.h"
#include "train/engine/tensor.h"
#include "train/model/extended.h"
#include "train/model/lora.h"

namespace graft::train {
namespace {

struct Found {
  at::Tensor* tensor;
  bool changes;
  bool extends = false;  // a narrow model has it in another form
  bool is_part = false;  // of one memory with others, whose order matters
};

// The linears whose dense weights only make an extended one.
std::set<const Linear*> extending(const Model& model) {
  std::set<const Linear*> all;
  if (!model.narrow) return all;
  for (const Layer& layer : model.layers) {
    for (const LinearGroup group : layer.groups()) {
      if (is_quantized(group)) continue;
      for (const Linear& linear : group) all.insert(&linear);
    }
  }
  return all;
}

// Every tensor of the model that kernels reach.
std::vector<Found> tensors_of(Model& model) {
  std::vector<Found> all;
  const bool grows = model.config.added.count() > 0;  // tables whose new rows follow masters
  const std::set<const Linear*> extend = extending(model);
  for (const BaseTensor& tensor : base_tensors(model)) {
    if (model.embeds_on_host && tensor.value == &model.embedding) continue;
    all.push_back({tensor.value, tensor.grad->defined() || (grows && tensor.linear == nullptr),
                   extend.count(tensor.linear) > 0});
    all.push_back({tensor.grad, true});
  }
  for (Linear* const linear : model.linears()) {
    BaseWeight& base = linear->base;
    for (at::Tensor* tensor :
         {&base.decoded, &base.packed, &base.absmax, &base.absmax8, &base.nested_absmax}) {
      all.push_back({tensor, false});
    }
    Lora& lora = linear->lora;
    all.push_back({&lora.grad_a, true, false, true});
    for (at::Tensor* tensor : {&lora.a, &lora.b, &lora.grad_b, &lora.magnitude,
                               &lora.grad_magnitude, &lora.gain, &lora.inverse_norm}) {
      all.push_back({tensor, true});
    }
  }
  all.push_back({&model.head, grows || model.head_grad.defined()});
  all.push_back({&model.head_grad, true});
  for (TableRows* rows : {&model.embedding_rows, &model.head_rows}) {
    all.push_back({&rows->value, true});
    all.push_back({&rows->grad, true});
  }
  for (Parameter& parameter : model.trained) {
    all.push_back({&parameter.value, true});
    all.push_back({&parameter.grad, true});
  }
  return all;
}

// The memory on the device of host tensors that are parts of one, by the host's.
using Wholes = std::map<const void*, at::Tensor>;

// As on_device; parts of one memory (gradients of a group) lie there as they do on the host.
at::Tensor copy_part(const Device& device, const at::Tensor& host, Wholes& wholes) {
  const c10::Storage& storage = host.storage();
  if (storage.nbytes() == host.nbytes()) return on_device(device, host);
  const auto [at, is_new] = wholes.try_emplace(storage.data());
  at::Tensor& whole = at->second;
  if (is_new) {
    whole = empty_on(device, host.scalar_type(),
                     {static_cast<int64_t>(storage.nbytes() / host.element_size())});
  }
  std::byte* const begin = static_cast<std::byte*>(whole.data_ptr()) +
                           host.storage_offset() * static_cast<int64_t>(host.element_size());
  at::Tensor part = at::from_blob(
      begin, host.sizes(), [keeps = whole](void*) {}, whole.options(), whole.device());
  copy_values(part, host);
  return part;
}

}  // namespace

void PlacedModel::place() {
  if (placed_) return;
  if (device_.is_host()) {
    if (model_.narrow) extend_weights(model_);
    placed_ = true;
    return;
  }
  if (model_.embeds_on_host && !model_.can_embed_on_host()) {
    fail(ExitCode::kBug, "an embedding that is trained, tied or grown cannot stay on the host");
  }
  std::map<const void*, size_t> known;  // host memory -> pair
  Wholes wholes;
  std::vector<Pair> before = std::move(pairs_);
  pairs_.clear();
  slots_.clear();
  for (const Found& found : tensors_of(model_)) {
    at::Tensor& tensor = *found.tensor;
    // Weights that stay decoded were made on the device.
    if (!tensor.defined() || tensor.numel() == 0 || !place_of(tensor).is_host()) continue;
    const auto [at, is_new] = known.try_emplace(tensor.data_ptr(), pairs_.size());
    if (is_new) {
      Pair pair{tensor, {}, false};
      for (Pair& old : before) {
        if (old.host.is_same(tensor)) pair.device = std::move(old.device);
      }
      if (pair.device.defined()) {
        copy_values(pair.device, tensor);
      } else {
        pair.device =
            found.is_part ? copy_part(device_, tensor, wholes) : on_device(device_, tensor);
      }
      pairs_.push_back(std::move(pair));
    }
    Pair& pair = pairs_[at->second];
    pair.changes = pair.changes || found.changes;
    slots_.push_back({&tensor, at->second, found.extends});
  }
  for (const Slot& slot : slots_) {
    *slot.tensor = pairs_[slot.pair].device;
    // extend_weights() lets go of it: nobody keeps both.
    if (slot.extends) pairs_[slot.pair].device = at::Tensor();
  }
  placed_ = true;
  for (Decoded& one : decoded_) {
    one.linear->base.decoded = std::move(one.decoded);
    one.linear->base.extended = std::move(one.extended);
  }
  if (model_.narrow) extend_weights(model_);
  if (!before.empty()) refresh_trained(model_);
}

void PlacedModel::take_back() {
  if (!placed_) return;
  placed_ = false;
  if (device_.is_host()) return separate_weights(model_);
  for (const Pair& pair : pairs_) {
    if (pair.changes) copy_values(pair.host, pair.device);
  }
  for (const Slot& slot : slots_) *slot.tensor = pairs_[slot.pair].host;
  decoded_.clear();
  for (Layer& layer : model_.layers) {
    for (const std::span<Linear> group : layer.groups()) {
      // Weights that were extended from dense ones are made again.
      if (!is_quantized(group)) group[0].base.extended = at::Tensor();
      for (Linear& linear : group) {
        BaseWeight& base = linear.base;
        if (base.decoded.defined() || base.extended.defined()) {
          decoded_.push_back({&linear, base.decoded, base.extended});
        }
        base.decoded = base.extended = at::Tensor();
      }
    }
  }
}

}  // namespace graft::train
