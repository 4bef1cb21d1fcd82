#include "train/job/inference.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>

#include <omp.h>

#include "adapters/checkpoint.h"
#include "adapters/fit.h"
#include "adapters/peft.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "core/safetensors.h"
#include "data/records/record.h"
#include "data/text/mask.h"
#include "train/engine/decoder.h"
#include "train/engine/tensor.h"
#include "train/job/compute.h"
#include "train/job/dataset.h"
#include "train/job/device_option.h"
#include "train/job/evaluate.h"
#include "train/job/generate.h"
#include "train/job/scratch.h"
#include "train/model/lora.h"
#include "train/model/placed.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

// Tokens computed at once: enough for the products to run at their full rate.
constexpr int64_t kEvalTokens = 2048;

// Without the adapter of --adapter.
std::unique_ptr<Model> load_base(const Args& args) {
  const int64_t threads = args.integer("--threads", 0, 1024);
  if (threads > 0) {
    omp_set_num_threads(static_cast<int>(threads));
  }
  std::unique_ptr<Model> model = load_model(
      args.need("--model"), args.flag("--load-in-4bit") ? Precision::kNf4 : Precision::kFull,
      args.flag("--no-quantized-cache") ? QuantizedCache{} : QuantizedCache::in_home(),
      {operands_of(args, device_of(args))});
  return model;
}

// The model's tokenizer and template, or, where the adapter's directory holds a tokenizer, those
// that it was trained with.
ModelText load_text(const Args& args, int64_t vocab_size) {
  const std::string model = args.text("--model");
  const std::string adapter = args.has("--adapter") ? args.text("--adapter") : "";
  if (adapter.empty() || !adapters::has_tokenizer(adapter)) {
    return load_model_text(model, vocab_size);
  }
  ModelText text = load_model_text(adapter, vocab_size);
  if (!text.chat) text.chat = data::ChatTemplate::load(model);
  return text;
}

// A base without rows for the adapter's tokens reads another text, and one that the adapter changed
// is no model without it.
void refuse_to_compare(const Args& args, const Model& base) {
  if (adapters::has_own_base(adapters::read_peft(args.text("--adapter")))) {
    fail(ExitCode::kUsage, "the adapter began by changing this base, which alone is no model",
         "--compare-base", "evaluate the adapter on it, and the original model on its own");
  }
  const ModelText text = load_text(args, INT32_MAX);
  if (text.tokenizer->vocab_size() <= base.config.vocab_size) return;
  fail(ExitCode::kUsage,
       "the adapter's tokenizer has " + std::to_string(text.tokenizer->vocab_size()) +
           " tokens, the base only " + std::to_string(base.config.vocab_size) +
           ": a loss for each token means another thing with each of the two",
       "--compare-base", "evaluate each of them on its own, and compare the answers of --generate");
}

std::unique_ptr<Model> load(const Args& args) {
  std::unique_ptr<Model> model = load_base(args);
  if (args.has("--adapter")) load_adapter(*model, args.text("--adapter"));
  return model;
}

std::string trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) {
    return "";
  }
  return std::string(text.substr(begin, text.find_last_not_of(kBlank) - begin + 1));
}

// A record's question with the answers that it has and got.
struct Answer {
  std::string prompt;
  std::string expected;
  std::string got;
  bool exact = false;  // equal but for white space at the ends
};

int64_t exact_count(const std::vector<Answer>& answers) {
  return std::count_if(answers.begin(), answers.end(),
                       [](const Answer& answer) { return answer.exact; });
}

// Answers every record's last turn.
std::vector<Answer> generate_answers(const Args& args,
                                     const std::vector<std::string>& files,
                                     const Device& device,
                                     Model& model,
                                     const ModelText& text) {
  GenerateOptions options;
  options.max_new_tokens = args.integer("--max-new-tokens", 1, 1 << 20);
  options.stop_ids = stop_ids(args.text("--model"), text);
  data::MaskOptions mask;
  mask.content_specials = data::ContentSpecials::kLiteral;
  data::RecordSource source(files);
  data::RawItem item;
  Progress progress("generate", -1, "rows");
  std::optional<Generator> generator;
  std::vector<Answer> answers;
  while (source.next(item)) {
    const data::Record record = data::read_record(source, item);
    if (record.schema == data::Schema::kText || record.messages.empty() ||
        record.messages.back().role != "assistant") {
      fail(ExitCode::kData, "the record has no answer to compare with",
           files[static_cast<size_t>(item.file)] + ":" + std::to_string(item.line),
           "--generate needs a last assistant turn");
    }
    const std::vector<int32_t> prompt =
        data::encode_prompt(record, *text.tokenizer, text.chat_or_null(), mask);
    const int64_t room = std::min(static_cast<int64_t>(prompt.size()) + options.max_new_tokens,
                                  model.config.max_positions);
    if (!generator || generator->max_positions() < room) {
      generator.emplace(model, std::max<int64_t>(room, 256), device);
    }
    const Generated generated = generator->generate(prompt, options);
    std::string got = text.tokenizer->decode(generated.ids, data::Tokenizer::SkipSpecial::kYes);
    const bool exact = trimmed(got) == trimmed(record.answer());
    answers.push_back({record.prompt(), std::string(record.answer()), std::move(got), exact});
    progress.update(static_cast<int64_t>(answers.size()));
  }
  progress.finish();
  return answers;
}

// {"prompt", "expected", "got", "exact"}, with --compare-base also "base" and "base_exact".
void write_predictions(const std::string& path,
                       const std::vector<Answer>& answers,
                       const std::vector<Answer>& base) {
  AtomicFile out(path);
  for (size_t i = 0; i < answers.size(); ++i) {
    Json line = Json::object({{"prompt", answers[i].prompt},
                              {"expected", answers[i].expected},
                              {"got", answers[i].got},
                              {"exact", answers[i].exact}});
    if (!base.empty()) {
      line.set("base", base[i].got);
      line.set("base_exact", base[i].exact);
    }
    out.write(dump_json(line, {.spaces = true}) + "\n");
  }
  out.commit();
}

// What one model made of the data.
struct Evaluation {
  EvalResult result;
  std::vector<Answer> answers;  // with --generate
};

Json sums_to_json(const EvalSums& sums) {
  return Json::object({{"loss", sums.loss()},
                       {"perplexity", sums.perplexity()},
                       {"token_accuracy", sums.accuracy()},
                       {"supervised_tokens", sums.supervised}});
}

Json evaluation_to_json(const Evaluation& evaluation) {
  const EvalResult& result = evaluation.result;
  Json summary = sums_to_json(result.all);
  summary.set("documents", result.documents);
  summary.set("tokens", result.tokens);
  Json sources = Json::array();
  for (const SourceSums& source : result.sources) {
    Json one = sums_to_json(source.sums);
    one.set("source", source.name);
    sources.push_back(std::move(one));
  }
  summary.set("sources", std::move(sources));
  const std::vector<Answer>& answers = evaluation.answers;
  if (!answers.empty()) {
    summary.set("exact_match",
                static_cast<double>(exact_count(answers)) / static_cast<double>(answers.size()));
    summary.set("generated", static_cast<int64_t>(answers.size()));
    summary.set("sample", Json::object({{"prompt", answers[0].prompt},
                                        {"expected", answers[0].expected},
                                        {"got", answers[0].got}}));
  }
  return summary;
}

std::vector<std::string> sums_cells(const EvalSums& sums) {
  return {format_fixed(sums.loss(), 4), format_fixed(sums.perplexity(), 3),
          format_fixed(100 * sums.accuracy(), 1) + " %"};
}

// One column a model, one row a figure; a block of rows for each source where there are several.
void print_evaluations(const std::vector<std::string>& names,
                       const std::vector<const Evaluation*>& all) {
  std::vector<std::vector<std::string>> rows;
  if (all.size() > 1) {
    rows.push_back({""});
    rows.back().insert(rows.back().end(), names.begin(), names.end());
  }
  const auto add = [&](const std::string& name, const auto& cell) {
    rows.push_back({name});
    for (const Evaluation* const one : all) rows.back().push_back(cell(*one));
  };
  constexpr const char* kFigures[] = {"loss", "perplexity", "token accuracy"};
  const auto add_sums = [&](const std::string& prefix, const auto& sums_of) {
    for (size_t figure = 0; figure < std::size(kFigures); ++figure) {
      add(prefix + kFigures[figure],
          [&](const Evaluation& one) { return sums_cells(sums_of(one))[figure]; });
    }
  };
  add_sums("", [](const Evaluation& one) { return one.result.all; });
  const std::vector<SourceSums>& sources = all[0]->result.sources;
  for (size_t i = 0; i < sources.size() && sources.size() > 1; ++i) {
    add_sums(sources[i].name + ": ",
             [i](const Evaluation& one) { return one.result.sources[i].sums; });
  }
  if (!all[0]->answers.empty()) {
    add("exact match", [](const Evaluation& one) {
      const int64_t exact = exact_count(one.answers);
      const auto count = static_cast<int64_t>(one.answers.size());
      return format_count(exact) + " of " + format_count(count) + " (" +
             format_fixed(100.0 * static_cast<double>(exact) / static_cast<double>(count), 1) +
             " %)";
    });
  }
  const auto same = [&](const std::string& name, int64_t count) {
    rows.push_back({name, format_count(count)});
    rows.back().resize(all.size() + 1);
  };
  same("documents", all[0]->result.documents);
  same("supervised tokens", all[0]->result.all.supervised);
  std::fputs(format_table(all.size() > 1 ? "<>>" : "<>", rows).c_str(), stdout);
}

void print_first_answer(const std::vector<std::string>& names,
                        const std::vector<const Evaluation*>& all) {
  const Answer& first = all[0]->answers[0];
  std::printf("first row\n  prompt    %s\n  expected  %s\n", first.prompt.c_str(),
              first.expected.c_str());
  for (size_t i = 0; i < all.size(); ++i) {
    std::printf("  %-8s  %s\n", all.size() > 1 ? names[i].c_str() : "got",
                all[i]->answers[0].got.c_str());
  }
}

}  // namespace

int run_eval(const Args& args) {
  const bool compares = args.flag("--compare-base");
  const Device device = device_of(args);
  if (compares && !args.has("--adapter")) {
    fail(ExitCode::kUsage, "--compare-base without an adapter to compare with", "command line",
         "give --adapter DIR");
  }
  std::vector<std::string> files = {args.need("--data")};
  files.insert(files.end(), args.positionals().begin(), args.positionals().end());
  const std::unique_ptr<Model> model = compares ? load_base(args) : load(args);
  if (compares) refuse_to_compare(args, *model);
  const ModelText text = load_text(args, model->config.vocab_size);
  const ScratchDirectory scratch;
  const PreparedStore prepared =
      prepare_store(files, {}, text, {}, join_path(scratch.path(), "eval.h5"), 0);
  const std::vector<uint32_t> lengths = prepared.store.lengths();
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const auto evaluate_now = [&](const char* label) {
    Evaluation evaluation;
    const PlacedModel placed(*model, device);
    Decoder decoder(*model, StepPlan::of(*model, std::max(kEvalTokens, longest), Keep::kNothing),
                    device);
    Progress progress(label, prepared.store.document_count(), "documents");
    evaluation.result =
        evaluate(decoder, prepared.store, [&](int64_t done, int64_t) { progress.update(done); });
    progress.finish();
    if (args.flag("--generate")) {
      evaluation.answers = generate_answers(args, files, device, *model, text);
    }
    return evaluation;
  };
  Evaluation base;
  if (compares) {
    base = evaluate_now("evaluate the base");
    load_adapter(*model, args.text("--adapter"));
  }
  const Evaluation evaluation = evaluate_now("evaluate");
  if (args.flag("--generate")) {
    write_predictions(args.text("--predictions"), evaluation.answers, base.answers);
  }
  if (args.json()) {
    Json summary = evaluation_to_json(evaluation);
    if (args.flag("--generate")) summary.set("predictions", args.text("--predictions"));
    if (compares) summary.set("base", evaluation_to_json(base));
    std::printf("%s\n", dump_json(summary).c_str());
    return 0;
  }
  std::vector<std::string> names = {"adapter"};
  std::vector<const Evaluation*> all = {&evaluation};
  if (compares) {
    names.insert(names.begin(), "base");
    all.insert(all.begin(), &base);
  }
  print_evaluations(names, all);
  if (args.flag("--generate")) {
    std::printf("predictions  %s\n", args.text("--predictions").c_str());
    if (!evaluation.answers.empty()) print_first_answer(names, all);
  }
  return 0;
}

int run_logits(const Args& args) {
  const std::string path = args.need("--ids");
  const SafetensorsFile file(path);
  const TensorInfo& info = file.at("input_ids");
  if (info.dtype != DType::kI64 || info.shape.size() != 2 || info.count() == 0) {
    fail(ExitCode::kData,
         "expected input_ids of I64 [B, T], got " + std::string(dtype_name(info.dtype)) + " " +
             shape_text(info.shape),
         path + ": input_ids");
  }
  const std::unique_ptr<Model> model = load(args);
  const int64_t rows = info.shape[0];
  const int64_t length = info.shape[1];
  const int64_t vocab = model->config.vocab_size;
  std::vector<int64_t> ids(static_cast<size_t>(rows * length));
  std::memcpy(ids.data(), file.bytes(info).data(), file.bytes(info).size());
  const std::string out = args.need("--out");
  SafetensorsWriter writer(out, {{"logits", DType::kF32, {rows, length, vocab}}});
  const Device device = device_of(args);
  const PlacedModel placed(*model, device);
  Decoder decoder(*model, StepPlan::of(*model, length, Keep::kNothing), device);
  std::vector<float> logits(static_cast<size_t>(length * vocab));
  const std::vector<uint8_t> no_loss(static_cast<size_t>(length), 0);
  const float weights[1] = {0.0F};
  Batch batch;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> one;
    for (int64_t t = 0; t < length; ++t) {
      const int64_t id = ids[static_cast<size_t>(row * length + t)];
      if (id < 0 || id >= vocab) {
        fail(ExitCode::kData,
             "id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab),
             path + ": input_ids[" + std::to_string(row) + ", " + std::to_string(t) + "]");
      }
      one.push_back(static_cast<int32_t>(id));
    }
    batch.clear();
    batch.add(one, no_loss, weights, 0);
    decoder.head_logits(decoder.forward(batch, 0), length, logits.data());
    writer.write("logits", std::as_bytes(std::span(logits)));
  }
  const std::string digest = writer.commit();
  const Json summary = Json::object(
      {{"out", out}, {"shape", Json::array({rows, length, vocab})}, {"sha256", digest}});
  std::printf(
      "%s\n",
      args.json()
          ? dump_json(summary).c_str()
          : (out + ": logits " + shape_text(std::vector<int64_t>{rows, length, vocab})).c_str());
  return 0;
}

int run_generate(const Args& args) {
  if (args.has("--prompt") == args.has("--chat")) {
    fail(ExitCode::kUsage, "expected either --prompt or --chat", "command line",
         "give --prompt TEXT, or --chat FILE with a JSON list of messages");
  }
  const std::unique_ptr<Model> model = load(args);
  const ModelText text = load_text(args, model->config.vocab_size);
  std::vector<int32_t> prompt;
  if (args.has("--prompt")) {
    prompt = text.tokenizer->encode_ids(args.text("--prompt"), {.special = true});
  } else {
    const Json chat = read_json_file(args.text("--chat"));
    const Json record = chat.is_array() ? Json::object({{"messages", chat}}) : chat;
    data::MaskOptions mask;
    mask.content_specials = data::ContentSpecials::kLiteral;
    prompt = data::encode_prompt(data::parse_record(record, args.text("--chat")), *text.tokenizer,
                                 text.chat_or_null(), mask);
  }
  GenerateOptions options;
  options.max_new_tokens = args.integer("--max-new-tokens", 1, 1 << 20);
  options.temperature = args.number("--temperature", 0, 100);
  options.top_p = args.number("--top-p", 1e-9, 1);
  options.seed = static_cast<uint64_t>(args.integer("--seed", 0, INT64_MAX));
  options.stop_ids = stop_ids(args.text("--model"), text);
  const Device device = device_of(args);
  const PlacedModel placed(*model, device);
  Generator generator(*model, static_cast<int64_t>(prompt.size()) + options.max_new_tokens, device);
  data::StreamDecoder stream(*text.tokenizer, data::Tokenizer::SkipSpecial::kYes);
  const bool prints = !args.json();
  const Generated generated = generator.generate(prompt, options, [&](int32_t id) {
    if (prints) {
      std::fputs(stream.next(id).c_str(), stdout);
      std::fflush(stdout);
    }
  });
  if (prints) {
    std::printf("%s\n", stream.finish().c_str());
    return 0;
  }
  Json ids = Json::array();
  Json logprobs = Json::array();
  for (size_t i = 0; i < generated.ids.size(); ++i) {
    ids.push_back(int64_t{generated.ids[i]});
    logprobs.push_back(generated.logprobs[i]);
  }
  const std::string decoded =
      text.tokenizer->decode(generated.ids, data::Tokenizer::SkipSpecial::kYes);
  std::printf("%s\n",
              dump_json(Json::object({{"text", decoded},
                                      {"ids", std::move(ids)},
                                      {"logprobs", std::move(logprobs)},
                                      {"prompt_tokens", static_cast<int64_t>(prompt.size())},
                                      {"stopped", generated.stopped},
                                      {"ttft_s", generated.first_token_s},
                                      {"tpot_s", generated.per_token_s}}))
                  .c_str());
  return 0;
}

}  // namespace graft::train
