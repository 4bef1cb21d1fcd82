#include "train/job/doctor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include <omp.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"
#include "train/engine/device.h"
#include "train/engine/optimizer.h"
#include "train/engine/tensor.h"
#include "train/job/checkpoint.h"
#include "train/job/dataset.h"
#include "train/job/extent.h"
#include "train/job/sample.h"
#include "train/job/scratch.h"
#include "train/job/vocabulary.h"
#include "train/model/init/initialisation.h"
#include "train/model/lora.h"

namespace graft::train {
namespace {

// Four rows of two documents: 512 tokens, enough for tiles and chains of sums (64 and 256) to end
// inside them.
constexpr size_t kRows = 4;
constexpr int64_t kRowTokens = 128;
constexpr int64_t kRecords = 64;  // of each dataset
// B is moved away from zero by at most this much, so that every product matters.
constexpr float kMoved = 0.02F;
// Where an adapter begins by changing W, or divides by a norm, the start is equal up to rounding:
// the bound that a reloaded adapter has to keep as well (train/job/export.cpp).
constexpr float kRounded = 1e-3F;

std::string sum_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

uint64_t digest(const at::Tensor& tensor) {
  return xxh3_64({static_cast<const char*>(tensor.data_ptr()), tensor.nbytes()});
}

// The bits of a step's loss and gradients. Digests: copies of the gradients of a large model would
// not fit beside it.
struct Fingerprint {
  double loss = 0;
  std::vector<uint64_t> tensors;
};

Fingerprint fingerprint(const Model& model, const HeadResult& sums) {
  Fingerprint print{sums.loss_sum, {}};
  for (const Parameter& parameter : model.trained) print.tensors.push_back(digest(parameter.grad));
  return print;
}

// What differs, "" when nothing does.
std::string difference(const Model& model, const Fingerprint& got, const Fingerprint& expected) {
  std::string text;
  if (got.loss != expected.loss) {
    text = "loss " + sum_text(got.loss) + " against " + sum_text(expected.loss);
  }
  size_t first = 0, count = 0;
  for (size_t i = got.tensors.size(); i-- > 0;) {
    if (got.tensors[i] == expected.tensors[i]) continue;
    first = i;
    ++count;
  }
  if (count == 0) return text;
  return text + (text.empty() ? "" : "; ") + std::to_string(count) + " of " +
         std::to_string(got.tensors.size()) + " gradients, first that of " +
         model.trained[first].name;
}

struct Outcome {
  Verdict verdict = Verdict::kPassed;
  std::string result;
};

// One way to compute the step that the others are compared with.
struct Variant {
  std::string name;
  Arrangement how;
};

class Doctor {
 public:
  Doctor(const TrainConfig& config, const DoctorOptions& options)
      : config_(config),
        engine_(options.engine),
        vocabulary_(read_vocabulary(config)),
        extent_(choose_extent(
            config, vocabulary_.model, options.layers, static_cast<int64_t>(kRows), kRowTokens)) {}

  DoctorReport run();

 private:
  Outcome mask();
  Outcome start();
  Outcome finite();
  Outcome accumulation() const;
  Outcome packing();
  Outcome plan();
  Outcome threads() const;
  Outcome head() const;
  Outcome decoded();
  Outcome resume();

  void check(const char* name, std::string compared, const std::function<Outcome()>& body);
  HeadResult step(const Arrangement& how) const { return engine_.step(*model_, rows_, how); }
  Outcome compare(const std::vector<Variant>& variants) const;
  void add_adapter();
  std::string extent_text() const;

  const TrainConfig& config_;
  const DoctorEngine& engine_;
  Vocabulary vocabulary_;
  Extent extent_;
  int64_t row_tokens_ = extent_.request.sequence_len;
  std::unique_ptr<Model> model_;
  ModelText text_;
  Sample sample_;
  StepRows rows_;
  Fingerprint expected_;  // of the plainest arrangement
  DoctorReport report_;
  Progress progress_{"doctor", 10, "checks"};
};

void Doctor::check(const char* name, std::string compared, const std::function<Outcome()>& body) {
  progress_.update(static_cast<int64_t>(report_.checks.size()), name);
  const auto start = std::chrono::steady_clock::now();
  Outcome outcome;
  try {
    outcome = body();
  } catch (const Error& error) {
    // The engine refuses its own result.
    if (error.code() != ExitCode::kBug && error.code() != ExitCode::kNumeric) throw;
    outcome = {Verdict::kFailed, error.text().what};
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  report_.checks.push_back(
      {name, std::move(compared), outcome.verdict, outcome.result, taken.count()});
}

Outcome Doctor::compare(const std::vector<Variant>& variants) const {
  for (const Variant& variant : variants) {
    const std::string differs =
        difference(*model_, fingerprint(*model_, step(variant.how)), expected_);
    if (!differs.empty()) return {Verdict::kFailed, variant.name + ": " + differs};
  }
  return {Verdict::kPassed, "equal to the bit"};
}

// Every record is trained somewhere, and its turns end in a stop token that is trained: else the
// model never learns to stop.
Outcome Doctor::mask() {
  sample_ = read_sample(config_, text_, kRecords);
  const Sample& s = sample_;
  if (s.documents.empty()) {
    return {Verdict::kFailed,
            "nothing to train on" + (s.first_refusal.empty() ? "" : ": " + s.first_refusal)};
  }
  const double share = 100.0 * static_cast<double>(s.supervised) / static_cast<double>(s.tokens);
  std::string text = format_fixed(share, 1) + " % of " + format_count(s.tokens) + " tokens trained";
  if (s.refused > 0) text += ", " + format_count(s.refused) + " refused (" + s.first_refusal + ")";
  if (s.turns > 0 && config_.mask.train_on_eos != data::TrainEos::kNone) {
    text += ", " + format_count(s.turns - s.turns_without_stop) + " of " + format_count(s.turns) +
            " turns end in a trained stop token";
    if (config_.mask.train_on_eos == data::TrainEos::kTurn && s.turns_without_stop > 0) {
      return {Verdict::kFailed, text};
    }
  }
  return {s.refused > 0 ? Verdict::kFailed : Verdict::kPassed, text};
}

// Also puts the adapter on, whose beginning it looks at, and then moves it away from there.
Outcome Doctor::start() {
  if (config_.method == Method::kFull) return {Verdict::kSkipped, "no adapter: all is trained"};
  const Batch batch = sample_row(sample_, 2, row_tokens_);
  const std::vector<float> base = engine_.logits(*model_, batch);
  add_lora(*model_, config_.lora, config_.seed, config_.base_model);
  const Initialisation& init = *find_initialisation(config_.lora.init).row;
  if (init.needs_4bit || (init.changes_base && model_->quantized())) {
    return {Verdict::kSkipped,
            std::string(init.name) + " begins nearer to the weights before they were quantized"};
  }
  const std::vector<float> adapted = engine_.logits(*model_, batch);
  const bool rounds = config_.lora.dora || init.changes_base;
  float largest = 0, off = 0;
  for (size_t i = 0; i < base.size(); ++i) {
    largest = std::max(largest, std::fabs(base[i]));
    off = std::max(off, std::fabs(base[i] - adapted[i]));
  }
  const bool same = std::memcmp(base.data(), adapted.data(), base.size() * sizeof(float)) == 0;
  if (same) return {Verdict::kPassed, "equal to the bit"};
  const std::string text = "largest difference " + sum_text(static_cast<double>(off)) +
                           " of logits up to " + sum_text(static_cast<double>(largest));
  return {rounds && off <= kRounded * largest ? Verdict::kPassed : Verdict::kFailed, text};
}

Outcome Doctor::finite() {
  const HeadResult sums = step({});
  expected_ = fingerprint(*model_, sums);
  const double loss = sums.loss_sum * rows_.scale;
  if (!std::isfinite(loss)) return {Verdict::kFailed, "the loss is " + sum_text(loss)};
  double squares = 0;
  for (const Parameter& parameter : model_->trained) {
    double one = 0;
    train::check(graft_sum_squares(f32(parameter.grad), parameter.grad.numel(), &one));
    if (!std::isfinite(one)) {
      return {Verdict::kFailed, "the gradient of " + parameter.name + " is not finite"};
    }
    squares += one;
  }
  const std::string text =
      "loss " + format_fixed(loss, 4) + ", norm of the gradient " + sum_text(std::sqrt(squares));
  return {squares > 0 ? Verdict::kPassed : Verdict::kFailed, text};
}

Outcome Doctor::accumulation() const {
  return compare({{"1 row at a time", {.rows = 1}}, {"3 rows and 1", {.rows = 3}}});
}

Outcome Doctor::packing() {
  constexpr size_t kDocuments = 3;
  const Batch packed = sample_row(sample_, kDocuments, row_tokens_);
  const std::vector<float> together = engine_.logits(*model_, packed);
  const auto vocab = static_cast<size_t>(model_->config.vocab_size);
  for (size_t document = 0; document < kDocuments; ++document) {
    Sample one;
    one.documents = {sample_.documents[document % sample_.documents.size()]};
    const std::vector<float> alone = engine_.logits(*model_, sample_row(one, 1, row_tokens_));
    if (std::memcmp(alone.data(), together.data() + document * vocab, vocab * sizeof(float)) != 0) {
      return {Verdict::kFailed,
              "document " + std::to_string(document) + " has other logits than alone"};
    }
  }
  const Batch batch = sample_row(sample_, kDocuments, row_tokens_, 1);
  const std::vector<float> gradient = engine_.input_gradient(*model_, batch, 1);
  const int64_t width = model_->config.hidden_size;
  for (int64_t token = 0; token < batch.tokens(); ++token) {
    const bool own = token >= batch.cu_seqlens[1] && token < batch.cu_seqlens[2];
    const float* row = gradient.data() + token * width;
    const bool is_zero = std::all_of(row, row + width, [](float value) { return value == 0; });
    if (!own && !is_zero) {
      return {Verdict::kFailed, "token " + std::to_string(token) +
                                    " of another document has a gradient that is not zero"};
    }
    if (token == batch.cu_seqlens[1] && is_zero) {
      return {Verdict::kFailed, "the document's own first token has no gradient"};
    }
  }
  return {Verdict::kPassed, "logits equal to the bit, gradient exactly 0"};
}

Outcome Doctor::plan() {
  std::vector<Variant> variants;
  for (const LayerMemory memory : {LayerMemory::kRecomputeMlp, LayerMemory::kRecomputeBlock,
                                   LayerMemory::kRecomputeInput, LayerMemory::kOffloadInput}) {
    const std::vector<LayerPlan> layers(model_->layers.size(), LayerPlan{memory, false});
    variants.push_back({kLayerMemoryNames[static_cast<size_t>(memory)], {.layers = layers}});
  }
  return compare(variants);
}

Outcome Doctor::threads() const {
  std::vector<Variant> variants;
  const int now = omp_get_max_threads();
  for (const int count : {1, 2, 3}) {
    if (count != now) variants.push_back({std::to_string(count) + " threads", {.threads = count}});
  }
  return compare(variants);
}

Outcome Doctor::head() const {
  // A trained head is summed in chains of kHeadChain, and chunks are multiples of it.
  if (model_->trains_head()) {
    return compare({{"chunks of 512 rows", {.head_chunk = 2 * kHeadChain}}});
  }
  return compare({{"chunks of 64 rows", {.head_chunk = 64}}, {"of 17", {.head_chunk = 17}}});
}

Outcome Doctor::decoded() {
  if (!model_->quantized()) return {Verdict::kSkipped, "the base is not in 4 bits"};
  std::vector<std::pair<Linear*, BaseWeight>> packed;
  for (Linear* const linear : model_->linears()) {
    if (!linear->base.quantized()) continue;
    BaseWeight dense;
    dense.dense = empty_of(linear->operands, {linear->out, linear->in});
    decode({}, linear->base.nf4(), linear->operands, dense.dense.data_ptr());
    packed.emplace_back(linear, std::exchange(linear->base, std::move(dense)));
  }
  const Outcome outcome = compare({{"decoded", {}}});
  for (auto& [linear, base] : packed) linear->base = std::move(base);
  return outcome;
}

// Two steps, and the second one again from what was saved after the first. The last check: it
// trains the model.
Outcome Doctor::resume() {
  const ScratchDirectory scratch;
  const double rate = std::max(config_.optimizer.learning_rate, 1e-6);
  const auto train = [&](AdamW& optimizer) {
    const double loss = step({}).loss_sum * rows_.scale;
    const StepResult result = optimizer.step(config_.optimizer, rate, loss);
    refresh_trained(*model_);
    if (result.skipped) fail(ExitCode::kNumeric, result.not_finite + " is not finite");
  };
  const auto bits = [&](AdamW& optimizer) {
    std::vector<std::pair<std::string, uint64_t>> all;
    for (const Parameter& one : model_->trained) all.emplace_back(one.name, digest(one.value));
    for (const AdamW::State& one : optimizer.state())
      all.emplace_back(one.name, digest(one.tensor));
    return all;
  };
  std::vector<std::pair<std::string, uint64_t>> went_on;
  {
    AdamW optimizer(model_->trained, config_.optimizer.moments);
    train(optimizer);
    save_checkpoint(scratch.path(), {.step = 1}, model_->trained, optimizer, 1);
    train(optimizer);
    went_on = bits(optimizer);
  }
  AdamW optimizer(model_->trained, config_.optimizer.moments);
  for (const Parameter& parameter : model_->trained) {
    std::memset(parameter.value.data_ptr(), 0, parameter.value.nbytes());
  }
  std::string damaged;
  load_newest_checkpoint(scratch.path(), model_->trained, optimizer,
                         [&](const std::string& line) { damaged = line; });
  if (!damaged.empty()) return {Verdict::kFailed, damaged};
  refresh_trained(*model_);
  train(optimizer);
  const auto resumed = bits(optimizer);
  for (size_t i = 0; i < resumed.size(); ++i) {
    if (resumed[i].second != went_on[i].second) {
      return {Verdict::kFailed, resumed[i].first + " differs after the second step"};
    }
  }
  return {Verdict::kPassed, "values and moments equal to the bit"};
}

void Doctor::add_adapter() {
  if (config_.method == Method::kFull) {
    train_everything(*model_);
    return;
  }
  for (Linear* const linear : model_->linears()) {
    const Philox random(config_.seed, xxh3_64(linear->name));
    for (int64_t i = 0; linear->lora.rank > 0 && i < linear->lora.b.numel(); ++i) {
      f32(linear->lora.b)[i] += 2 * kMoved * (random.uniform(static_cast<uint64_t>(i)) - 0.5F);
    }
  }
  refresh_trained(*model_);
}

std::string Doctor::extent_text() const {
  const int64_t layers = extent_.config.layer_count();
  return (layers == extent_.layers
              ? "all " + std::to_string(layers)
              : "the first " + std::to_string(layers) + " of " + std::to_string(extent_.layers)) +
         " blocks, " + format_count(model_->parameter_count()) + " weights, " +
         format_count(model_->trained_count()) + " trained";
}

DoctorReport Doctor::run() {
  const ScratchDirectory scratch;
  text_ = load_run_text(config_, vocabulary_, join_path(scratch.path(), "tokenizer"));
  check("mask", "the first " + std::to_string(kRecords) + " records of each dataset",
        [&] { return mask(); });
  model_ = load_extent(config_, extent_);
  if (!sample_.documents.empty()) {
    rows_ = sample_rows(sample_, kRows, row_tokens_);
    rows_.dropout_seed = config_.lora.dropout > 0 ? 1 : 0;
    check("start", "adapter as it begins, and base", [&] { return start(); });
    add_adapter();
    const std::string rows = std::to_string(kRows) + " packed rows";
    check("finite", "loss and gradients of " + rows, [&] { return finite(); });
    check("accumulation", rows + " at once, and in micro-batches", [&] { return accumulation(); });
    check("packing", "documents of one row, and alone", [&] { return packing(); });
    check("plan", "blocks that keep, recompute, send to the host", [&] { return plan(); });
    check("threads", std::to_string(omp_get_max_threads()) + " threads, and 1 to 3",
          [&] { return threads(); });
    check("head", "logits in chunks of 256 rows, and others", [&] { return head(); });
    check("4 bits", "QLoRA, and LoRA on the decoded weights", [&] { return decoded(); });
    check("resume", "a second step, and from a checkpoint", [&] { return resume(); });
  }
  report_.model = extent_text();
  progress_.finish();
  return std::move(report_);
}

}  // namespace

bool DoctorReport::passed() const {
  return std::none_of(checks.begin(), checks.end(),
                      [](const DoctorCheck& one) { return one.verdict == Verdict::kFailed; });
}

DoctorReport run_checks(const TrainConfig& config, const DoctorOptions& options) {
  return Doctor(config, options).run();
}

}  // namespace graft::train
