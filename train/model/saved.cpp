#include "train/model/saved.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "adapters/fit.h"
#include "adapters/pattern.h"
#include "core/error.h"
#include "train/engine/tensor.h"
#include "train/model/targets.h"

namespace graft::train {
namespace {

constexpr std::string_view kKey = "lora_modules_to_save";
constexpr const char* kHead = "lm_head";
constexpr const char* kEmbedding = "model.embed_tokens";

std::string module_of(const BaseTensor& tensor) {
  return tensor.name.substr(0, tensor.name.rfind('.'));
}

bool is_saved(const Model& model, const std::string& module) {
  return std::find(model.saved.begin(), model.saved.end(), module) != model.saved.end();
}

[[noreturn]] void refuse_unknown(Model& model, const std::string& end) {
  std::set<std::string> names = {kHead};
  for (const BaseTensor& tensor : base_tensors(model)) {
    names.insert(std::string(last_part(module_of(tensor))));
  }
  const std::vector<std::string_view> known(names.begin(), names.end());
  fail(ExitCode::kUsage, unknown_name("module", end, known), std::string(kKey),
       "name modules of the model, such as [embed_tokens, lm_head]");
}

void check_trainable(const BaseTensor& tensor) {
  if (tensor.type != nullptr && *tensor.type == GRAFT_BF16) {
    fail(ExitCode::kBug, module_of(tensor) + " was loaded in bfloat16 and is to be trained");
  }
  if (tensor.linear == nullptr) return;
  if (tensor.linear->base.quantized()) {
    fail(ExitCode::kUsage, module_of(tensor) + " is stored in 4 bits and cannot be trained whole",
         std::string(kKey), "adapt it instead, or set adapter: lora");
  }
  if (tensor.linear->lora.rank > 0) {
    fail(ExitCode::kUsage, module_of(tensor) + " has an adapter and cannot be trained whole too",
         std::string(kKey),
         "take it out of lora_target_modules, or name it in lora_exclude_modules");
  }
}

void train_tensor(Model& model, const BaseTensor& tensor) {
  if (tensor.grad->defined()) return;
  check_trainable(tensor);
  *tensor.grad = zeros_f32({tensor.value->numel()}).view(tensor.value->sizes());
  model.trained.push_back({tensor.name, *tensor.value, *tensor.grad, tensor.shape.size() > 1});
  model.saved.push_back(module_of(tensor));
}

bool is_named(const Model& model, const std::string& module, const std::string& end) {
  return adapters::ends_in_parts(peft_path(model, module), end) ||
         (model.config.tied_embeddings && module == kEmbedding && end == kHead);
}

}  // namespace

bool trains_module(const Model& model,
                   const BaseTensor& tensor,
                   const std::vector<std::string>& ends) {
  return std::any_of(ends.begin(), ends.end(), [&](const std::string& end) {
    return is_named(model, module_of(tensor), end);
  });
}

void train_modules(Model& model, const std::vector<std::string>& ends) {
  const bool tied = model.config.tied_embeddings;
  for (const std::string& end : ends) {
    bool found = false;
    for (const BaseTensor& tensor : base_tensors(model)) {
      if (!is_named(model, module_of(tensor), end)) continue;
      train_tensor(model, tensor);
      found = true;
    }
    if (!found) refuse_unknown(model, end);
  }
  if (tied && model.embedding_grad.defined()) {
    model.head_grad = zeros_f32({model.config.vocab_size, model.config.hidden_size});
    model.saved.push_back(kHead);
  }
  std::sort(model.saved.begin(), model.saved.end());
  model.saved.erase(std::unique(model.saved.begin(), model.saved.end()), model.saved.end());
}

std::vector<adapters::SavedView> saved_tensors(Model& model) {
  std::vector<adapters::SavedView> views;
  for (const BaseTensor& tensor : base_tensors(model)) {
    if (!is_saved(model, module_of(tensor))) continue;
    views.push_back({peft_path(model, tensor.name), tensor.shape, f32(*tensor.value)});
  }
  if (model.config.tied_embeddings && is_saved(model, kHead)) {
    views.push_back({std::string(kHead) + ".weight", model.head.sizes().vec(), f32(model.head)});
  }
  return views;
}

void clear_saved(Model& model) {
  for (const BaseTensor& tensor : base_tensors(model)) {
    if (!is_saved(model, module_of(tensor))) continue;
    std::memset(tensor.value->data_ptr(), 0, tensor.value->nbytes());
  }
  model.saved.clear();
}

std::vector<std::string> saved_modules(Model& model) {
  std::set<std::string> modules;
  for (const BaseTensor& tensor : base_tensors(model)) modules.insert(module_of(tensor));
  std::set<std::string> names;
  for (const std::string& saved : model.saved) {
    const std::string_view last = last_part(saved);
    const bool finds_others = std::any_of(modules.begin(), modules.end(), [&](const auto& module) {
      return module.ends_with(last) && !is_saved(model, module);
    });
    names.insert(finds_others ? peft_path(model, saved) : std::string(last));
  }
  return {names.begin(), names.end()};
}

void load_saved(Model& model,
                std::span<const adapters::SavedTensor> saved,
                const std::string& file) {
  std::map<std::string, BaseTensor> known;
  const std::vector<BaseTensor> tensors = base_tensors(model);
  for (const BaseTensor& tensor : tensors) known.emplace(tensor.name, tensor);
  if (model.config.tied_embeddings) {
    const at::IntArrayRef sizes = model.head.sizes();
    known.emplace(std::string(kHead) + ".weight",
                  BaseTensor{std::string(kHead) + ".weight", sizes.vec(), &model.head,
                             &model.head_grad, &model.head_operands});
  }
  for (const adapters::SavedTensor& one : saved) {
    const std::vector<std::string> names = adapters::names_of(one.name);
    const auto name = std::find_if(names.begin(), names.end(), [&](const std::string& candidate) {
      return known.count(candidate) > 0;
    });
    if (name == names.end()) {
      fail(ExitCode::kData, "the adapter has a tensor that the model lacks", file + ": " + one.name,
           "use the model that the adapter was trained on");
    }
    const BaseTensor& tensor = known.at(*name);
    if (tensor.shape != one.shape ||
        (tensor.linear != nullptr && tensor.linear->base.quantized())) {
      fail(ExitCode::kData,
           "the model's tensor is " + shape_text(tensor.shape) + ", the adapter's " +
               shape_text(one.shape),
           file + ": " + one.name, "use the model that the adapter was trained on, unquantized");
    }
    // A tensor of its own: what shared the old one keeps it.
    at::Tensor values = empty_f32({static_cast<int64_t>(one.values.size())}).view(one.shape);
    std::memcpy(values.data_ptr(), one.values.data(), values.nbytes());
    *tensor.value = values;
    if (tensor.type != nullptr) *tensor.type = GRAFT_F32;
    model.saved.push_back(module_of(tensor));
  }
}

}  // namespace graft::train
