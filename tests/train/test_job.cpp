// graft-train as a user meets it: whole runs, kills, bad input, full disks.
#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include <catch2/catch.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support/support.h"
#include "tests/train/reference.h"
#include "train/model/weights.h"

namespace {

using graft::test::run;
using graft::test::RunResult;
using graft::test::source_path;
using graft::test::TempDir;

// A run of a few seconds on the quickstart's base model.
class Fixture {
 public:
  Fixture() {
    std::string rows;
    const std::string eval = graft::read_file(source_path("examples/quickstart/eval.jsonl"));
    graft::write_file_atomically(dir_.file("train.jsonl"), eval);
    write_config("");
  }
  void write_config(const std::string& extra) {
    graft::write_file_atomically(
        config(), "base_model: " + source_path("examples/quickstart/base") + "\ndatasets: [" +
                      dir_.file("train.jsonl") +
                      "]\nadapter: qlora\nlora_r: 4\nsequence_len: 128\nmicro_batch_size: 4\n"
                      "learning_rate: 0.005\nlora_dropout: 0.1\nnum_epochs: 3\nsave_steps: 2\n"
                      // The same on every processor.
                      "compute: fp32\nthreads: 2\n" +
                      extra);
  }
  std::string config() const { return dir_.file("run.yaml"); }
  std::string out(const std::string& name) const { return dir_.file(name); }
  RunResult train(const std::string& name, std::vector<std::string> more = {}) const {
    std::vector<std::string> words = {"graft", "train", config(), "output_dir=" + out(name)};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  }
  std::string adapter_digest(const std::string& name) const {
    return graft::sha256_file(out(name) + "/adapter/adapter_model.safetensors");
  }
  const TempDir& dir() const { return dir_; }

 private:
  TempDir dir_;
};

// The quickstart's base model, to be changed.
std::string copy_base(const Fixture& fixture) {
  const std::string base = fixture.dir().file("base");
  graft::make_directories(base);
  for (const std::string& name : graft::list_directory(source_path("examples/quickstart/base"))) {
    const std::string from = source_path("examples/quickstart/base") + "/" + name;
    if (graft::file_exists(from)) {
      graft::write_file_atomically(base + "/" + name, graft::read_file(from));
    }
  }
  return base;
}

// Starts the training and kills it with SIGKILL after `ms`; returns whether it was still running.
bool kill_training(const Fixture& fixture, const std::string& name, int ms) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);
    const std::string program = std::string(GRAFT_BIN_DIR) + "/graft";
    const std::string config = fixture.config();
    const std::string out = "output_dir=" + fixture.out(name);
    ::execl(program.c_str(), "graft", "train", config.c_str(), out.c_str(), nullptr);
    ::_exit(127);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

std::vector<double> losses(const std::string& directory) {
  std::vector<double> values;
  const std::string text = graft::read_file(directory + "/metrics.jsonl");
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const graft::Json line = graft::parse_json(text.substr(begin, end - begin), "metrics");
    if (line.find("loss") != nullptr) {
      values.push_back(line.at("loss").as_double());
    }
    begin = end + 1;
  }
  return values;
}

}  // namespace

TEST_CASE("train: other micro-batches and less memory end with the same adapter, to the bit",
          "[train][job][slow]") {
  const Fixture fixture;
  const graft::test::RunResult whole = fixture.train("whole", {"max_steps=4"});
  REQUIRE(whole.exit_code == 0);
  CHECK(whole.err.find("keep: blocks 0-3") != std::string::npos);
  REQUIRE(
      fixture.train("split", {"max_steps=4", "micro_batch_size=1", "gradient_accumulation_steps=4"})
          .exit_code == 0);
  CHECK(fixture.adapter_digest("split") == fixture.adapter_digest("whole"));
  const graft::test::RunResult small = fixture.train("small", {"max_steps=4", "max_memory=11MB"});
  REQUIRE(small.exit_code == 0);
  CHECK(small.err.find("recompute") != std::string::npos);
  CHECK(fixture.adapter_digest("small") == fixture.adapter_digest("whole"));
  const graft::Json run = graft::read_json_file(fixture.out("small") + "/run.json");
  CHECK(run.at("summary").at("plan").at("total_bytes").as_int() <= 11000000);
  CHECK(run.at("summary").at("memory").at("peak_bytes").as_int() > 0);
}

TEST_CASE("train: micro_batch_size: auto ends with the adapter of 1, to the bit", "[train][job]") {
  const Fixture fixture;
  const std::vector<std::string> common = {"max_steps=3", "gradient_accumulation_steps=5"};
  const auto train = [&](const std::string& name, std::vector<std::string> more) {
    more.insert(more.end(), common.begin(), common.end());
    return fixture.train(name, more);
  };
  REQUIRE(train("one", {"micro_batch_size=1"}).exit_code == 0);
  const graft::test::RunResult chosen = train("auto", {"micro_batch_size=auto"});
  REQUIRE(chosen.exit_code == 0);
  // Rows of 128 tokens: two make a product of 256.
  CHECK(chosen.err.find("3 steps of 5 rows, 2 at once") != std::string::npos);
  CHECK(fixture.adapter_digest("auto") == fixture.adapter_digest("one"));
  CHECK(graft::read_json_file(fixture.out("auto") + "/run.json")
            .at("config")
            .at("micro_batch_size")
            .as_string() == "auto");
  CHECK(train("wrong", {"micro_batch_size=most"}).exit_code == 2);
  const std::string known = train("wrong", {"micro_batch=1"}).err;
  CHECK(known.find("known: ") < known.find(" micro_batch_size,"));
  CHECK(known.find(" micro_batch_size,") == known.rfind(" micro_batch_size,"));  // listed once
}

TEST_CASE("train: a run that cannot fit is refused before a weight is read, with what would fit",
          "[train][job]") {
  const Fixture fixture;
  // A base whose weights are missing: the plan comes first.
  const std::string base = fixture.dir().file("base");
  graft::make_directories(base);
  graft::write_file_atomically(
      base + "/config.json", graft::read_file(source_path("examples/quickstart/base/config.json")));
  const RunResult refused =
      fixture.train("refused", {"base_model=" + base, "adapter=lora", "max_memory=9MB"});
  CHECK(refused.exit_code == 4);
  CHECK(refused.err.find("this run needs at least") != std::string::npos);
  CHECK(refused.err.find("9.0 MB are allowed (max_memory)") != std::string::npos);
  CHECK(refused.err.find("micro_batch_size: 1 with gradient_accumulation_steps: 4") !=
        std::string::npos);
  CHECK(refused.err.find("max_memory: ") != std::string::npos);
  size_t changes = 0;
  for (size_t at = 0; (at = refused.err.find("\n         ", at)) != std::string::npos; ++at) {
    ++changes;
  }
  CHECK(changes == 3);
  const RunResult wrong = fixture.train("wrong", {"max_memory=lots"});
  CHECK(wrong.exit_code == 2);
  CHECK(wrong.err.find("write a number and a unit: max_memory: 8GiB") != std::string::npos);
  const RunResult plan = run({"graft", "plan", fixture.config(), "output_dir=x", "--json"});
  REQUIRE(plan.exit_code == 0);
  const graft::Json json = graft::parse_json(plan.out, "plan");
  int64_t sum = 0;
  for (const auto& [name, bytes] : json.at("bytes").as_object()) sum += bytes.as_int();
  CHECK(json.at("total_bytes").as_int() == sum);
  CHECK(json.at("tokens_per_step").as_int() == 4 * 128);
}

TEST_CASE("train: a run killed again and again ends with the uninterrupted run's adapter",
          "[train][job][slow]") {
  const Fixture fixture;
  REQUIRE(fixture.train("whole").exit_code == 0);
  const std::string expected = fixture.adapter_digest("whole");
  const graft::Philox random(2026, 1);
  int killed = 0;
  for (uint64_t round = 0; killed < 10 && round < 60; ++round) {
    const auto ms = static_cast<int>(300 + random.below(round, 1500));
    const bool was_killed = kill_training(fixture, "killed", ms);
    killed += was_killed ? 1 : 0;
    if (!was_killed) {
      // It came to its end: compare, and start anew for the kills that are left.
      REQUIRE(fixture.adapter_digest("killed") == expected);
      graft::remove_tree(fixture.out("killed"));
    }
  }
  CHECK(killed == 10);
  const RunResult last = fixture.train("killed");
  CHECK(last.exit_code == 0);
  CHECK(fixture.adapter_digest("killed") == expected);
  CHECK(losses(fixture.out("killed")) == losses(fixture.out("whole")));
}

TEST_CASE("train: a finished run says so and changes nothing", "[train][job]") {
  const Fixture fixture;
  REQUIRE(fixture.train("a", {"max_steps=2"}).exit_code == 0);
  const std::string digest = fixture.adapter_digest("a");
  const RunResult again = fixture.train("a", {"max_steps=2"});
  CHECK(again.exit_code == 0);
  CHECK(again.err.find("nothing to do") != std::string::npos);
  CHECK(fixture.adapter_digest("a") == digest);
  // Another config in the same directory is refused and the difference named.
  const RunResult other = fixture.train("a", {"max_steps=2", "lora_r=8"});
  CHECK(other.exit_code == 2);
  CHECK(other.err.find("lora_r: 4 there, 8 now") != std::string::npos);
  CHECK(fixture.adapter_digest("a") == digest);
  CHECK(fixture.train("a", {"max_steps=2", "--resume", "none"}).exit_code == 2);
}

TEST_CASE("train: a signal saves and asks to be run again", "[train][job]") {
  const Fixture fixture;
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);
    const std::string program = std::string(GRAFT_BIN_DIR) + "/graft";
    const std::string config = fixture.config();
    const std::string out = "output_dir=" + fixture.out("a");
    ::execl(program.c_str(), "graft", "train", config.c_str(), out.c_str(), "num_epochs=200",
            nullptr);
    ::_exit(127);
  }
  int status = 0;
  while (!graft::file_exists(fixture.out("a") + "/metrics.jsonl")) {
    REQUIRE(::waitpid(child, &status, WNOHANG) == 0);  // it runs
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  ::kill(child, SIGTERM);
  ::waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 75);
  CHECK(graft::list_directory(fixture.out("a") + "/checkpoints").size() >= 1);
}

TEST_CASE("train: a damaged checkpoint is set aside and the one before is used", "[train][job]") {
  const Fixture fixture;
  REQUIRE(fixture.train("whole", {"max_steps=6"}).exit_code == 0);
  REQUIRE(fixture.train("a", {"max_steps=6"}).exit_code == 0);
  // The newest checkpoint of a run that is not finished, one bit changed.
  const std::string checkpoints = fixture.out("a") + "/checkpoints";
  const std::string newest = checkpoints + "/" + graft::list_directory(checkpoints).back();
  std::string bytes = graft::read_file(newest + "/trained.safetensors");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  graft::write_file_atomically(newest + "/trained.safetensors", bytes);
  graft::Json run_json = graft::read_json_file(fixture.out("a") + "/run.json");
  run_json.set("status", "running");
  graft::write_file_atomically(fixture.out("a") + "/run.json", graft::dump_json(run_json));
  graft::remove_tree(fixture.out("a") + "/adapter");
  const RunResult resumed = fixture.train("a", {"max_steps=6"});
  CHECK(resumed.exit_code == 0);
  CHECK(resumed.err.find("is damaged") != std::string::npos);
  CHECK(fixture.adapter_digest("a") == fixture.adapter_digest("whole"));
}

TEST_CASE("train: a checkpoint of another run is taken only on the same base", "[train][job]") {
  const Fixture fixture;
  REQUIRE(fixture.train("whole", {"max_steps=4"}).exit_code == 0);
  REQUIRE(fixture.train("first", {"max_steps=4"}).exit_code == 0);
  const RunResult from = fixture.train("second", {"max_steps=4", "--resume", fixture.out("first")});
  INFO(from.err);
  CHECK(from.exit_code == 0);
  CHECK(fixture.adapter_digest("second") == fixture.adapter_digest("whole"));
  graft::Json other = graft::read_json_file(fixture.out("first") + "/run.json");
  graft::Json inputs = other.at("inputs");
  inputs.set("base", "another");
  other.set("inputs", inputs);
  graft::write_file_atomically(fixture.out("first") + "/run.json", graft::dump_json(other));
  const RunResult refused =
      fixture.train("third", {"max_steps=4", "--resume", fixture.out("first")});
  CHECK(refused.exit_code == 2);
  CHECK(refused.err.find("another base model") != std::string::npos);
  CHECK(fixture.train("fourth", {"max_steps=4", "--resume", "/nonexistent"}).exit_code == 2);
}

TEST_CASE("generate: the answer ends where the model's positions end", "[train][job]") {
  // The quickstart's base has 256 positions.
  const RunResult result =
      run({"graft", "generate", "--model", source_path("examples/quickstart/base"), "--prompt",
           "{\"item\"", "--max-new-tokens", "1000", "--temperature", "3", "--seed", "4", "--json"});
  REQUIRE(result.exit_code == 0);
  const graft::Json json = graft::parse_json(result.out, "generate");
  CHECK(json.at("prompt_tokens").as_int() + static_cast<int64_t>(json.at("ids").size()) <= 256);
}

TEST_CASE("train: micro-batch 8 and 8 micro-batches of 1 give the same losses", "[train][job]") {
  const Fixture fixture;
  const std::vector<std::string> common = {"max_steps=4", "lora_dropout=0.2"};
  auto words = common;
  words.insert(words.end(), {"micro_batch_size=8", "gradient_accumulation_steps=1"});
  REQUIRE(fixture.train("whole", words).exit_code == 0);
  words = common;
  words.insert(words.end(), {"micro_batch_size=1", "gradient_accumulation_steps=8"});
  REQUIRE(fixture.train("split", words).exit_code == 0);
  const auto whole = losses(fixture.out("whole"));
  const auto split = losses(fixture.out("split"));
  REQUIRE(whole.size() == 4);
  for (size_t i = 0; i < whole.size(); ++i) {
    CHECK(split[i] == Approx(whole[i]).epsilon(1e-6));
  }
}

TEST_CASE("train: bad input is named, with its place and its exit code", "[train][job]") {
  const Fixture fixture;
  const auto fails = [&](const std::vector<std::string>& more, int code, const std::string& text) {
    const RunResult result = fixture.train("bad", more);
    INFO(result.err);
    CHECK(result.exit_code == code);
    CHECK(result.err.find(text) != std::string::npos);
    CHECK(result.err.find("error: ") != std::string::npos);
  };
  fails({"lora_r=0"}, 2, "lora_r must be in 1..512, got 0");
  fails({"lora_r=abc"}, 2, "at command line: lora_r");
  fails({"learning_rte=1"}, 2, "did you mean \"learning_rate\"?");
  fails({"base_model=/nonexistent"}, 74, "/nonexistent");
  fails({"datasets=[/nonexistent.jsonl]"}, 74, "/nonexistent.jsonl");
  fails({"lora_target_modules=[q_porj]"}, 2, "did you mean \"q_proj\"?");
  fails({"adapter=none", "base_weights=fresh"}, 2, "unknown value \"fresh\"");
  graft::write_file_atomically(fixture.dir().file("empty.jsonl"), "");
  fails({"datasets=[" + fixture.dir().file("empty.jsonl") + "]"}, 3, "empty.jsonl");
  graft::write_file_atomically(fixture.dir().file("masked.jsonl"),
                               R"({"input_ids": [5, 6, 7], "labels": [-100, -100, -100]})"
                               "\n");
  const std::string masked = "datasets=[" + fixture.dir().file("masked.jsonl") + "]";
  fails({masked}, 3, "none of the 1 records gives a document");
  fails({masked}, 3, "masked.jsonl:1: row 0: ");
  graft::write_file_atomically(fixture.config(), "base_model: x\nlora_r: 8\nlora_r: 9\n");
  fails({}, 2, "run.yaml:3:1");
}

TEST_CASE("train: steps that are not finite change nothing, name their rows, and end the run",
          "[train][job]") {
  const Fixture fixture;
  const std::string base = copy_base(fixture);
  // Finite weights whose products are not: 128 times 3e38 is above the largest float32.
  const std::unique_ptr<graft::train::Model> model =
      graft::train::load_model(base, graft::train::Precision::kFull);
  model->layers[2].o.base.dense.fill_(3e38F);
  graft::train::save_model(*model, base, base);
  const RunResult result = fixture.train(
      "a", {"base_model=" + base, "adapter=lora", "max_skipped_steps=2", "save_steps=1"});
  INFO(result.err);
  CHECK(result.exit_code == 5);
  for (const char* text :
       {"warning: step 1 skipped: the loss is not finite (rows: train.jsonl:", "step 2 skipped",
        "step 3 skipped", "error: 3 steps had losses or gradients that are not finite"}) {
    CAPTURE(text);
    CHECK(result.err.find(text) != std::string::npos);
  }
  CHECK(result.err.find("step 4") == std::string::npos);
  // The checkpoints behind the first and the second skipped step hold the same adapter.
  const auto trained = [&](const char* step) {
    return graft::read_file(fixture.out("a") + "/checkpoints/" + step + "/trained.safetensors");
  };
  CHECK(trained("step-00000001") == trained("step-00000002"));
}

TEST_CASE("train: a truncated weight file and a foreign tokenizer are refused", "[train][job]") {
  const Fixture fixture;
  const std::string base = copy_base(fixture);
  const std::string weights = graft::read_file(base + "/model.safetensors");
  graft::write_file_atomically(base + "/model.safetensors", weights.substr(0, weights.size() - 9));
  const RunResult truncated = fixture.train("a", {"base_model=" + base});
  CHECK(truncated.exit_code == 3);
  CHECK(truncated.err.find("model.safetensors") != std::string::npos);
  graft::write_file_atomically(base + "/model.safetensors", weights);
  std::string config = graft::read_file(base + "/config.json");
  config.replace(config.find("\"vocab_size\": 768"), 17, "\"vocab_size\": 300");
  graft::write_file_atomically(base + "/config.json", config);
  const RunResult foreign =
      fixture.train("b", {"base_model=" + base, "base_weights=random", "adapter=none"});
  CHECK(foreign.exit_code == 3);
  CHECK(foreign.err.find("the tokenizer has 768 tokens, the model only 300") != std::string::npos);
}

TEST_CASE("train: a full disk at any output is exit 74, and the run goes on afterwards",
          "[train][job][slow]") {
  const Fixture fixture;
  REQUIRE(fixture.train("whole", {"max_steps=4"}).exit_code == 0);
  const std::string graft = std::string(GRAFT_BIN_DIR) + "/graft";
  int failed = 0;
  // In blocks of 1 KiB: too small for run.json, the token store, the checkpoint's parts, the
  // adapter.
  for (const int blocks : {1, 8, 16, 30, 60, 90, 120, 180, 250, 400}) {
    const RunResult result =
        run({"/bin/bash", "-c",
             "ulimit -f " + std::to_string(blocks) + "; exec " + graft + " train " +
                 fixture.config() + " output_dir=" + fixture.out("full") + " max_steps=4"});
    INFO(blocks << "\n" << result.err);
    CHECK((result.exit_code == 74 || result.exit_code == 0));
    failed += result.exit_code == 74 ? 1 : 0;
  }
  CHECK(failed >= 3);
  REQUIRE(fixture.train("full", {"max_steps=4"}).exit_code == 0);
  CHECK(fixture.adapter_digest("full") == fixture.adapter_digest("whole"));
}

TEST_CASE("a full disk is exit 74 for every command that writes, and leaves nothing",
          "[train][job]") {
  const Fixture fixture;
  REQUIRE(fixture.train("run", {"max_steps=1"}).exit_code == 0);
  const std::string base = source_path("examples/quickstart/base");
  const std::string out = fixture.dir().file("out");
  const std::string ids = fixture.dir().file("ids.safetensors");
  const std::vector<int64_t> values(64, 5);
  graft::write_safetensors(
      ids, {{{"input_ids", graft::DType::kI64, {1, 64}}, std::as_bytes(std::span(values))}});
  const std::vector<std::string> commands = {
      "logits --model " + base + " --ids " + ids + " --out " + out,
      "quantize " + base + " --out " + out,
      "adapter merge --model " + base + " --adapter " + fixture.out("run") + "/adapter --out " +
          out,
      "data tokenize " + fixture.dir().file("train.jsonl") + " --model " + base + " --out " + out,
      "data clean " + fixture.dir().file("train.jsonl") + " --out " + out,
      "eval --model " + base + " --data " + fixture.dir().file("train.jsonl") +
          " --generate --max-new-tokens 2 --predictions " + out};
  const std::string command = commands[GENERATE(range(0U, 6U))];
  CAPTURE(command);
  // Files of at most 4 KiB: enough for small ones, not for the result.
  const RunResult result = run(
      {"/bin/bash", "-c", "ulimit -f 4; exec " + std::string(GRAFT_BIN_DIR) + "/graft " + command},
      "", {"TMPDIR=" + fixture.dir().path()});
  INFO(result.err);
  CHECK(result.exit_code == 74);
  CHECK(result.err.find("error: ") != std::string::npos);
  CHECK_FALSE(graft::file_exists(out));
  CHECK((!graft::directory_exists(out) || graft::list_directory(out).size() <= 1));
}

TEST_CASE("eval: packed documents and single ones give the same loss", "[train][job]") {
  // graft eval packs many documents into one pass; the same file row by row must agree to 1e-6.
  const TempDir dir;
  const std::string text = graft::read_file(source_path("examples/quickstart/eval.jsonl"));
  double sum = 0;
  int64_t tokens = 0;
  std::string few;
  size_t begin = 0;
  for (int row = 0; row < 6; ++row) {
    const size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end - begin + 1);
    few += line;
    graft::write_file_atomically(dir.file("one.jsonl"), line);
    const RunResult one = run({"graft", "eval", "--model", source_path("examples/quickstart/base"),
                               "--data", dir.file("one.jsonl"), "--json"});
    REQUIRE(one.exit_code == 0);
    const graft::Json result = graft::parse_json(one.out, "eval");
    const int64_t count = result.at("supervised_tokens").as_int();
    sum += result.at("loss").as_double() * static_cast<double>(count);
    tokens += count;
    begin = end + 1;
  }
  graft::write_file_atomically(dir.file("all.jsonl"), few);
  const RunResult all = run({"graft", "eval", "--model", source_path("examples/quickstart/base"),
                             "--data", dir.file("all.jsonl"), "--json"});
  const graft::Json result = graft::parse_json(all.out, "eval");
  CHECK(result.at("supervised_tokens").as_int() == tokens);
  CHECK(result.at("loss").as_double() == Approx(sum / static_cast<double>(tokens)).epsilon(1e-6));
}

TEST_CASE("generate: stories260K's greedy text equals Hugging Face's", "[train][job]") {
  const std::string shared = graft::test::shared_data();
  if (shared.empty()) {
    return;
  }
  const std::string model = shared + "/data/models/stories260K";
  const std::string expected = graft::read_file(model + "/golden_greedy.txt");
  const graft::SafetensorsFile golden(model + "/golden.safetensors");
  const RunResult result = run({"graft", "generate", "--model", model, "--prompt",
                                "Once upon a time", "--max-new-tokens", "256"});
  REQUIRE(result.exit_code == 0);
  CAPTURE(result.out, expected);
  const std::string got = "Once upon a time" + result.out;
  // The golden text may be shorter or end in white space; all of it must be there.
  const std::string wanted = expected.substr(0, expected.find_last_not_of(" \n") + 1);
  CHECK(got.substr(0, wanted.size()) == wanted);
}

TEST_CASE("train: every kind of adapter is trained, resumed, reloaded and merged",
          "[train][job][adapters][slow]") {
  struct Kind {
    std::vector<std::string> options;
    const char* reload;
  };
  const Kind kind = GENERATE(
      Kind{{"use_dora=true", "lora_modules_to_save=[lm_head]", "optimizer=adamw_8bit"},
           "logits equal"},
      Kind{{"adapter=lora", "init_lora_weights=pissa", "lora_dropout=0"}, "logits within "},
      Kind{{"init_lora_weights=loftq_niter_4", "lora_rank_pattern={layers.0.*: 2}",
            "lora_exclude_modules=[down_proj]", "loraplus_lr_ratio=4"},
           "logits equal"},
      Kind{{"init_lora_weights=loftq", "loftq_iter=3", "new_tokens=[<tool>]"}, "logits equal"},
      Kind{{"init_lora_weights=pissa_niter_4", "compute=bf16"}, "logits equal"});
  const Fixture fixture;
  const auto train = [&](const std::string& name, const std::string& more) {
    std::vector<std::string> options = kind.options;
    options.push_back("max_steps=6");
    if (!more.empty()) options.push_back(more);
    return fixture.train(name, options);
  };
  const RunResult whole = train("whole", "");
  INFO(whole.err);
  REQUIRE(whole.exit_code == 0);
  CHECK(whole.err.find(std::string("adapter reloaded: ") + kind.reload) != std::string::npos);
  const std::vector<double> loss = losses(fixture.out("whole"));
  CHECK(loss.back() < 0.8 * loss.front());
  // Begun again from a checkpoint in the middle: the same adapter.
  for (const std::string& name : graft::list_directory(fixture.out("whole") + "/checkpoints")) {
    if (name == "step-00000006") graft::remove_tree(fixture.out("whole") + "/checkpoints/" + name);
  }
  graft::Json run_file = graft::read_json_file(fixture.out("whole") + "/run.json");
  run_file.set("status", "running");
  graft::write_file_atomically(fixture.out("whole") + "/run.json", graft::dump_json(run_file));
  const std::string digest = fixture.adapter_digest("whole");
  const std::string own_base = fixture.out("whole") + "/base";
  const bool owns_base = graft::directory_exists(own_base);
  const std::string weights = owns_base ? graft::sha256_file(own_base + "/model.safetensors") : "";
  const RunResult resumed = train("whole", "");
  INFO(resumed.err);
  REQUIRE(resumed.exit_code == 0);
  CHECK(resumed.err.find("resume  from step 4") != std::string::npos);
  CHECK(fixture.adapter_digest("whole") == digest);
  CHECK((!owns_base || graft::sha256_file(own_base + "/model.safetensors") == weights));

  const auto loss_of = [&](std::vector<std::string> options) {
    std::vector<std::string> words = {"graft", "eval", "--data", fixture.dir().file("train.jsonl"),
                                      "--json"};
    words.insert(words.end(), options.begin(), options.end());
    const RunResult result = run(words);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return graft::parse_json(result.out, "eval").at("loss").as_double();
  };
  const std::string checkpoint = source_path("examples/quickstart/base");
  const std::string base = owns_base ? own_base : checkpoint;
  const std::string adapter = fixture.out("whole") + "/adapter";
  const bool full = kind.options[0] == "adapter=lora" || owns_base;
  const double adapted = full ? loss_of({"--model", base, "--adapter", adapter})
                              : loss_of({"--model", base, "--adapter", adapter, "--load-in-4bit"});
  if (owns_base) {
    const std::vector<std::string> wrong = {
        "graft",     "eval",  "--data", fixture.dir().file("train.jsonl"),
        "--adapter", adapter, "--model"};
    const auto run_with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), wrong.begin(), wrong.end());
      return run(more);
    };
    const RunResult other = run_with({checkpoint, "--load-in-4bit"});
    CHECK(other.exit_code == 3);
    CHECK(other.err.find("these are others") != std::string::npos);
    CHECK(run_with({base, "--compare-base"}).exit_code == 2);
  }
  const RunResult merged = run({"graft", "adapter", "merge", "--model", base, "--adapter", adapter,
                                "--out", fixture.out("merged")});
  INFO(merged.err);
  REQUIRE(merged.exit_code == 0);
  CHECK(loss_of({"--model", fixture.out("merged")}) == Approx(adapted).epsilon(1e-4));
}

TEST_CASE("train: in bf16 a run is trained, resumed, evaluated and planned as it says",
          "[train][job][compute][slow]") {
  const Fixture fixture;
  const std::string data = fixture.dir().file("train.jsonl");
  const std::vector<std::string> options = {"compute=bf16", "max_steps=4",
                                            "test_datasets=[" + data + "]"};
  const RunResult trained = fixture.train("half", options);
  INFO(trained.err);
  REQUIRE(trained.exit_code == 0);
  CHECK(trained.err.find("products in bf16") != std::string::npos);
  CHECK(trained.err.find("adapter reloaded: logits equal") != std::string::npos);
  const std::vector<double> loss = losses(fixture.out("half"));
  CHECK(loss.back() < loss.front());
  const graft::Json run_file = graft::read_json_file(fixture.out("half") + "/run.json");
  CHECK(run_file.at("config").at("compute").as_string() == "bf16");
  const RunResult other = fixture.train("half", {"compute=fp32", options[1], options[2]});
  CHECK(other.exit_code == 2);
  CHECK(other.err.find("compute: \"bf16\" there, \"fp32\" now") != std::string::npos);

  // graft eval computes what training did when it is asked to.
  const std::string base = source_path("examples/quickstart/base");
  const auto loss_in = [&](const char* compute) {
    const RunResult result =
        run({"graft", "eval", "--model", base, "--adapter", fixture.out("half") + "/adapter",
             "--load-in-4bit", "--data", data, "--json", "--compute", compute});
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return graft::parse_json(result.out, "eval").at("loss").as_double();
  };
  const double held_out = run_file.at("summary").at("eval").at("eval_loss").as_double();
  CHECK(loss_in("bf16") == Approx(held_out).epsilon(1e-9));
  CHECK(loss_in("fp32") != Approx(held_out).epsilon(1e-9));
  const RunResult unknown =
      run({"graft", "generate", "--model", base, "--prompt", "a", "--compute", "half"});
  CHECK(unknown.exit_code == 2);
  CHECK(unknown.err.find("known: auto, fp32, bf16") != std::string::npos);

  // Dense weights take half the memory, and a step says what it computed with.
  const auto planned = [&](const char* compute) {
    const RunResult plan = run({"graft", "plan", fixture.config(), "output_dir=x", "adapter=lora",
                                std::string("compute=") + compute, "--json"});
    REQUIRE(plan.exit_code == 0);
    const graft::Json json = graft::parse_json(plan.out, "plan");
    CHECK(json.at("compute").as_string() == compute);
    return json.at("bytes").at("base weights").as_double();
  };
  CHECK(planned("bf16") == Approx(0.5 * planned("fp32")).epsilon(0.01));
  const RunResult step = run({"graft", "bench", "step", "--model", base, "--batch", "1", "--seq",
                              "32", "--steps", "2", "--compute", "bf16", "--json"});
  REQUIRE(step.exit_code == 0);
  CHECK(graft::parse_json(step.out, "step").at("compute").as_string() == "bf16");
  CHECK(run({"graft", "bench", "step", "--model", base, "--lora-r", "0", "--compute", "bf16"})
            .exit_code == 2);
}

TEST_CASE("eval: base and adapter side by side, by source", "[train][job]") {
  const Fixture fixture;
  const RunResult trained = fixture.train("run", {"max_steps=6"});
  INFO(trained.err);
  REQUIRE(trained.exit_code == 0);
  const std::string text = graft::read_file(fixture.dir().file("train.jsonl"));
  const size_t cut = text.find('\n', text.size() / 3) + 1;
  graft::write_file_atomically(fixture.out("a.jsonl"), text.substr(0, cut));
  graft::write_file_atomically(fixture.out("b.jsonl"), text.substr(cut));
  const auto eval = [&](std::vector<std::string> options) {
    std::vector<std::string> words = {"graft",
                                      "eval",
                                      "--model",
                                      source_path("examples/quickstart/base"),
                                      "--data",
                                      fixture.out("a.jsonl"),
                                      fixture.out("b.jsonl"),
                                      "--load-in-4bit"};
    words.insert(words.end(), options.begin(), options.end());
    return run(words);
  };
  const auto json_of = [&](const std::vector<std::string>& options) {
    const RunResult result = eval(options);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return graft::parse_json(result.out, "eval");
  };
  const std::string adapter = fixture.out("run") + "/adapter";
  const graft::Json both = json_of({"--adapter", adapter, "--compare-base", "--json"});
  const graft::Json base = json_of({"--json"}), adapted = json_of({"--adapter", adapter, "--json"});
  CHECK(graft::dump_json(both.at("base")) == graft::dump_json(base));
  CHECK(graft::dump_json(both.at("sources")) == graft::dump_json(adapted.at("sources")));
  REQUIRE(both.at("sources").size() == 2);
  // The sources add up to the whole.
  double loss = 0, correct = 0, tokens = 0;
  for (const graft::Json& source : both.at("sources").as_array()) {
    const auto count = static_cast<double>(source.at("supervised_tokens").as_int());
    tokens += count;
    loss += count * source.at("loss").as_double();
    correct += count * source.at("token_accuracy").as_double();
  }
  CHECK(loss / tokens == Approx(both.at("loss").as_double()).epsilon(1e-9));
  CHECK(correct / tokens == Approx(both.at("token_accuracy").as_double()).epsilon(1e-9));
  const RunResult table = eval({"--adapter", adapter, "--compare-base"});
  CHECK(table.out.find("base  adapter") != std::string::npos);
  CHECK(table.out.find("b.jsonl: token accuracy") != std::string::npos);
  const RunResult alone = eval({"--compare-base"});
  CHECK(alone.exit_code == 2);
  CHECK(alone.err.find("give --adapter DIR") != std::string::npos);
}

TEST_CASE("train: every kind of block is trained, evaluated, merged and generated from",
          "[train][job][families][slow]") {
  const char* name = GENERATE("phi3", "gemma3", "mixtral", "olmo2");
  const Fixture fixture;
  const std::string quickstart = source_path("examples/quickstart/base");
  const std::string base = fixture.out("base");
  // The family's blocks under the quickstart's tokenizer.
  graft::Json config = graft::read_json_file(
      graft::test::write_family_config(fixture.dir().path(), graft::test::tiny_family(name)) +
      "/config.json");
  config.set("vocab_size", graft::read_json_file(quickstart + "/config.json").at("vocab_size"));
  config.set("max_position_embeddings", 256);
  graft::make_directories(base);
  for (const std::string& file : graft::list_directory(quickstart)) {
    if (file.rfind("tokenizer", 0) == 0) {
      graft::write_file_atomically(base + "/" + file, graft::read_file(quickstart + "/" + file));
    }
  }
  graft::write_file_atomically(base + "/config.json", graft::dump_json(config));
  graft::train::save_model(*graft::test::make_rough_model(base, 7), base, base);

  const std::string data = fixture.out("train.jsonl");
  const auto loss_of = [&](std::vector<std::string> options) {
    std::vector<std::string> words = {"graft", "eval", "--data", data, "--json"};
    words.insert(words.end(), options.begin(), options.end());
    const RunResult result = run(words);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return graft::parse_json(result.out, "eval").at("loss").as_double();
  };
  const RunResult trained = fixture.train("run", {"base_model=" + base, "max_steps=8"});
  INFO(trained.err);
  REQUIRE(trained.exit_code == 0);
  CHECK(trained.err.find("adapter reloaded: logits equal") != std::string::npos);
  const std::string adapter = fixture.out("run") + "/adapter";
  const double adapted = loss_of({"--model", base, "--adapter", adapter, "--load-in-4bit"});
  CHECK(adapted < 0.95 * loss_of({"--model", base, "--load-in-4bit"}));
  // Merged onto the weights that it was trained on: the same sums in another order.
  const RunResult merged = run({"graft", "adapter", "merge", "--model", base, "--adapter", adapter,
                                "--out", fixture.out("merged")});
  INFO(merged.err);
  REQUIRE(merged.exit_code == 0);
  CHECK(loss_of({"--model", fixture.out("merged")}) == Approx(adapted).epsilon(1e-5));
  const auto text_of = [&](const std::string& model, const std::vector<std::string>& options) {
    std::vector<std::string> words = {"graft",
                                      "generate",
                                      "--model",
                                      model,
                                      "--prompt",
                                      "good morning, how can i clean",
                                      "--max-new-tokens",
                                      "24",
                                      "--json"};
    words.insert(words.end(), options.begin(), options.end());
    const RunResult result = run(words);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return graft::parse_json(result.out, "generate").at("ids");
  };
  CHECK(text_of(base, {"--adapter", adapter, "--load-in-4bit"}) ==
        text_of(fixture.out("merged"), {}));
  // Every tensor, in place of adapters.
  const RunResult full = fixture.train(
      "full", {"base_model=" + base, "adapter=none", "max_steps=4", "learning_rate=0.002"});
  INFO(full.err);
  REQUIRE(full.exit_code == 0);
  CHECK(loss_of({"--model", fixture.out("full") + "/model"}) < loss_of({"--model", base}));
}
