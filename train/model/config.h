// The shape of a decoder, from a Hugging Face config.json: everything that the families do
// differently, as numbers and flags that the engine reads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "train/model/families.h"
#include "train/model/rope.h"

namespace graft::train {

struct LayerConfig {
  int64_t window = 0;             // keys that a query sees, itself among them; 0 = all before it
  int rope = 0;                   // index into ModelConfig::ropes; -1 = positions are not encoded
  int64_t experts = 0;            // 0 = one MLP
  int64_t intermediate_size = 0;  // of the MLP, or of each expert
};

// Tokens that a run adds to the checkpoint's (train/model/new_tokens.h).
struct AddedTokens {
  int64_t first = 0;                         // id of the first one; the others follow it
  int64_t stored = 0;                        // rows of the checkpoint's embedding and head
  std::vector<std::vector<int32_t>> pieces;  // of each token: what its text was before
  int64_t count() const { return static_cast<int64_t>(pieces.size()); }
};

struct ModelConfig {
  const Family* family = nullptr;
  int64_t hidden_size = 0;
  int64_t heads = 0;     // query heads
  int64_t kv_heads = 0;  // key and value heads; divides heads
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;  // longest text that the config speaks of
  float rms_norm_eps = 1e-5F;
  double initializer_range = 0.02;  // standard deviation of freshly made weights
  bool tied_embeddings = false;
  // The language model is one part of the checkpoint (text_config of a multimodal Gemma 3).
  bool nested = false;

  Placement placement = Placement::kPre;
  graft_rmsnorm_kind norm = GRAFT_RMSNORM_WEIGHT;
  QkNorm qk_norm = QkNorm::kNone;
  Activation activation = Activation::kSilu;
  bool fused = false;  // qkv_proj and gate_up_proj
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  float embedding_scale = 1;
  float attention_scale = 1;
  float residual_scale = 1;  // of what a block's halves add to the residual stream
  float logit_scale = 1;
  float attention_cap = 0;  // 0 = none
  float logit_cap = 0;
  int64_t experts_per_token = 0;
  bool renormalises_experts = false;

  AddedTokens added;  // with them vocab_size may be larger than what config.json says
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
};

// Reads `directory`/config.json in the dialect of transformers 4 (rope_theta, rope_scaling,
// sliding_window_pattern) or 5 (rope_parameters, layer_types). A key that may change the maths and
// that graft does not know, and a known one with a value that is not implemented, is refused by
// name. Errors: kIo, kData with path:line:column: key.
ModelConfig read_model_config(const std::string& directory,
                              std::span<const Family> table = families());

}  // namespace graft::train
