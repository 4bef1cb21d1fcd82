// The shape of a Llama-family decoder, from a Hugging Face config.json.
#pragma once

#include <cstdint>
#include <string>

namespace graft::train {

struct ModelConfig {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;     // query heads
  int64_t kv_heads = 0;  // key and value heads; divides heads
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  float rms_norm_eps = 1e-5F;
  double rope_theta = 10000.0;
  bool tied_embeddings = false;
  double initializer_range = 0.02;  // standard deviation of freshly made weights

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t parameter_count() const;
};

// Reads `directory`/config.json, old dialect (rope_theta) or new (rope_parameters). Keys that
// change the maths and are not implemented are refused by name. Errors: kIo, kData.
ModelConfig read_model_config(const std::string& directory);

}  // namespace graft::train
