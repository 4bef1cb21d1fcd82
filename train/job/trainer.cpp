#include "train/job/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <numeric>

#include <omp.h>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/progress.h"
#include "data/text/packing.h"
#include "kernels/memory.h"
#include "train/engine/batch.h"
#include "train/engine/decoder.h"
#include "train/engine/optimizer.h"
#include "train/job/checkpoint.h"
#include "train/job/compute.h"
#include "train/job/dataset.h"
#include "train/job/epochs.h"
#include "train/job/evaluate.h"
#include "train/job/export.h"
#include "train/job/memory.h"
#include "train/job/report.h"
#include "train/job/run_file.h"
#include "train/job/vocabulary.h"
#include "train/model/extended.h"
#include "train/model/lora.h"
#include "train/model/placed.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

volatile std::sig_atomic_t stop_signal = 0;

void on_signal(int number) {
  if (stop_signal != 0 && number == SIGINT) {
    std::_Exit(130);  // the second Ctrl-C does not wait for the step
  }
  stop_signal = number;
}

void catch_signals() {
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) {
    std::signal(number, on_signal);
  }
}

// Digest of everything in the base directory that training reads.
std::string base_digest(const TrainConfig& config) {
  Sha256 hash;
  hash.update(read_file(join_path(config.base_model, "config.json")));
  if (!config.random_weights) {
    for (const std::string& name : list_directory(config.base_model)) {
      if (name.size() > 12 && name.substr(name.size() - 12) == ".safetensors") {
        hash.update(name + sha256_file(join_path(config.base_model, name)));
      }
    }
  }
  return hash.hex_digest();
}

// `share` of `steps`, rounded up. 1.1 * 10 is a little above 11 in double and must not become 12.
int64_t share_of(int64_t steps, double share) {
  return static_cast<int64_t>(std::ceil(share * static_cast<double>(steps) * (1 - 1e-12)));
}

class Training {
 public:
  Training(const TrainConfig& config, const RunOptions& options)
      : config_(config),
        options_(options),
        directory_(config.output_dir),
        memory_before_(memory_in_use(config.device)) {}

  RunResult run();

 private:
  bool claim_directory();
  void prepare_model();
  void make_decoders();
  void prepare_data();
  void write_identity();
  void plan_steps();
  void check_same_base(const std::string& other) const;
  void resume(Progressed& progressed);
  bool loop(Progressed& progressed);
  double train_step(int64_t step, Progressed& progressed, Json& metrics);
  Json held_out_metrics(int64_t step);
  void evaluate_now(int64_t step);
  void save(Progressed& progressed);
  void finish(const Progressed& progressed);
  std::string batch_sources(int64_t step);
  void print_plan();
  void print_new_tokens() const;
  void print_result(const Json& summary) const;
  std::string path(std::string_view name) const { return join_path(directory_, name); }

  const TrainConfig& config_;
  const RunOptions& options_;
  std::string directory_;
  std::unique_ptr<DirectoryLock> lock_;
  std::unique_ptr<RunFile> run_file_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<PlacedModel> placed_;  // the model, on the device
  ModelText text_;
  std::unique_ptr<PreparedStore> train_;
  std::unique_ptr<PreparedStore> test_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Decoder> eval_decoder_;
  std::unique_ptr<AppendFile> metrics_;
  OptimizerSettings schedule_;
  std::unique_ptr<EpochPlan> epochs_;
  int64_t total_steps_ = 0;
  RunPlan plan_;
  int64_t memory_before_ = 0;
  int64_t memory_peak_ = 0;
  Batch batch_;
  Json last_eval_;
  Clock::time_point started_ = Clock::now();
};

// Returns true when the directory holds this run, finished.
bool Training::claim_directory() {
  make_directories(directory_);
  lock_ = std::make_unique<DirectoryLock>(directory_);
  run_file_ = std::make_unique<RunFile>(directory_);
  if (run_file_->exists() && !run_file_->preparing() && options_.resume == "none") {
    fail(ExitCode::kUsage, "the output directory already holds a run", run_file_->path(),
         "choose another output_dir, or leave out --resume none; nothing was changed");
  }
  check_output_directory(config_, *run_file_);
  if (!run_file_->exists() || run_file_->preparing()) {
    run_file_->write(Json::object({{"graft", GRAFT_VERSION},
                                   {"status", "preparing"},
                                   {"config_digest", config_digest(config_)},
                                   {"config", config_to_json(config_)}}));
    return false;
  }
  return run_file_->finished();
}

void Training::prepare_model() {
  const Vocabulary vocabulary = read_vocabulary(config_);
  const ModelConfig& model = vocabulary.model;
  plan_ = plan_run(config_, model);
  refuse_unfit(config_, model, plan_);
  model_ = config_.random_weights
               ? make_model(model, config_.seed)
               : load_model(model, config_.base_model, config_.precision(),
                            config_.quantized_cache ? QuantizedCache::in_home() : QuantizedCache{},
                            {config_.operands, config_.lora.saved});
  if (config_.method == Method::kFull) {
    train_everything(*model_);
  } else {
    add_lora(*model_, config_.lora, config_.seed, config_.base_model);
  }
  choose_width(*model_);
  model_->embeds_on_host = plan_.memory.training.embeds_on_host;
  placed_ = std::make_unique<PlacedModel>(*model_, config_.device);
  text_ = load_run_text(config_, vocabulary, path("tokenizer"));
  optimizer_ = std::make_unique<AdamW>(model_->trained, config_.optimizer.moments);
}

// Both in one arena: they never run at the same time.
void Training::make_decoders() {
  const Layout layouts[] = {plan_layout(*model_, plan_.memory.training),
                            plan_layout(*model_, plan_.memory.evaluation)};
  const auto arena = std::make_shared<const Arena>(
      std::vector<const Layout*>{&layouts[0], &layouts[1]}, config_.device);
  decoder_ = std::make_unique<Decoder>(*model_, plan_.memory.training, config_.device, arena);
  eval_decoder_ =
      std::make_unique<Decoder>(*model_, plan_.memory.evaluation, config_.device, arena);
}

void Training::prepare_data() {
  make_directories(path("data"));
  const auto prepare = [&](const std::vector<Dataset>& datasets, const char* name) {
    std::vector<std::string> files;
    std::vector<data::FieldMapping> mappings;
    for (const Dataset& dataset : datasets) {
      files.push_back(dataset.path);
      mappings.push_back(dataset.fields);
    }
    return std::make_unique<PreparedStore>(prepare_store(files, mappings, text_, config_.mask,
                                                         join_path(path("data"), name),
                                                         static_cast<int>(config_.threads)));
  };
  train_ = prepare(config_.datasets, "train.h5");
  if (!config_.test_datasets.empty()) {
    test_ = prepare(config_.test_datasets, "test.h5");
  }
}

void Training::write_identity() {
  const Json inputs = Json::object({{"base", base_digest(config_)},
                                    {"tokenizer", text_.tokenizer->digest()},
                                    {"train_tokens", train_->store.digest()}});
  if (run_file_->preparing()) {
    Json content = run_file_->content();
    content.set("inputs", inputs);
    content.set("status", "running");
    run_file_->write(std::move(content));
    return;
  }
  const Json& before = run_file_->content().at("inputs");
  for (const auto& [key, value] : inputs.as_object()) {
    if (!(before.at(key) == value)) {
      fail(ExitCode::kUsage, "the run's " + key + " has changed since it began", run_file_->path(),
           "restore it, or choose another output_dir; nothing was changed");
    }
  }
}

void Training::plan_steps() {
  epochs_ = std::make_unique<EpochPlan>(train_->store, config_);
  total_steps_ = config_.max_steps > 0 ? config_.max_steps : epochs_->steps_in(config_.num_epochs);
  schedule_ = config_.optimizer;
  if (!config_.has_warmup_steps) {
    schedule_.warmup_steps = share_of(total_steps_, config_.warmup_ratio);
  }
}

// What an epoch takes of each dataset.
void print_shares(const std::vector<EpochPlan::Share>& shares, int64_t in_epoch) {
  std::vector<std::vector<std::string>> rows = {
      {"dataset", "documents", "trained tokens", "in an epoch", "share"}};
  for (const EpochPlan::Share& dataset : shares) {
    const double share = 100.0 * static_cast<double>(dataset.supervised_in_epoch) /
                         static_cast<double>(std::max<int64_t>(in_epoch, 1));
    rows.push_back({dataset.path, format_count(dataset.documents), format_count(dataset.supervised),
                    format_count(dataset.supervised_in_epoch), format_fixed(share, 1) + " %"});
  }
  std::fprintf(stderr, "%s", format_table("<>>>>", rows).c_str());
}

void Training::print_new_tokens() const {
  const std::vector<int64_t> counts = count_new_tokens(model_->config, train_->store);
  for (size_t i = 0; i < counts.size(); ++i) {
    std::fprintf(stderr, "token   %s stands in the documents %s times%s\n",
                 config_.new_tokens[i].content.c_str(), format_count(counts[i]).c_str(),
                 counts[i] == 0 ? ": warning: it is not learnt" : "");
  }
}

void Training::print_plan() {
  const data::TokenStore& store = train_->store;
  const std::vector<EpochPlan::Share> shares = epochs_->shares();
  int64_t supervised = 0;
  int64_t in_epoch = 0;
  for (const EpochPlan::Share& dataset : shares) {
    supervised += dataset.supervised;
    in_epoch += dataset.supervised_in_epoch;
  }
  epochs_->at(0);
  const auto share = 100.0 * static_cast<double>(supervised) /
                     static_cast<double>(std::max<int64_t>(store.token_count(), 1));
  if (config_.device.kind == GRAFT_CUDA) {
    char name[256];
    double speed = 0;
    check(graft_device_describe(config_.device.kind, name, sizeof name, &speed));
    std::fprintf(stderr, "device  %s\n", name);
  }
  std::fprintf(stderr, "model   %s parameters, base %s in memory%s, products in %s, %s trained\n",
               format_count(model_->parameter_count()).c_str(),
               format_bytes(model_->base_bytes()).c_str(),
               model_->quantized() ? " (linears in NF4)" : "", compute_name(config_.operands),
               format_count(model_->trained_count()).c_str());
  std::fprintf(stderr, "data    %s documents, %s tokens, %s %% trained on, %s rows of %s\n",
               format_count(store.document_count()).c_str(),
               format_count(store.token_count()).c_str(), format_fixed(share, 1).c_str(),
               format_count(epochs_->row_count()).c_str(),
               format_count(config_.sequence_len).c_str());
  if (shares.size() > 1) print_shares(shares, in_epoch);
  print_new_tokens();
  std::fprintf(stderr, "plan    %s steps of %s rows, %s at once, %s of memory\n",
               format_count(total_steps_).c_str(), format_count(config_.rows_per_step()).c_str(),
               format_count(plan_.request.rows).c_str(),
               format_bytes(plan_.memory.on_device()).c_str());
  std::fprintf(stderr, "blocks  %s\n", layers_text(plan_.memory.training).c_str());
  if (model_->embeds_on_host) {
    std::fprintf(stderr, "tables  the embedding stays in the host's memory\n");
  }
  if (model_->narrow && !config_.device.is_host()) {
    std::fprintf(stderr, "attention  %s\n", decoder_->attention_text().c_str());
  }
  for (const data::RefusedRecord& refused : train_->summary.refused) {
    std::fprintf(stderr, "left out %s:%lld: %s: %s\n", refused.file.c_str(),
                 static_cast<long long>(refused.line), refused.rule.c_str(),
                 refused.reason.c_str());
  }
}

// A checkpoint of another run fits only the base that it was trained on, and the same new tokens.
void Training::check_same_base(const std::string& other) const {
  const RunFile run(other);
  const Json* inputs = run.exists() ? run.content().find("inputs") : nullptr;
  if (inputs == nullptr || !(inputs->at("base") == run_file_->content().at("inputs").at("base"))) {
    fail(ExitCode::kUsage,
         inputs == nullptr ? "no run of graft to start from"
                           : "that run was trained on another base model",
         run.path(), "give the output_dir of a run on the same base_model");
  }
  const Json* const before = run.content().at("config").find("new_tokens");
  if (!((before != nullptr ? *before : Json::array()) ==
        config_to_json(config_).at("new_tokens"))) {
    fail(ExitCode::kUsage, "that run was trained with other new_tokens", run.path(),
         "give the output_dir of a run with the same new_tokens, in the same order");
  }
}

void Training::resume(Progressed& progressed) {
  const auto report = [](const std::string& line) {
    std::fprintf(stderr, "warning: %s\n", line.c_str());
  };
  const auto load = [&](const std::string& from) {
    return load_newest_checkpoint(join_path(from, "checkpoints"), model_->trained, *optimizer_,
                                  report);
  };
  // Its own checkpoints first: the same command again goes on, wherever it once started.
  auto found = load(directory_);
  if (!found && options_.resume != "auto" && options_.resume != "none") {
    check_same_base(options_.resume);
    found = load(options_.resume);
    if (!found) {
      fail(ExitCode::kUsage, "no checkpoint found", options_.resume,
           "give the output_dir of a run");
    }
    found->metrics_bytes = 0;
  }
  if (found) {
    refresh_trained(*model_);
    progressed = *found;
    std::fprintf(stderr, "resume  from step %s of %s\n", format_count(progressed.step).c_str(),
                 format_count(total_steps_).c_str());
  }
}

// Trains on one optimizer step's rows; returns its loss.
double Training::train_step(int64_t step, Progressed& progressed, Json& metrics) {
  const auto start = Clock::now();
  const EpochPlan::Step place = epochs_->at(step);
  const int64_t first = place.first_row;
  const int64_t last = place.last_row;
  const std::vector<data::PackedRow> packed = epochs_->rows(first, last);
  // The one owner of normalisation: every supervised prediction of the step counts alike, whatever
  // the micro-batches.
  double weight = 0;
  for (const data::PackedRow& row : packed) {
    for (const int64_t document : row.documents) {
      weight += document_weight(train_->store, document);
    }
  }
  const double scale = weight > 0 ? 1.0 / weight : 0.0;
  optimizer_->zero_gradients();
  HeadResult sums;
  int64_t tokens = 0;
  // Dropout's seed: one value a step; 0 would switch it off.
  const uint64_t dropout_seed =
      (xxh3_64("dropout " + std::to_string(config_.seed) + " " + std::to_string(step))) | 1U;
  for (int64_t row = first; row < last; row += plan_.request.rows) {
    const int64_t end = std::min(row + plan_.request.rows, last);
    fill_batch(
        train_->store,
        std::span(packed).subspan(static_cast<size_t>(row - first), static_cast<size_t>(end - row)),
        row - first, config_.sequence_len, batch_);
    const float* residual = decoder_->forward(batch_, dropout_seed);
    sums = decoder_->head_loss(batch_, residual, scale, decoder_->gradient_buffer(), nullptr, sums);
    decoder_->backward(batch_, decoder_->gradient_buffer());
    tokens += batch_.tokens();
  }
  decoder_->finish_gradients();
  const double rate = learning_rate_at(schedule_, step, total_steps_);
  const double loss = sums.loss_sum * scale;
  const StepResult result = optimizer_->step(schedule_, rate, loss);
  refresh_trained(*model_);
  progressed.trained_tokens += sums.supervised;
  memory_peak_ = std::max(memory_peak_, memory_in_use(config_.device) - memory_before_);
  if (result.skipped) {
    ++progressed.skipped;
    std::fprintf(stderr, "warning: step %lld skipped: %s is not finite (rows: %s)\n",
                 static_cast<long long>(step + 1), result.not_finite.c_str(),
                 batch_sources(step).c_str());
    if (progressed.skipped > config_.max_skipped_steps) {
      fail(
          ExitCode::kNumeric,
          std::to_string(progressed.skipped) + " steps had losses or gradients that are not finite",
          result.not_finite, "lower learning_rate, or look at the rows named above");
    }
  }
  metrics = Json::object({{"step", step + 1},
                          {"epoch", place.epochs_done},
                          {"loss", loss},
                          {"learning_rate", rate},
                          {"grad_norm", result.grad_norm},
                          {"tokens", tokens},
                          {"supervised", sums.supervised},
                          {"skipped", result.skipped},
                          {"tokens_per_s", static_cast<double>(tokens) / seconds_since(start)}});
  return loss;
}

// "clean.jsonl:12, clean.jsonl:80" - input rows (1-based) of a step, at most ten.
std::string Training::batch_sources(int64_t step) {
  std::string text;
  int count = 0;
  const Json& inputs = train_->store.settings().at("inputs");
  const EpochPlan::Step place = epochs_->at(step);
  for (const data::PackedRow& row : epochs_->rows(place.first_row, place.last_row)) {
    for (const int64_t document : row.documents) {
      if (++count <= 10) {
        const data::DocumentSource source = train_->store.source(document);
        text += (text.empty() ? "" : ", ") +
                inputs.as_array()[static_cast<size_t>(source.file)].at("name").as_string() + ":" +
                std::to_string(source.row + 1);
      }
    }
  }
  return count > 10 ? text + ", … " + std::to_string(count) + " in all" : text;
}

Json Training::held_out_metrics(int64_t step) {
  const EvalResult result = evaluate(*eval_decoder_, test_->store);
  return Json::object({{"step", step},
                       {"eval_loss", result.all.loss()},
                       {"eval_perplexity", result.all.perplexity()},
                       {"eval_token_accuracy", result.all.accuracy()}});
}

void Training::evaluate_now(int64_t step) {
  if (test_) {
    last_eval_ = held_out_metrics(step);
    metrics_->append(dump_json(last_eval_) + "\n");
  }
}

void Training::save(Progressed& progressed) {
  metrics_->sync();
  progressed.metrics_bytes = metrics_->size();
  save_checkpoint(path("checkpoints"), progressed, model_->trained, *optimizer_,
                  config_.save_total_limit);
}

// Returns false when a signal ended it.
bool Training::loop(Progressed& progressed) {
  // Every so many steps; 0 = at the end of each epoch.
  const auto is_due = [&](int64_t every, bool ends_epoch) {
    return every > 0 ? progressed.step % every == 0 : ends_epoch;
  };
  metrics_ = std::make_unique<AppendFile>(path("metrics.jsonl"), progressed.metrics_bytes);
  if (progressed.step == 0) {
    evaluate_now(0);
  }
  Progress bar("train", total_steps_, "steps");
  bar.update(progressed.step);
  while (progressed.step < total_steps_) {
    Json metrics;
    const double loss = train_step(progressed.step, progressed, metrics);
    const bool ends_epoch = epochs_->at(progressed.step).ends_epoch;
    ++progressed.step;
    const bool last = progressed.step == total_steps_;
    if (last || progressed.step % config_.logging_steps == 0) {
      metrics_->append(dump_json(metrics) + "\n");
    }
    bar.update(progressed.step,
               "loss " + format_fixed(loss, 4) + "  " +
                   format_count(static_cast<int64_t>(metrics.at("tokens_per_s").as_double())) +
                   " tok/s");
    if (last || is_due(config_.eval_steps, ends_epoch)) {
      evaluate_now(progressed.step);
    }
    const bool stopping = stop_signal != 0;
    if (last || stopping || is_due(config_.save_steps, ends_epoch)) {
      save(progressed);
    }
    if (stopping && !last) {
      return false;
    }
  }
  bar.finish();
  return true;
}

void Training::finish(const Progressed& progressed) {
  Json summary = Json::object({{"steps", progressed.step},
                               {"skipped_steps", progressed.skipped},
                               {"trained_tokens", progressed.trained_tokens},
                               {"seconds", seconds_since(started_)}});
  if (test_ && !last_eval_.is_object()) {
    // Resumed behind the last step: metrics.jsonl has this evaluation already.
    last_eval_ = held_out_metrics(progressed.step);
  }
  if (last_eval_.is_object()) {
    summary.set("eval", last_eval_);
  }
  // A mapped quantized cache is not anonymous memory.
  const int64_t planned = config_.device.is_host() ? plan_.memory.total() - model_->mapped_bytes()
                                                   : plan_.memory.on_device();
  summary.set("memory", Json::object({{"planned_bytes", planned}, {"peak_bytes", memory_peak_}}));
  summary.set("plan", plan_to_json(plan_.memory));
  summary.set("export", export_result(*model_, *placed_, config_, text_.directory, *eval_decoder_,
                                      train_->store, directory_));
  write_training_report(config_, directory_, summary);
  print_result(summary);
  Json content = run_file_->content();
  content.set("summary", summary);
  content.set("status", "finished");
  run_file_->write(std::move(content));
}

void Training::print_result(const Json& summary) const {
  const Json& exported = summary.at("export");
  std::vector<std::vector<std::string>> rows = exported_files(exported);
  rows.push_back({path("report.html"), format_bytes(file_size(path("report.html")))});
  std::fprintf(stderr, "%s", format_table("<>", rows).c_str());
  const Json& memory = summary.at("memory");
  if (memory.at("peak_bytes").as_int() > 0) {
    std::fprintf(stderr, "memory: %s planned, %s used\n",
                 format_bytes(memory.at("planned_bytes").as_int()).c_str(),
                 format_bytes(memory.at("peak_bytes").as_int()).c_str());
  }
  if (exported.find("reload") != nullptr) {
    std::fprintf(stderr, "adapter reloaded: %s\n", exported.at("reload").as_string().c_str());
  }
}

RunResult Training::run() {
  if (claim_directory()) {
    std::fprintf(stderr, "nothing to do: this run is finished (%s)\n", run_file_->path().c_str());
    return {0, run_file_->content().at("summary")};
  }
  if (config_.threads > 0) {
    omp_set_num_threads(static_cast<int>(config_.threads));
  }
  prepare_model();
  prepare_data();
  write_identity();
  plan_steps();
  make_decoders();
  print_plan();
  Progressed progressed;
  resume(progressed);
  catch_signals();
  if (!loop(progressed)) {
    std::fprintf(stderr,
                 "\nstopped by a signal after step %s; saved. Run the same command again.\n",
                 format_count(progressed.step).c_str());
    return {static_cast<int>(ExitCode::kRequeue),
            Json::object({{"steps", progressed.step}, {"status", "saved"}})};
  }
  finish(progressed);
  return {0, run_file_->content().at("summary")};
}

}  // namespace

RunResult run_training(const TrainConfig& config, const RunOptions& options) {
  return Training(config, options).run();
}

}  // namespace graft::train
