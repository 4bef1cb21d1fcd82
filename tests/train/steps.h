// The gradients of one optimizer step, computed in one way and in another.
#pragma once

#include <cstring>
#include <vector>

#include "core/hash.h"
#include "tests/train/catch_aten.h"
#include "train/engine/arrangement.h"

namespace graft::test {

// Packed rows [begin, end) of the documents' lengths, `row_tokens` slots each. id(random, at) and
// loss(at, place) give the token at `at` in the step and `place` in its document.
template <typename Id, typename Loss>
train::Batch packed_rows(const std::vector<std::vector<int64_t>>& lengths,
                         size_t begin,
                         size_t end,
                         int64_t row_tokens,
                         const std::vector<float>& weights,
                         const Id& id,
                         const Loss& loss) {
  const Philox random(3, 1);
  train::Batch batch;
  batch.clear();
  for (size_t row = begin; row < end; ++row) {
    batch.begin_row();
    auto index = static_cast<int64_t>(row) * row_tokens;
    for (const int64_t length : lengths[row]) {
      std::vector<int32_t> ids;
      std::vector<uint8_t> losses;
      for (int64_t t = 0; t < length; ++t) {
        ids.push_back(id(random, index + t));
        losses.push_back(static_cast<uint8_t>(loss(index + t, t)));
      }
      batch.add(ids, losses, weights, index);
      index += length;
    }
  }
  return batch;
}

// One of the first `count` ids.
inline int32_t random_id(const Philox& random, int64_t at, uint64_t count) {
  return static_cast<int32_t>(random.below(static_cast<uint64_t>(at), count));
}

struct Step {
  double loss = 0;
  std::vector<at::Tensor> gradients;
};

inline Step step_of(train::Model& model,
                    const train::StepRows& rows,
                    const train::Arrangement& how) {
  const train::HeadResult sums = train::compute_step(model, rows, how);
  Step step{sums.loss_sum, {}};
  for (const train::Parameter& parameter : model.trained)
    step.gradients.push_back(parameter.grad.clone());
  return step;
}

inline void check_same(const train::Model& model, const Step& a, const Step& b) {
  CHECK(a.loss == b.loss);
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    CAPTURE(model.trained[i].name);
    CHECK(std::memcmp(a.gradients[i].data_ptr(), b.gradients[i].data_ptr(),
                      a.gradients[i].nbytes()) == 0);
  }
}

}  // namespace graft::test
