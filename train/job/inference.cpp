#include "train/job/inference.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>

#include <omp.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"
#include "core/safetensors.h"
#include "data/records/record.h"
#include "data/text/mask.h"
#include "train/engine/decoder.h"
#include "train/engine/tensor.h"
#include "train/job/dataset.h"
#include "train/job/evaluate.h"
#include "train/job/generate.h"
#include "train/model/lora.h"
#include "train/model/weights.h"

namespace graft::train {
namespace {

// Tokens computed at once: enough for the products to run at their full rate.
constexpr int64_t kEvalTokens = 2048;

std::unique_ptr<Model> load(const Args& args) {
  const int64_t threads = args.integer("--threads", 0, 1024);
  if (threads > 0) {
    omp_set_num_threads(static_cast<int>(threads));
  }
  std::unique_ptr<Model> model = load_model(
      args.need("--model"), args.flag("--load-in-4bit") ? Precision::kNf4 : Precision::kFull,
      args.flag("--no-quantized-cache") ? QuantizedCache{} : QuantizedCache::in_home());
  if (args.has("--adapter")) {
    load_adapter(*model, args.text("--adapter"));
  }
  return model;
}

// A directory that is removed at the end of the command.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    path_ = (std::filesystem::temp_directory_path() / "graft-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) {
      fail_io("cannot create a temporary directory", path_, "set TMPDIR to a writable directory");
    }
  }
  ~ScratchDirectory() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) {
    return "";
  }
  return std::string(text.substr(begin, text.find_last_not_of(kBlank) - begin + 1));
}

struct Generations {
  int64_t rows = 0;
  int64_t exact = 0;
  std::string first_prompt;
  std::string first_expected;
  std::string first_got;
};

// Answers every record's last turn and compares with what it says, white space at the ends aside.
Generations generate_answers(const Args& args, Model& model, const ModelText& text) {
  const std::string path = args.text("--data");
  GenerateOptions options;
  options.max_new_tokens = args.integer("--max-new-tokens", 1, 1 << 20);
  options.stop_ids = stop_ids(args.text("--model"), *text.tokenizer);
  data::MaskOptions mask;
  mask.content_specials = data::ContentSpecials::kLiteral;
  data::RecordSource source({path});
  data::RawItem item;
  AtomicFile out(args.text("--predictions"));
  Progress progress("generate", -1, "rows");
  std::optional<Generator> generator;
  Generations result;
  while (source.next(item)) {
    const data::Record record = data::read_record(source, item);
    if (record.schema == data::Schema::kText || record.messages.empty() ||
        record.messages.back().role != "assistant") {
      fail(ExitCode::kData, "the record has no answer to compare with",
           path + ":" + std::to_string(item.line), "--generate needs a last assistant turn");
    }
    const std::vector<int32_t> prompt =
        data::encode_prompt(record, *text.tokenizer, text.chat_or_null(), mask);
    const int64_t room = std::min(static_cast<int64_t>(prompt.size()) + options.max_new_tokens,
                                  model.config.max_positions);
    if (!generator || generator->max_positions() < room) {
      generator.emplace(model, std::max<int64_t>(room, 256));
    }
    const Generated generated = generator->generate(prompt, options);
    const std::string got =
        text.tokenizer->decode(generated.ids, data::Tokenizer::SkipSpecial::kYes);
    const bool exact = trimmed(got) == trimmed(record.answer());
    if (result.rows == 0) {
      result.first_prompt = record.prompt();
      result.first_expected = record.answer();
      result.first_got = got;
    }
    ++result.rows;
    result.exact += exact ? 1 : 0;
    out.write(dump_json(Json::object({{"prompt", record.prompt()},
                                      {"expected", record.answer()},
                                      {"got", got},
                                      {"exact", exact}}),
                        {.spaces = true}) +
              "\n");
    progress.update(result.rows);
  }
  out.commit();
  progress.finish();
  return result;
}

Json sums_to_json(const EvalSums& sums) {
  return Json::object({{"loss", sums.loss()},
                       {"perplexity", sums.perplexity()},
                       {"supervised_tokens", sums.supervised}});
}

}  // namespace

int run_eval(const Args& args) {
  const std::unique_ptr<Model> model = load(args);
  const ModelText text = load_model_text(args.text("--model"), model->config.vocab_size);
  const ScratchDirectory scratch;
  const PreparedStore prepared = prepare_store({args.need("--data")}, {}, args.text("--model"),
                                               text, {}, join_path(scratch.path(), "eval.h5"), 0);
  const std::vector<uint32_t> lengths = prepared.store.lengths();
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  Decoder decoder(*model, StepPlan::of(*model, std::max(kEvalTokens, longest), Keep::kNothing));
  Progress progress("evaluate", prepared.store.document_count(), "documents");
  const EvalResult result =
      evaluate(decoder, prepared.store, [&](int64_t done, int64_t) { progress.update(done); });
  progress.finish();
  Json summary = sums_to_json(result.all);
  summary.set("token_accuracy", result.all.accuracy());
  summary.set("documents", result.documents);
  summary.set("tokens", result.tokens);
  Json sources = Json::array();
  for (const SourceSums& source : result.sources) {
    Json one = sums_to_json(source.sums);
    one.set("source", source.name);
    sources.push_back(std::move(one));
  }
  summary.set("sources", std::move(sources));
  Generations generations;
  if (args.flag("--generate")) {
    generations = generate_answers(args, *model, text);
    summary.set("exact_match", static_cast<double>(generations.exact) /
                                   static_cast<double>(std::max<int64_t>(generations.rows, 1)));
    summary.set("generated", generations.rows);
    summary.set("predictions", args.text("--predictions"));
    summary.set("sample", Json::object({{"prompt", generations.first_prompt},
                                        {"expected", generations.first_expected},
                                        {"got", generations.first_got}}));
  }
  if (args.json()) {
    std::printf("%s\n", dump_json(summary).c_str());
    return 0;
  }
  std::vector<std::vector<std::string>> rows = {
      {"loss", format_fixed(result.all.loss(), 4)},
      {"perplexity", format_fixed(result.all.perplexity(), 3)},
      {"token accuracy", format_fixed(100 * result.all.accuracy(), 1) + " %"},
      {"documents", format_count(result.documents)},
      {"supervised tokens", format_count(result.all.supervised)}};
  if (args.flag("--generate")) {
    rows.push_back(
        {"exact match", format_count(generations.exact) + " of " + format_count(generations.rows) +
                            " (" + format_fixed(100 * summary.at("exact_match").as_double(), 1) +
                            " %)"});
    rows.push_back({"predictions", args.text("--predictions")});
  }
  std::fputs(format_table("<>", rows).c_str(), stdout);
  if (generations.rows > 0) {
    std::printf("first row\n  prompt    %s\n  expected  %s\n  got       %s\n",
                generations.first_prompt.c_str(), generations.first_expected.c_str(),
                generations.first_got.c_str());
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
  Decoder decoder(*model, StepPlan::of(*model, length, Keep::kNothing));
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
  const ModelText text = load_model_text(args.text("--model"), model->config.vocab_size);
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
  options.stop_ids = stop_ids(args.text("--model"), *text.tokenizer);
  Generator generator(*model, static_cast<int64_t>(prompt.size()) + options.max_new_tokens);
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
