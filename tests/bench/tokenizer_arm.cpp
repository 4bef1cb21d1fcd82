// One timed arm of tests/peers/bench_tokenizers.py, on one thread.
//
// Usage: graft-tokenizer-arm --model PATH --rows FILE.jsonl --what WHAT
//   load                     read the tokenizer
//   ids, offsets             encode the rows' "text", once, with a fresh cache; loading excluded
//   render                   render the rows' "messages" with the template PATH
//   tokenize                 the rows as records to a store with the model directory PATH
// Prints {"seconds", "cpu_seconds", "count", "peak_mib"}; count: tokens, or conversations of
// render.
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "data/text/template.h"
#include "data/text/token_store.h"
#include "data/text/tokenize.h"
#include "data/text/tokenizer.h"

namespace {

using namespace graft;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_seconds_now() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// ru_maxrss would count what the process was before exec.
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

std::vector<Json> read_rows(const std::string& path) {
  std::vector<Json> rows;
  const std::string text = read_file(path);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    rows.push_back(parse_json(text.substr(at, end - at), path));
    at = end + 1;
  }
  return rows;
}

// What is timed, with everything that is not timed done already; returns the count.
std::function<int64_t()> work_of(const std::string& what,
                                 const std::string& model,
                                 const std::string& rows) {
  if (what == "load") {
    return [=] { return data::load_tokenizer(model)->vocab_size(); };
  }
  if (what == "ids" || what == "offsets") {
    auto texts = std::make_shared<std::vector<std::string>>();
    for (const Json& row : read_rows(rows)) texts->push_back(row.at("text").as_string());
    const std::shared_ptr<data::Tokenizer> tokenizer = data::load_tokenizer(model);
    return [=] {
      size_t tokens = 0;
      for (const std::string& text : *texts) {
        tokens += what == "offsets" ? tokenizer->encode(text).ids.size()
                                    : tokenizer->encode_ids(text).size();
      }
      return static_cast<int64_t>(tokens);
    };
  }
  if (what == "render") {
    auto inputs = std::make_shared<std::vector<data::RenderInput>>();
    for (const Json& row : read_rows(rows)) {
      data::RenderInput input;
      input.messages = row.at("messages");
      input.vars = Json::object({{"bos_token", "<s>"}, {"eos_token", "</s>"}});
      input.now = "2026-11-22";
      inputs->push_back(std::move(input));
    }
    const auto chat = std::make_shared<data::ChatTemplate>(read_file(model), model);
    return [=] {
      size_t bytes = 0;
      for (const data::RenderInput& input : *inputs) bytes += chat->render(input).text.size();
      return bytes > 0 ? static_cast<int64_t>(inputs->size()) : 0;
    };
  }
  if (what == "tokenize") {
    const std::shared_ptr<data::Tokenizer> tokenizer = data::load_tokenizer(model);
    const auto chat =
        std::make_shared<std::optional<data::ChatTemplate>>(data::ChatTemplate::load(model));
    return [=] {
      const data::TokenizeInput input = {{rows}, {}, tokenizer.get(), &**chat, model};
      data::TokenizeOptions options;
      options.mask.now = "2026-11-22";
      options.out = rows + ".h5";
      options.threads = 1;
      return tokenize_files(input, tokenize_settings(input, options.mask), options).tokens;
    };
  }
  fail(ExitCode::kUsage, "no arm \"" + what + "\"", "--what");
}

int run(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  const auto work = work_of(options["--what"], options["--model"], options["--rows"]);
  const double start = seconds_now();
  const double cpu_start = cpu_seconds_now();
  const int64_t count = work();
  const double seconds = seconds_now() - start;
  const double cpu_seconds = cpu_seconds_now() - cpu_start;
  std::printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"count\": %lld, \"peak_mib\": %.1f}\n",
              seconds, cpu_seconds, static_cast<long long>(count), peak_mib());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return graft::run_main([&] { return run(argc, argv); });
}
