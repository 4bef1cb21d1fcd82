// A Llama-family decoder's weights: frozen, trained, or frozen in 4 bits with trained A and B.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "kernels/nf4.h"
#include "train/model/config.h"

namespace graft::train {

enum Projection { kQ, kK, kV, kO, kGate, kUp, kDown, kProjections };
// "self_attn.q_proj", …, as in Hugging Face names.
std::string_view projection_name(Projection projection);

// A trained tensor, float32 master and gradient of the same shape.
struct Parameter {
  std::string name;  // "model.layers.0.self_attn.q_proj.lora_A.weight"
  at::Tensor value;
  at::Tensor grad;
  bool decays = true;  // takes part in weight decay: matrices do, norms do not
};

// A frozen matrix [out, in]: float32, or 4-bit as kernels/nf4.h describes it.
struct BaseWeight {
  at::Tensor dense;  // float32 [out, in]; undefined when quantized
  at::Tensor packed;
  at::Tensor absmax;   // undefined when nested
  at::Tensor absmax8;  // undefined when not nested
  at::Tensor nested_absmax;
  float offset = 0;
  int block_size = 0;
  int64_t count = 0;  // out * in
  graft_quant4_type type = GRAFT_NF4;
  bool quantized() const { return packed.defined(); }
  graft_nf4_weight nf4() const;  // views of the tensors above
  int64_t bytes() const;
};

struct Lora {
  int64_t rank = 0;  // 0 = no adapter on this linear
  float scale = 0;   // alpha / r, or alpha / sqrt(r)
  float dropout = 0;
  uint64_t stream = 0;  // names this linear for the dropout mask
  at::Tensor a;         // [rank, in]
  at::Tensor b;         // [out, rank]
  at::Tensor grad_a;    // undefined when nothing is trained
  at::Tensor grad_b;
};

// y = x W^T + scale * (x A^T) B^T
struct Linear {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t in = 0;
  int64_t out = 0;
  BaseWeight base;
  at::Tensor base_grad;  // [out, in] in full-parameter training, else undefined
  Lora lora;
};

struct Layer {
  at::Tensor attention_norm;  // [hidden]
  at::Tensor mlp_norm;        // [hidden]
  at::Tensor attention_norm_grad;
  at::Tensor mlp_norm_grad;
  std::array<Linear, kProjections> linears;
};

struct Model {
  ModelConfig config;
  at::Tensor embedding;  // [vocab, hidden]
  at::Tensor embedding_grad;
  at::Tensor final_norm;  // [hidden]
  at::Tensor final_norm_grad;
  at::Tensor head;  // [vocab, hidden]; the same tensor as `embedding` when tied
  at::Tensor head_grad;
  std::vector<Layer> layers;
  std::vector<float> inv_freq;     // [head_dim / 2] rotary frequencies
  std::vector<Parameter> trained;  // in a fixed order; values and gradients share the tensors above

  bool quantized() const;  // any linear: a checkpoint may leave some of them dense
  bool trains_everything() const { return embedding_grad.defined(); }
  int64_t trained_count() const;
  int64_t base_bytes() const;  // memory of the frozen or trained base
};

enum class Precision { kFull, kNf4 };  // of the linears; embeddings, norms and head stay float32
constexpr int kNf4BlockSize = 64;

// Loads a Hugging Face directory (safetensors in F32, F16 or BF16; or a bitsandbytes-4bit
// checkpoint as `graft quantize` writes it). With kNf4 each linear is quantized while loading, at
// most one of them in full precision in memory. Weights must be finite. Errors: kIo, kData naming
// the tensor.
std::unique_ptr<Model> load_model(const std::string& directory, Precision precision);

// A model of the directory's config.json with fresh weights: normal(0, initializer_range), norms 1.
std::unique_ptr<Model> make_model(const std::string& directory, uint64_t seed);

// Makes every tensor of the base a trained Parameter. Errors: kUsage for a base in 4 bits.
void train_everything(Model& model);

// Writes base weights as a Hugging Face directory beside the files of `template_directory` (config,
// tokenizer). Dense models only.
void save_model(const Model& model,
                const std::string& template_directory,
                const std::string& directory);

}  // namespace graft::train
