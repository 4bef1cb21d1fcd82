// Modules of the base that are trained whole beside the adapter: PEFT's modules_to_save.
//
// The head, the embeddings, norms, and linears in full precision. In a model with tied embeddings
// embed_tokens and lm_head are one matrix: either name trains it, and its gradient is the sum of
// both uses.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "adapters/peft.h"
#include "train/model/model.h"

namespace graft::train {

// Makes the tensors of the modules whose names end in one of `ends` trained. Errors: kUsage for one
// that matches nothing, is stored in 4 bits, or has an adapter; kBug for one that was loaded in
// bfloat16.
void train_modules(Model& model, const std::vector<std::string>& ends);

// Whether train_modules would train the tensor's module.
bool trains_module(const Model& model,
                   const BaseTensor& tensor,
                   const std::vector<std::string>& ends);

// The tensors of Model::saved, as an adapter's file has them: a tied matrix under both names.
std::vector<adapters::SavedView> saved_tensors(Model& model);
// Zeroes the tensors of Model::saved and forgets them.
void clear_saved(Model& model);

// The names for modules_to_save: the last part where PEFT finds by it what is saved and no more.
std::vector<std::string> saved_modules(Model& model);

// Puts an adapter's tensors into the model, which may untie head and embeddings. `file` names the
// adapter in errors. Errors: kData for a tensor that the model lacks, or of another shape.
void load_saved(Model& model,
                std::span<const adapters::SavedTensor> saved,
                const std::string& file);

}  // namespace graft::train
