// Reading bitsandbytes' 4-bit checkpoints: NF4 and FP4 weights as views for kernels/nf4.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/safetensors.h"
#include "kernels/nf4.h"

namespace graft::adapters {

// One packed matrix of a checkpoint; borrows the directory's mapping.
class Nf4Tensor {
 public:
  Nf4Tensor(Nf4Tensor&&) = default;
  Nf4Tensor& operator=(Nf4Tensor&&) = default;
  Nf4Tensor(const Nf4Tensor&) = delete;  // the view points into the object's own vectors
  Nf4Tensor& operator=(const Nf4Tensor&) = delete;
  const std::vector<int64_t>& shape() const { return shape_; }  // of the weight: [out, in]
  int64_t count() const { return view_.count; }
  DType dtype() const { return dtype_; }  // what the file says it decodes to
  bool nested() const { return view_.absmax8 != nullptr; }
  const graft_nf4_weight& view() const { return view_; }
  // The packed bytes, and the nested absmax bytes, read into memory without the mapping.
  void read_packed(std::span<uint8_t> out) const;   // [packed bytes of count()]
  void read_absmax8(std::span<uint8_t> out) const;  // [blocks]; nested() only

 private:
  friend std::optional<Nf4Tensor> find_nf4(const SafetensorsDirectory&, std::string_view);
  Nf4Tensor() = default;
  graft_nf4_weight view_{};
  SafetensorsDirectory::Entry packed_entry_{}, absmax_entry_{};
  std::vector<int64_t> shape_;
  DType dtype_ = DType::kBF16;
  std::vector<float> absmax_;  // copied: a file may place it at any byte
  std::vector<float> nested_absmax_;
};

// The packed weight of `module` ("model.layers.0.mlp.up_proj"), or nothing when the directory holds
// it in another form. Errors: kData, naming the tensor, for other types than NF4 and FP4, two
// quant_states, a table that is not its type's own, sizes that do not agree, unknown keys in the
// quant_state, missing or extra tensors.
std::optional<Nf4Tensor> find_nf4(const SafetensorsDirectory& directory, std::string_view module);

// The quant_state of a packed weight as bitsandbytes writes it, to the byte.
struct QuantState {
  graft_quant4_type type = GRAFT_NF4;
  int block_size = 64;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  std::optional<float> nested_offset;  // with double quantization
};
std::string quant_state_json(const QuantState& state);

// "nf4" or "fp4", and back; nothing for another name.
std::string_view quant_type_name(graft_quant4_type type);
std::optional<graft_quant4_type> quant_type_of(std::string_view name);

// XXH3 over the packed bytes and the scales: what a 4-bit weight decodes from.
uint64_t nf4_digest(const graft_nf4_weight& weight);

// Names of the tensors that belong to a packed `<module>.weight`.
bool is_quantization_tensor(std::string_view name);

}  // namespace graft::adapters
