// What the programs for tests/peers read and write: rows of token ids, and tensors by name.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/safetensors.h"
#include "train/engine/batch.h"
#include "train/engine/tensor.h"

namespace graft::test {

inline std::vector<int64_t> integers(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.at(name);
  if (info.dtype != DType::kI64 || info.shape.size() != 2) {
    fail(ExitCode::kData, "expected I64 [rows, T]", file.path() + ": " + name);
  }
  std::vector<int64_t> values(static_cast<size_t>(info.count()));
  file.read(info, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

// input_ids and labels, I64 [steps * rows, T], as one batch for each step; a label of -100 is not
// trained on.
inline std::vector<train::Batch> read_batches(const SafetensorsFile& file, int64_t steps) {
  const std::vector<int64_t> ids = integers(file, "input_ids"), labels = integers(file, "labels");
  const std::vector<int64_t>& shape = file.at("input_ids").shape;
  const auto length = static_cast<size_t>(shape[1]);
  const auto rows = static_cast<size_t>(shape[0] / steps);
  const float weights[2] = {0.0F, 1.0F};
  std::vector<train::Batch> batches(static_cast<size_t>(steps));
  for (size_t step = 0; step < batches.size(); ++step) {
    batches[step].clear();
    for (size_t row = 0; row < rows; ++row) {
      const size_t begin = (step * rows + row) * length;
      std::vector<int32_t> row_ids;
      std::vector<uint8_t> loss;
      for (size_t t = begin; t < begin + length; ++t) {
        row_ids.push_back(static_cast<int32_t>(ids[t]));
        loss.push_back(labels[t] != -100 ? 1 : 0);
      }
      batches[step].add(row_ids, loss, weights, static_cast<int64_t>(row * length));
    }
  }
  return batches;
}

inline TensorBytes bytes_of(const std::string& name, const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  return {{name, DType::kF32, {sizes.begin(), sizes.end()}},
          std::as_bytes(std::span(train::f32(tensor), static_cast<size_t>(tensor.numel())))};
}

}  // namespace graft::test
