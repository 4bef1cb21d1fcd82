// A Hugging Face directory written from another one, tensor by tensor.
//
// Every output file corresponds to an input file, so that shards stay shards; tensors stream from a
// mapping of the input through `write`, so memory does not grow with the model. The directory
// appears whole under its name or not at all.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/safetensors.h"
#include "kernels/status.h"  // graft_float_type

namespace graft::adapters {

using ByteSink = std::function<void(std::span<const std::byte>)>;

struct OutputTensor {
  TensorSpec spec;
  std::function<void(const ByteSink&)> write;  // gives the sink every byte, in order
};

// The tensors of the output file that corresponds to `file`.
using TensorPlan = std::function<std::vector<OutputTensor>(const SafetensorsFile& file)>;

// A tensor that is copied as it is.
OutputTensor copied_tensor(const SafetensorsFile& file, const TensorInfo& tensor);

// Writes `out` from `model`: planned tensors, a shard index where the model has one, `config` as
// config.json, and the model's other files (tokenizer, templates, generation settings) byte for
// byte. The tokenizer's are those of `tokenizer` (a directory, or empty: the
// model). Pickled weights are left out. Reports progress as `label`. Errors: kUsage when `out`
// exists, kIo.
void write_checkpoint(const SafetensorsDirectory& model,
                      const std::string& out,
                      const Json& config,
                      const TensorPlan& plan,
                      const std::string& label,
                      const std::string& tokenizer = "");

// Whether a directory holds a tokenizer (tokenizer.json or tokenizer.model): an adapter's with one
// of its own was trained with that.
bool has_tokenizer(const std::string& directory);

// Copies a tokenizer's files and its chat template, those that `from` has.
void copy_tokenizer(const std::string& from, const std::string& to);

// A config.json with another vocab_size, wherever it stands.
Json with_vocab_size(const Json& config, int64_t vocab_size);

// config.json of a model directory. Errors: kIo, kData.
Json read_config(const SafetensorsDirectory& model);

// The type of a tensor's values. Errors: kData for a dtype that is not F32, BF16 or F16.
graft_float_type float_type(const SafetensorsFile& file, const TensorInfo& tensor);

// Values [begin, begin + out.size()) of a floating tensor as float32, read on all threads.
// Errors: those of float_type, kIo.
void read_floats(const SafetensorsFile& file,
                 const TensorInfo& tensor,
                 int64_t begin,
                 std::span<float> out);

// Converts float32 values to a floating dtype, rounded once, and gives their bytes to the sink.
// Errors: kData for a dtype that is not F32, BF16 or F16.
void write_floats(std::span<const float> values, DType dtype, const ByteSink& sink);

}  // namespace graft::adapters
