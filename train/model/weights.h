// Weights from and to Hugging Face directories.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "train/model/model.h"
#include "train/model/quantized_cache.h"

namespace graft::train {

enum class Precision { kFull, kNf4 };  // of the linears; embeddings, norms and head stay dense

// What the frozen products take (round_operands in model.h): GRAFT_F32 or GRAFT_BF16. Matrices that
// are held in bfloat16 are rounded piece by piece while they are read. Modules to be trained whole,
// by the names that train_modules takes, stay float32.
struct Rounding {
  graft_float_type operands = GRAFT_F32;
  std::vector<std::string> trained = {};
};

// Loads a directory: safetensors in F32, F16 or BF16, whole or in shards, or a bitsandbytes-4bit
// checkpoint. Files are read piece by piece, not mapped. With kNf4 each linear (a fused one as one
// weight) is quantized while it is read, so that no weight is ever whole in full precision; routers
// of experts stay as they are. Weights must be finite, and every tensor of a layer must be one that
// the model has. Where the directory has a SHA256SUMS, the weight files that it names must agree.
// Errors: kIo (missing file or shard); kData naming file and tensor (missing, surplus, shape,
// dtype, not finite or too large for bfloat16, a pickle, a digest that differs).
// With a cache, 4-bit weights of an earlier start are taken from there, or kept there.
std::unique_ptr<Model> load_model(const std::string& directory,
                                  Precision precision,
                                  const QuantizedCache& cache = {},
                                  const Rounding& rounding = {});

// The same with a config of the caller's in place of the directory's own.
std::unique_ptr<Model> load_model(const ModelConfig& config,
                                  const std::string& directory,
                                  Precision precision,
                                  const QuantizedCache& cache = {},
                                  const Rounding& rounding = {});

// The first blocks of a directory's model with embeddings, final norm and head: `config` is the
// directory's with fewer layers. What belongs to other blocks is not read.
std::unique_ptr<Model> load_first_layers(const ModelConfig& config,
                                         const std::string& directory,
                                         Precision precision,
                                         const Rounding& rounding = {});

// Checks the weight files' headers against the config: names, shapes and types, missing shards,
// surplus tensors. No weight is read. Errors: those of load_model, but for values and digests.
void check_weight_files(const ModelConfig& config, const std::string& directory);

// The weights of a directory's linears one by one in full precision, for a model that was loaded
// from it in 4 bits.
class OriginalWeights {
 public:
  // Errors: those of load_model; kUsage for a checkpoint that is in 4 bits itself.
  explicit OriginalWeights(const std::string& directory);
  ~OriginalWeights();

  at::Tensor read(const Linear& linear) const;  // [out, in], float32

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A model of the directory's config.json with fresh weights: normal(0, initializer_range) matrices,
// norms that change nothing, biases 0.
std::unique_ptr<Model> make_model(const std::string& directory, uint64_t seed);
std::unique_ptr<Model> make_model(const ModelConfig& config, uint64_t seed);

// A weight [out, in] of float32 in NF4, as load_model quantizes it. `where` names it in errors.
BaseWeight quantize_weight(const at::Tensor& weight, const std::string& where);

// Writes the checkpoint of `directory` in 4 bits with the model's own 4-bit weights, those that an
// adapter changed when it began, to a directory `out` that load_model, transformers and
// bitsandbytes read. Errors: those of adapters::quantize_directory.
void save_changed_base(const Model& model, const std::string& directory, const std::string& out);

// Writes base weights as a Hugging Face directory beside the files of `template_directory` (config,
// tokenizer). Dense models only.
void save_model(const Model& model,
                const std::string& template_directory,
                const std::string& directory);

}  // namespace graft::train
