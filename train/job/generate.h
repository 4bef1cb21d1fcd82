// Text from a model, token by token, with a cache of keys and values.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "train/engine/decoder.h"
#include "train/job/dataset.h"

namespace graft::train {

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  double temperature = 0;  // 0 = greedy: the largest logit, the lower id on a tie
  double top_p = 1;        // sample from the smallest set of tokens with this probability
  uint64_t seed = 0;
  std::vector<int32_t> stop_ids;  // end the text; the stop token is not part of it
};

struct Generated {
  std::vector<int32_t> ids;      // without the stop token
  std::vector<double> logprobs;  // log softmax of each id, before temperature and top-p
  bool stopped = false;          // by a stop token (else by max_new_tokens or the context's end)
  double first_token_s = 0;      // time to the first token: the prompt's pass
  double per_token_s = 0;        // mean time of each further token
};

class Generator {
 public:
  // Buffers for prompt and answer of up to `max_positions` tokens together, and never more than the
  // model's max_position_embeddings: there the answer ends.
  // The model lies where the device can reach it.
  Generator(Model& model, int64_t max_positions, const Device& device = {});

  int64_t max_positions() const { return decoder_.max_tokens(); }

  // Continues `prompt` (at least one token). `on_token(id)` is called as each token is decided.
  // Errors: kData (a prompt that leaves no room).
  Generated generate(std::span<const int32_t> prompt,
                     const GenerateOptions& options,
                     const std::function<void(int32_t)>& on_token = {});

 private:
  // The last row of the residual stream of `text`, whose tokens but the last one the cache holds;
  // with an empty cache, or one whose keys turn otherwise for a text of this length, of all of it.
  const float* forward_text(const std::vector<int32_t>& text);

  Model& model_;
  Decoder decoder_;
  KvCache cache_;
  Batch batch_;
  std::vector<float> logits_;
};

// The ids that end a text: the tokenizer's EOS, eos_token_id of generation_config.json, and the
// special token in which the chat template ends an assistant's turn (Gemma's <end_of_turn> is no
// EOS).
std::vector<int32_t> stop_ids(const std::string& model_dir, const ModelText& text);

}  // namespace graft::train
