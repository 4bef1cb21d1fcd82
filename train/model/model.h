// A decoder's weights: frozen, trained, or frozen in 4 bits with trained A and B.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "kernels/nf4.h"
#include "train/model/config.h"

namespace graft::train {

// A trained tensor, float32 master and gradient of the same shape.
struct Parameter {
  std::string name;  // "model.layers.0.self_attn.q_proj.lora_A.weight"
  at::Tensor value;
  at::Tensor grad;
  bool decays = true;   // takes part in weight decay: matrices do, norms and biases do not
  float lr_factor = 1;  // of the schedule's learning rate
};

// A frozen matrix [out, in]: dense, or 4-bit as kernels/nf4.h describes it.
struct BaseWeight {
  at::Tensor dense;    // [out, in] of Linear::operands; undefined when quantized
  at::Tensor decoded;  // likewise, of a 4-bit weight that stays decoded; else undefined
  // Of a narrow model, in the place of both, with the adapters' pairs: the whole group's, at its
  // first linear (train/model/extended.h).
  at::Tensor extended;
  at::Tensor packed;
  at::Tensor absmax;   // undefined when nested
  at::Tensor absmax8;  // undefined when not nested
  at::Tensor nested_absmax;
  float offset = 0;
  int block_size = 0;
  int64_t count = 0;  // out * in
  graft_quant4_type type = GRAFT_NF4;
  bool mapped = false;  // views of the quantized cache
  // An adapter's beginning changed it: no quantization of the checkpoint gives it.
  bool changed = false;
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
  // Undefined when nothing is trained. Those of A of a group lie one behind the other.
  at::Tensor grad_a;
  at::Tensor grad_b;
  // DoRA (train/model/dora.h), all [out]; undefined without.
  at::Tensor magnitude;  // lengths of the rows of W + scale * B A
  at::Tensor grad_magnitude;
  at::Tensor base_squares;  // of W's rows
  at::Tensor gain;          // magnitude * inverse_norm, of the present A and B
  at::Tensor inverse_norm;  // 1 / |row of W + scale * B A|
  // Where a dense W was changed so that W + scale * B A stays what it was (PiSSA): A and B as they
  // began.
  at::Tensor initial_a;
  at::Tensor initial_b;
};

// y = x W^T + bias + scale * (x A^T) B^T, where DoRA weighs all but the bias by its gain. A linear
// of several projections at once (qkv_proj, gate_up_proj) gives one array for each part.
struct Linear {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t in = 0;
  int64_t out = 0;
  std::vector<int64_t> parts;  // rows of W of each array; together `out`
  bool has_bias = false;
  bool quantizes = true;  // false: stays in full precision (a router)
  // What the products with W take, x or dy and W; W is held in it, or decoded to it from 4 bits.
  graft_float_type operands = GRAFT_F32;
  BaseWeight base;
  at::Tensor base_grad;  // [out, in] in full-parameter training, else undefined
  at::Tensor bias;       // [out]
  at::Tensor bias_grad;
  Lora lora;

  bool trains() const { return base_grad.defined() || lora.grad_b.defined(); }
  // Values that a forward pass keeps of each row for the backward pass: u, and DoRA's h.
  int64_t kept_width() const { return lora.rank + (lora.magnitude.defined() ? out : 0); }
};

// Linears of one input, in order: q, k and v, or gate and up; or one alone.
using LinearGroup = std::span<const Linear>;

// An RMS norm with a learned weight; `size` 0 where the family has none in this place.
struct Norm {
  std::string name;
  int64_t size = 0;
  at::Tensor weight;  // [size]
  at::Tensor grad;    // undefined when frozen
};

// down(activation(gate(x)) * up(x))
struct Mlp {
  std::vector<Linear> in;  // gate and up, or one linear with both as its parts
  Linear down;
};

struct Layer {
  Norm attention_norm;      // of the attention's input
  Norm attention_out_norm;  // of its output, before it joins the residual stream
  Norm mlp_norm;
  Norm mlp_out_norm;
  Norm q_norm;  // of a head, or of all heads of a token together
  Norm k_norm;
  std::vector<Linear> qkv;  // q, k and v, or one linear with all as its parts
  Linear o;
  std::optional<Linear> router;  // with experts
  std::vector<Mlp> mlps;         // one, or the experts

  std::vector<Linear*> linears();  // in a fixed order: qkv, o, router, gate, up, down
  std::vector<const Linear*> linears() const;
  std::vector<std::span<Linear>>
  groups();  // the same in the same order, those of one input at once
  std::vector<LinearGroup> groups() const;
  bool trains() const;
};

// Rows of a table that are trained alone, apart from the table (train/model/new_tokens.h).
struct TableRows {
  at::Tensor value;  // [rows, hidden] float32 masters
  at::Tensor grad;
};

struct Model {
  ModelConfig config;
  // Whether a block's activations between the residual stream and what joins it are bfloat16, and
  // A and B too in products: what matrix units and bfloat16 instructions want. Masters, gradients of what is trained
  // and the residual stream are float32 in any case. Of models that can be
  // (train/model/extended.h).
  bool narrow = false;
  // Whether the embedding stays in host memory when a device with its own has the model: the rows
  // of a batch are gathered there. Of models that can_embed_on_host().
  bool embeds_on_host = false;
  at::Tensor embedding;  // [vocab, hidden] of embedding_type
  at::Tensor embedding_grad;
  graft_float_type embedding_type = GRAFT_F32;
  Norm final_norm;
  at::Tensor head;  // [vocab, hidden]; the same tensor as `embedding` when tied
  graft_float_type head_operands = GRAFT_F32;  // as Linear::operands
  at::Tensor head_grad;  // of a tied head too: joins the embedding's at the end of a step
  // Of the added tokens; undefined where there are none, or the table is trained whole. Of a tied
  // head only a gradient, which joins the embedding's as above.
  TableRows embedding_rows;
  TableRows head_rows;
  std::vector<Layer> layers;
  std::vector<Parameter> trained;  // in a fixed order; values and gradients share the tensors above
  // Modules that are trained whole beside the adapter, or came with it (train/model/saved.h).
  std::vector<std::string> saved;

  std::vector<Linear*> linears();  // of all layers, in order
  std::vector<const Linear*> linears() const;
  bool trains_embedding() const {
    return embedding_grad.defined() || embedding_rows.grad.defined();
  }
  // A frozen table that is nothing else than the embedding, and that nothing rewrites.
  bool can_embed_on_host() const {
    return !config.tied_embeddings && !trains_embedding() && config.added.count() == 0;
  }
  bool trains_head() const { return head_grad.defined() || head_rows.grad.defined(); }
  bool quantized() const;     // any linear: a checkpoint may leave some of them dense
  bool base_changed() const;  // any linear: BaseWeight::changed
  int64_t parameter_count() const;
  int64_t trained_count() const;
  int64_t base_bytes() const;    // memory of the frozen or trained base
  int64_t mapped_bytes() const;  // of it, mapped from the quantized cache
};

// One tensor of the base by its name in a checkpoint.
struct BaseTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::Tensor* value = nullptr;
  at::Tensor* grad = nullptr;
  graft_float_type* type = nullptr;  // of a matrix that may be held in bfloat16; else it is float32
  Linear* linear = nullptr;  // whose weight it is; nullptr for norms, biases, embeddings and head
  int64_t added_rows = 0;    // the last ones of `shape`, which the checkpoint lacks

  std::vector<int64_t> stored_shape() const;  // in the checkpoint
  int64_t count() const;
  // Of a tensor that is not in 4 bits, whether it is there or not yet.
  int64_t bytes() const;
};

// Every tensor of the base, in a fixed order; without the head where it is tied.
std::vector<BaseTensor> base_tensors(Model& model);

// Names and shapes; no weights yet.
std::unique_ptr<Model> empty_model(const ModelConfig& config);

// Lets the products of the frozen matrices of a model without weights take operands of bfloat16
// with float32 sums: all linears but routers, whose choice of experts a rounding would turn, and
// the head. The embedding is held in bfloat16 too. Modules that `trained` names, as train_modules
// does, stay float32.
void round_operands(Model& model, const std::vector<std::string>& trained);

// W [out, in] in float32 as the linear's products take it: decoded from 4 bits, rounded to
// bfloat16. The weight itself where it is float32. Where the linear's weights lie.
at::Tensor weight_of(const Linear& linear);

// Makes every tensor of the base a trained Parameter. Errors: kUsage for a base in 4 bits or
// bfloat16, and for a language model that is one part of its checkpoint.
void train_everything(Model& model);

}  // namespace graft::train
