#include "train/job/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "data/text/mask.h"

namespace graft::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double log_sum_exp(std::span<const float> logits, double scale) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp((static_cast<double>(logit) - largest) * scale);
  }
  return largest * scale + std::log(sum);
}

// One draw from softmax(logits / temperature) restricted to the top_p nucleus
// (Holtzman et al., arXiv 1904.09751).
int32_t sample(std::span<const float> logits, const GenerateOptions& options, double uniform) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const double scale = 1.0 / options.temperature;
  const double normaliser = log_sum_exp(logits, scale);
  std::vector<double> cumulative;
  double sum = 0;
  for (const int32_t id : order) {
    sum += std::exp(static_cast<double>(logits[static_cast<size_t>(id)]) * scale - normaliser);
    cumulative.push_back(sum);
    if (sum >= options.top_p) {
      break;
    }
  }
  const double place = uniform * sum;
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), place);
  const auto index =
      std::min(static_cast<size_t>(found - cumulative.begin()), cumulative.size() - 1);
  return order[index];
}

// The special token that a trained turn ends in, asked of a short conversation.
std::optional<int32_t> template_stop(const ModelText& text) {
  if (!text.chat) return std::nullopt;
  data::Record record;
  record.messages.resize(2);
  record.messages[0].role = "user";
  record.messages[0].content = "a";
  record.messages[1].role = "assistant";
  record.messages[1].content = "b";
  const data::Document document =
      data::encode_record(record, *text.tokenizer, &*text.chat, {}).front();
  // A template that refuses this conversation names no stop token.
  for (size_t i = document.ids.size(); i-- > 0;) {
    if (document.loss[i] == 0) continue;
    const int32_t id = document.ids[i];
    return text.tokenizer->is_special(id) ? std::optional(id) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

Generator::Generator(Model& model, int64_t max_positions, const Device& device)
    : model_(model),
      decoder_(
          model,
          StepPlan::of(model, std::min(max_positions, model.config.max_positions), Keep::kNothing),
          device),
      cache_(model.config, decoder_.max_tokens(), device),
      logits_(static_cast<size_t>(model.config.vocab_size)) {}

const float* Generator::forward_text(const std::vector<int32_t>& text) {
  const auto length = static_cast<int64_t>(text.size());
  if (cache_.serves(model_.config, length)) {
    batch_.set_single(text.back(), static_cast<int32_t>(cache_.positions()));
    return decoder_.forward(batch_, 0, &cache_);
  }
  const std::vector<uint8_t> no_loss(text.size(), 0);
  const float weights[1] = {0.0F};
  cache_.clear();
  batch_.clear();
  batch_.add(text, no_loss, weights, 0);
  return decoder_.forward(batch_, 0, &cache_) + (length - 1) * model_.config.hidden_size;
}

Generated Generator::generate(std::span<const int32_t> prompt,
                              const GenerateOptions& options,
                              const std::function<void(int32_t)>& on_token) {
  const int64_t room = decoder_.max_tokens() - static_cast<int64_t>(prompt.size());
  if (prompt.empty() || room < 1) {
    fail(ExitCode::kData,
         "a prompt of " + std::to_string(prompt.size()) + " tokens; expected 1.." +
             std::to_string(decoder_.max_tokens() - 1),
         "", "shorten the prompt");
  }
  const Philox random(options.seed, xxh3_64("generate"));
  Generated result;
  std::vector<int32_t> text(prompt.begin(), prompt.end());
  cache_.clear();
  auto start = Clock::now();
  const float* residual = forward_text(text);
  const int64_t limit = std::min(options.max_new_tokens, room);
  while (static_cast<int64_t>(result.ids.size()) < limit) {
    decoder_.head_logits(residual, 1, logits_.data());
    const auto best =
        static_cast<int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
    const int32_t id =
        options.temperature > 0
            ? sample(logits_, options, static_cast<double>(random.uniform(result.ids.size())))
            : best;
    if (result.ids.empty()) {
      result.first_token_s = seconds_since(start);
      start = Clock::now();
    }
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
      result.stopped = true;
      break;
    }
    result.ids.push_back(id);
    result.logprobs.push_back(static_cast<double>(logits_[static_cast<size_t>(id)]) -
                              log_sum_exp(logits_, 1.0));
    if (on_token) {
      on_token(id);
    }
    if (static_cast<int64_t>(result.ids.size()) == limit) {
      break;
    }
    text.push_back(id);
    residual = forward_text(text);
  }
  const auto further = static_cast<double>(std::max<size_t>(result.ids.size(), 2) - 1);
  result.per_token_s = seconds_since(start) / further;
  return result;
}

std::vector<int32_t> stop_ids(const std::string& model_dir, const ModelText& text) {
  std::vector<int32_t> ids;
  const auto add = [&](const Json& id, const std::string& path) {
    if (id.as_int() < 0 || id.as_int() > INT32_MAX) {
      fail(ExitCode::kData, "eos_token_id must be a token id, got " + dump_json(id), path);
    }
    ids.push_back(static_cast<int32_t>(id.as_int()));
  };
  if (text.tokenizer->eos_id()) {
    ids.push_back(*text.tokenizer->eos_id());
  }
  if (const std::optional<int32_t> stop = template_stop(text)) ids.push_back(*stop);
  const std::string path = join_path(model_dir, "generation_config.json");
  if (file_exists(path)) {
    const Json config = read_json_file(path);
    const Json* eos = config.find("eos_token_id");
    if (eos != nullptr && eos->is_int()) {
      add(*eos, path);
    } else if (eos != nullptr && eos->is_array()) {
      for (const Json& id : eos->as_array()) {
        add(id, path);
      }
    }
  }
  return ids;
}

}  // namespace graft::train
