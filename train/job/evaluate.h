// Loss, perplexity and accuracy over a token store; exact match of generated answers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/text/token_store.h"
#include "train/engine/decoder.h"

namespace graft::train {

struct EvalSums {
  double loss_sum = 0;  // of weight * -log p
  double weight_sum = 0;
  int64_t supervised = 0;
  int64_t correct = 0;

  double loss() const { return weight_sum > 0 ? loss_sum / weight_sum : 0; }
  double perplexity() const;
  double accuracy() const {
    return supervised > 0 ? static_cast<double>(correct) / static_cast<double>(supervised) : 0;
  }
  void add(const EvalSums& other);
};

struct SourceSums {
  std::string name;  // the input file
  EvalSums sums;
};

struct EvalResult {
  EvalSums all;
  std::vector<SourceSums> sources;  // one per input file of the store, in its order
  int64_t documents = 0;
  int64_t tokens = 0;
};

// Token-weighted loss of every document. Documents longer than the decoder's max_tokens are an
// error (kData). `progress(done, total)` counts documents; may be empty.
EvalResult evaluate(Decoder& decoder,
                    const data::TokenStore& store,
                    const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace graft::train
