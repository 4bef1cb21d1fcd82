#include "train/job/export.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

#include "adapters/checkpoint.h"
#include "adapters/fit.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"  // format_bytes
#include "train/model/weights.h"

namespace graft::train {
namespace {

// The directory of a base that the run changed, beside the adapter's.
constexpr const char* kOwnBase = "base";

Json file_sizes(const std::string& directory) {
  Json sizes = Json::object();
  for (const std::string& name : list_directory(directory)) {
    sizes.set(name, file_size(join_path(directory, name)));
  }
  return sizes;
}

// Calls visit(logits, values) for the logits of the first documents, a chunk of rows at a time:
// with a vocabulary of 128k all of them would take gigabytes.
template <typename Visit>
void visit_logits(const Model& model,
                  Decoder& decoder,
                  const data::TokenStore& store,
                  const Visit& visit) {
  Batch batch;
  batch.clear();
  for (int64_t document = 0; document < store.document_count(); ++document) {
    if (batch.tokens() + store.length(document) > decoder.max_tokens()) {
      break;
    }
    batch.add(store.tokens(document), store.loss(document), store.weights(), 0);
  }
  const float* residual = decoder.forward(batch, 0);
  constexpr int64_t kRows = 256;
  std::vector<float> logits(static_cast<size_t>(kRows * model.config.vocab_size));
  for (int64_t begin = 0; begin < batch.tokens(); begin += kRows) {
    const int64_t rows = std::min(kRows, batch.tokens() - begin);
    decoder.head_logits(residual + begin * model.config.hidden_size, rows, logits.data());
    visit(
        std::span<const float>(logits).first(static_cast<size_t>(rows * model.config.vocab_size)));
  }
}

uint64_t digest_logits(const Model& model, Decoder& decoder, const data::TokenStore& store) {
  uint64_t digest = 0;
  visit_logits(model, decoder, store, [&](std::span<const float> logits) {
    digest = xxh3_64({reinterpret_cast<const char*>(logits.data()), logits.size_bytes()}, digest);
  });
  return digest;
}

// The first rows of the logits.
std::vector<float> first_logits(const Model& model,
                                Decoder& decoder,
                                const data::TokenStore& store) {
  std::vector<float> first;
  visit_logits(model, decoder, store, [&](std::span<const float> logits) {
    if (first.empty()) first.assign(logits.begin(), logits.end());
  });
  return first;
}

[[noreturn]] void refuse_reloaded(const std::string& directory) {
  fail(ExitCode::kBug, "the adapter read back from its files gives other logits", directory,
       "please report this; the checkpoints of the run are good");
}

// What the trained adapter gives, to be compared with the one that was read back from its files.
// Equal to the bit, but where the adapter began by changing W: then W is made again by a sum,
// rounded.
class ReloadCheck {
 public:
  ReloadCheck(Model& model, Decoder& decoder, const data::TokenStore& store)
      : model_(model), decoder_(decoder), store_(store) {
    const std::vector<Linear*> linears = model.linears();
    exact_ = std::none_of(linears.begin(), linears.end(),
                          [](const Linear* linear) { return linear->lora.initial_a.defined(); });
    if (exact_) {
      digest_ = digest_logits(model, decoder, store);
    } else {
      logits_ = first_logits(model, decoder, store);
    }
  }

  // Puts the adapter of `directory` into the model, which lies on the host, and compares. The
  // trained one goes first: what the files lack must not pass for what was read.
  std::string run(PlacedModel& placed, const std::string& directory) const {
    remove_adapter(model_);
    load_adapter(model_, directory);
    placed.place();
    const std::string text = exact_ ? compare_digest(directory) : compare_logits(directory);
    placed.take_back();
    return text;
  }

 private:
  std::string compare_digest(const std::string& directory) const {
    if (digest_logits(model_, decoder_, store_) != digest_) refuse_reloaded(directory);
    return "logits equal";
  }

  std::string compare_logits(const std::string& directory) const {
    // The pairs are of twice the rank.
    Decoder wider(model_, StepPlan::of(model_, decoder_.max_tokens(), Keep::kNothing),
                  decoder_.device());
    const std::vector<float> reloaded = first_logits(model_, wider, store_);
    float largest = 0, difference = 0;
    for (size_t i = 0; i < logits_.size(); ++i) {
      largest = std::max(largest, std::fabs(logits_[i]));
      difference = std::max(difference, std::fabs(logits_[i] - reloaded[i]));
    }
    constexpr float kBound = 1e-3F;
    if (!(difference <= kBound * largest)) refuse_reloaded(directory);
    char text[64];
    std::snprintf(text, sizeof text, "logits within %.1e of the largest",
                  static_cast<double>(difference / largest));
    return text;
  }

  Model& model_;
  Decoder& decoder_;
  const data::TokenStore& store_;
  bool exact_ = true;
  uint64_t digest_ = 0;
  std::vector<float> logits_;
};

// The base whose 4-bit weights the adapter changed; the adapter in `adapter` names it.
Json export_base(const Model& model,
                 const TrainConfig& config,
                 const std::string& adapter,
                 const std::string& output_dir) {
  const std::string target = join_path(output_dir, kOwnBase);
  const std::string temporary = join_path(output_dir, ".tmp-base");
  remove_tree(temporary);
  save_changed_base(model, config.base_model, temporary);
  adapters::fit_adapter(adapters::read_peft(adapter), SafetensorsDirectory(temporary));
  remove_tree(target);
  rename_path(temporary, target);
  int64_t bytes = 0;
  for (const auto& [name, size] : file_sizes(target).as_object()) bytes += size.as_int();
  return Json::object({{"directory", target}, {"bytes", bytes}});
}

}  // namespace

Json export_result(Model& model,
                   PlacedModel& placed,
                   const TrainConfig& config,
                   const std::string& text_directory,
                   Decoder& decoder,
                   const data::TokenStore& store,
                   const std::string& output_dir) {
  const bool full = config.method == Method::kFull;
  const std::string target = join_path(output_dir, full ? "model" : "adapter");
  const std::string temporary = join_path(output_dir, full ? ".tmp-model" : ".tmp-adapter");
  remove_tree(temporary);
  Json result = Json::object({{"directory", target}});
  if (full) {
    placed.take_back();
    save_model(model, config.base_model, temporary);
    const std::string path = join_path(temporary, "config.json");
    if (model.config.added.count() > 0) {
      const Json grown = adapters::with_vocab_size(read_json_file(path), model.config.vocab_size);
      write_file_atomically(path, dump_json(grown, {.indent = 2}) + "\n");
    }
    result.set("sha256", sha256_file(join_path(temporary, "model.safetensors")));
  } else {
    const bool own_base = model.base_changed();
    const std::string base = own_base ? kOwnBase : base_name(config.base_model);
    const ReloadCheck reload(model, decoder, store);
    placed.take_back();
    result.set("sha256", save_adapter(model, config.lora, base, temporary));
    result.set("reload", reload.run(placed, temporary));
    if (own_base) result.set("base", export_base(model, config, temporary, output_dir));
  }
  if (model.config.added.count() > 0) adapters::copy_tokenizer(text_directory, temporary);
  remove_tree(target);
  rename_path(temporary, target);
  result.set("files", file_sizes(target));
  return result;
}

std::vector<std::vector<std::string>> exported_files(const Json& exported) {
  std::vector<std::vector<std::string>> rows = {{"file", "size"}};
  for (const auto& [name, bytes] : exported.at("files").as_object()) {
    rows.push_back(
        {join_path(exported.at("directory").as_string(), name), format_bytes(bytes.as_int())});
  }
  if (const Json* base = exported.find("base")) {
    rows.push_back({base->at("directory").as_string(), format_bytes(base->at("bytes").as_int())});
  }
  return rows;
}

}  // namespace graft::train
