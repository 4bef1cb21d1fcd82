// 4-bit checkpoints: a Hugging Face directory to the files that bitsandbytes loads, and back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "kernels/nf4.h"

namespace graft::adapters {

// A 4-bit weight that owns its arrays.
struct Nf4Owned {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;  // empty when nested
  std::vector<uint8_t> absmax8;
  std::vector<float> nested_absmax;
  float offset = 0;
  int64_t count = 0;
  int block_size = 0;
  graft_quant4_type type = GRAFT_NF4;
  graft_nf4_weight view() const;
};

struct Nf4Options {
  int block_size = 64;
  bool double_quant = true;
  graft_quant4_type type = GRAFT_NF4;
};

// Quantizes a floating tensor of a file. Errors: kData, naming the tensor, for values that are not
// finite and dtypes that are not floating.
Nf4Owned quantize_tensor(const SafetensorsFile& file,
                         const TensorInfo& tensor,
                         const Nf4Options& options);

// The same of float32 values in memory; `where` names them in errors.
Nf4Owned quantize_values(std::span<const float> values,
                         const Nf4Options& options,
                         const std::string& where);

// Elements [begin, end) of a weight, decoded to float32. Any begin.
void decode_range(const graft_nf4_weight& weight,
                  int64_t begin,
                  int64_t end,
                  std::vector<float>& out);

// Whether this tensor is quantized: the matrix of a linear layer, that is a two-dimensional
// "….weight" which is neither an embedding nor the output head nor the router of a mixture of
// experts (transformers 5 keeps routers apart from linears, and bitsandbytes leaves them alone).
bool is_quantized_weight(const TensorInfo& tensor);

struct QuantizeReport {
  int64_t quantized_tensors = 0;
  int64_t copied_tensors = 0;
  int64_t weights = 0;       // in quantized tensors
  int64_t bytes_before = 0;  // of all tensors
  int64_t bytes_after = 0;
  // Root mean square of decoded - original over that of the original, of what was quantized here.
  double relative_error = 0;
};

// A tensor's weight where it is in 4 bits already, in the same Nf4Options; borrowed for the call.
using PackedWeights = std::function<std::optional<graft_nf4_weight>(const std::string& tensor)>;

// Writes `out` as a checkpoint that bitsandbytes and transformers load: kernels/nf4.h for the
// arrays, all tensors and JSON bytes as bitsandbytes writes them, quantization_config in
// config.json. Embeddings, head, norms and biases are copied. Needs one byte per 64 weights of a
// shard and one matrix in memory. A weight that `packed` has is written in place of the
// checkpoint's own. Errors: kUsage (out exists), kData (already quantized, not finite), kIo.
QuantizeReport quantize_directory(const std::string& model,
                                  const std::string& out,
                                  const Nf4Options& options,
                                  const PackedWeights& packed = {});

// Writes `out` as a plain directory whose weights are the decoded ones of a 4-bit checkpoint, each
// in the dtype that it names. Errors: kUsage, kData (nothing is quantized), kIo.
void decode_directory(const std::string& model, const std::string& out);

}  // namespace graft::adapters
