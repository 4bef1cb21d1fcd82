// An adapter under the names and in the layout of a model.
//
// The same weights have several names: a checkpoint may hold q, k and v as one matrix (Phi 3) or
// apart, experts one by one (on disk) or all in one tensor (transformers 5 in memory), the language
// model under a prefix (multimodal Gemma 3). A pair of a joined weight is exact for its parts and
// the other way round:
//   joined to parts   the same A for each part, its rows of B
//   parts to joined   the A one below the other, the B in a block diagonal matrix
//   all experts       PEFT's rows of A are expert by expert, its columns of B rank by rank
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "adapters/peft.h"
#include "core/safetensors.h"

namespace graft::adapters {

struct LinearShape {
  int64_t out = 0;
  int64_t in = 0;
};
// A linear of the model by its name ("model.layers.0.self_attn.q_proj"), or nothing.
using FindLinear = std::function<std::optional<LinearShape>(const std::string& name)>;

// The adapter with modules that are all linears of the model, by name. `model` names it in errors.
// Tensors of Adapter::saved keep their names (see names_of). Errors: kData naming the module: one
// that the model lacks under any name, another shape (both are named), a rank that the settings do
// not give, two modules for one linear, magnitudes (DoRA) of only a part of a joined weight or of
// experts.
Adapter fit_adapter(Adapter adapter, const FindLinear& find, const std::string& model);

// The name itself, then the others that the same module or tensor has elsewhere.
std::vector<std::string> names_of(const std::string& name);

// For the matrices of a checkpoint, plain or 4-bit. Errors: those of check_base too.
Adapter fit_adapter(Adapter adapter, const SafetensorsDirectory& model);

// An adapter that began by changing its base's 4-bit weights belongs to those alone: on what
// quantizing the checkpoint gives it would be another model. Its metadata then have the sum of
// nf4_digest over the weights that it adapts, as 16 hex digits under this key.
constexpr std::string_view kBaseDigest = "base_nf4_xxh3";
bool has_own_base(const Adapter& adapter);
// Checks that sum for a fitted adapter; `digest` gives nf4_digest of a module's weight, or nothing
// for one that is not in 4 bits. Errors: kData for another base.
using FindDigest = std::function<std::optional<uint64_t>(const std::string& module)>;
void check_base(const Adapter& adapter, const FindDigest& digest, const std::string& model);

}  // namespace graft::adapters
