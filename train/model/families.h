// What tells the decoder families apart: one row per model_type of config.json.
//
// The decoder itself knows no family. A row and a config.json give a ModelConfig (config.h), whose
// fields the walk over the blocks reads.
#pragma once

#include <span>
#include <string_view>

#include "kernels/rmsnorm.h"

namespace graft::train {

// Where a block's norms stand.
enum class Placement {
  kPre,       // x + f(norm(x))
  kSandwich,  // x + norm(f(norm(x)))
  kPost       // x + norm(f(x))
};

// RMS norms of queries and keys, before the rotation.
enum class QkNorm { kNone, kPerHead, kFull };

enum class Activation { kSilu, kGeluTanh };

// Which layers see a sliding window only, where config.json has no layer_types.
enum class WindowRule {
  kNone,
  kEvery,        // all layers
  kAboveLayer,   // layers max_window_layers and above
  kPattern,      // all but every window_pattern-th
  kWithoutRope,  // the layers that do not encode positions
};

// Names of a mixture of experts in a checkpoint.
enum class ExpertNames {
  kNone,
  kMixtral,  // block_sparse_moe.gate, block_sparse_moe.experts.E.{w1, w3, w2}
  kQwen,     // mlp.gate, mlp.experts.E.{gate, up, down}_proj
};

struct Family {
  std::string_view model_type;
  // The keys of config.json that this family reads beside the common ones, a JSON object: each with
  // the value that transformers takes where config.json does not have the key. A key that stands in
  // no list of config.cpp and not here is refused.
  std::string_view keys;
  Placement placement = Placement::kPre;
  graft_rmsnorm_kind norm = GRAFT_RMSNORM_WEIGHT;
  QkNorm qk_norm = QkNorm::kNone;
  bool fused = false;             // qkv_proj and gate_up_proj in place of three and two linears
  bool qkv_bias = false;          // whatever attention_bias says
  bool scaled_embedding = false;  // embeddings times sqrt(hidden_size)
  WindowRule window = WindowRule::kNone;
  int window_pattern = 0;
  bool local_rope = false;  // layers with a window have a rotation of their own
  ExpertNames experts = ExpertNames::kNone;
  bool renormalises = false;  // the weights of a token's experts add up to 1 (else norm_topk_prob)
  // The linears that PEFT adapts when none are named; empty: PEFT names none.
  std::string_view peft_targets = "";
};

std::span<const Family> families();

}  // namespace graft::train
