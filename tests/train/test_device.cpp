// --device: whole runs on the emulated GPU, and what is refused.
#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "kernels/memory.h"
#include "tests/support/support.h"
#include "tests/train/reference.h"
#include "train/model/weights.h"

namespace {

using namespace graft;  // NOLINT(google-build-using-namespace)
using test::RunResult;

// A run of a few short steps on a model of one block, with the tokenizer of the quickstart.
class Fixture {
 public:
  Fixture() {
    const std::string from = test::source_path("examples/quickstart/base");
    make_directories(base());
    for (const std::string& name : list_directory(from)) {
      const std::string path = join_path(from, name);
      if (file_exists(path)) write_file_atomically(join_path(base(), name), read_file(path));
    }
    write_file_atomically(join_path(base(), "config.json"), R"({"model_type": "llama",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 768,
        "initializer_range": 0.15})");
    train::save_model(*test::make_rough_model(base(), 7), base(), base());
    const std::string records = read_file(test::source_path("examples/quickstart/eval.jsonl"));
    write_file_atomically(dir_.file("train.jsonl"), first_lines(records, 12));
    write_file_atomically(dir_.file("test.jsonl"), first_lines(records, 2));
    write_file_atomically(
        config(), "base_model: " + base() + "\ndatasets: [" + dir_.file("train.jsonl") +
                      "]\ntest_datasets: [" + dir_.file("test.jsonl") +
                      "]\nadapter: qlora\nlora_r: 8\nsequence_len: 128\nmicro_batch_size: 1\n"
                      "gradient_accumulation_steps: 2\nlearning_rate: 0.005\nmax_steps: 4\n"
                      "save_steps: 1\nmax_grad_norm: 0.3\nthreads: 2\ncompute: bf16\n");
  }
  std::string base() const { return dir_.file("base"); }
  std::string config() const { return dir_.file("run.yaml"); }
  std::string out(const std::string& name) const { return dir_.file(name); }
  RunResult train(const std::string& name,
                  const std::string& device,
                  const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"graft",    "train", config(), "output_dir=" + out(name),
                                      "--device", device};
    words.insert(words.end(), more.begin(), more.end());
    return test::run(words);
  }
  std::string adapter_digest(const std::string& name) const {
    return sha256_file(out(name) + "/adapter/adapter_model.safetensors");
  }
  // The losses of the steps, and of what was held out.
  std::vector<double> losses(const std::string& name) const {
    std::vector<double> values;
    const std::string text = read_file(out(name) + "/metrics.jsonl");
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      const Json line = parse_json(text.substr(begin, end - begin), "metrics");
      for (const char* key : {"loss", "eval_loss"}) {
        if (line.find(key) != nullptr) values.push_back(line.at(key).as_double());
      }
      begin = end + 1;
    }
    return values;
  }

 private:
  static std::string first_lines(const std::string& text, int count) {
    size_t end = 0;
    for (int line = 0; line < count; ++line) end = text.find('\n', end) + 1;
    return text.substr(0, end);
  }
  test::TempDir dir_;
};

// Starts the training and ends it with SIGKILL when the checkpoint is there.
void kill_at(const Fixture& fixture, const std::string& name, const std::string& checkpoint) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);
    const std::string program = std::string(GRAFT_BIN_DIR) + "/graft";
    const std::string config = fixture.config(), out = "output_dir=" + fixture.out(name);
    ::execl(program.c_str(), "graft", "train", config.c_str(), out.c_str(), "--device", "emu",
            nullptr);
    ::_exit(127);
  }
  int status = 0;
  while (!directory_exists(fixture.out(name) + "/checkpoints/" + checkpoint)) {
    REQUIRE(::waitpid(child, &status, WNOHANG) == 0);  // it runs
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  REQUIRE(WIFSIGNALED(status));
}

}  // namespace

TEST_CASE("device: a run on the emulated GPU that is killed ends as the uninterrupted one",
          "[train][job][emu][slow]") {
  const Fixture fixture;
  const RunResult whole = fixture.train("whole", "emu");
  INFO(whole.err);
  REQUIRE(whole.exit_code == 0);
  // Narrow, and read back from its files with the same logits.
  CHECK(whole.err.find("attention  graft's own kernel") != std::string::npos);
  CHECK(read_json_file(fixture.out("whole") + "/run.json").at("status").as_string() == "finished");
  kill_at(fixture, "killed", "step-00000002");
  const RunResult resumed = fixture.train("killed", "emu");
  INFO(resumed.err);
  REQUIRE(resumed.exit_code == 0);
  CHECK(resumed.err.find("resume  from step ") != std::string::npos);
  CHECK(fixture.adapter_digest("killed") == fixture.adapter_digest("whole"));
  CHECK(fixture.losses("killed") == fixture.losses("whole"));
  CHECK(fixture.losses("whole").size() >= 5);  // of four steps and of what is held out
}

TEST_CASE("device: in float32 a run on the emulated GPU ends with the processor's adapter",
          "[train][job][emu][slow]") {
  const Fixture fixture;
  const std::vector<std::string> common = {"compute=fp32", "max_steps=2", "lora_dropout=0.1",
                                           "optimizer=adamw_8bit", "lora_r=64"};
  const RunResult emulated = fixture.train("emu", "emu", common);
  INFO(emulated.err);
  REQUIRE(emulated.exit_code == 0);
  REQUIRE(fixture.train("cpu", "cpu", common).exit_code == 0);
  CHECK(fixture.adapter_digest("emu") == fixture.adapter_digest("cpu"));
  CHECK(fixture.losses("emu") == fixture.losses("cpu"));
}

TEST_CASE("device: a plan and a bench know the device", "[train][job][emu]") {
  const Fixture fixture;
  const auto plan_on = [&](const char* device, const char* compute) {
    const RunResult plan = test::run(
        {"graft", "plan", fixture.config(), "output_dir=x", compute, "--device", device, "--json"});
    INFO(plan.err);
    REQUIRE(plan.exit_code == 0);
    return parse_json(plan.out, "plan");
  };
  // Narrow: activations of half the size.
  for (const char* device : {"cpu", "emu"}) {
    CAPTURE(device);
    CHECK(plan_on(device, "compute=bf16").at("buffers_by_phase").at("forward").as_int() <
          plan_on(device, "compute=fp32").at("buffers_by_phase").at("forward").as_int());
  }
}

TEST_CASE("device: under the least memory a run keeps the embedding on the host, to the same end",
          "[train][job][emu][slow]") {
  const Fixture fixture;
  const RunResult refused = fixture.train("refused", "emu", {"max_memory=1"});
  CHECK(refused.exit_code == 4);
  const std::string_view key = "max_memory: ";
  const size_t at = refused.err.find(key);
  REQUIRE(at != std::string::npos);
  const size_t begin = at + key.size();
  const std::string least = refused.err.substr(begin, refused.err.find(',', begin) - begin);
  const RunResult small = fixture.train("small", "emu", {"max_memory=" + least});
  INFO(small.err);
  REQUIRE(small.exit_code == 0);
  CHECK(small.err.find("the embedding stays in the host's memory") != std::string::npos);
  REQUIRE(fixture.train("large", "emu").exit_code == 0);
  CHECK(fixture.adapter_digest("small") == fixture.adapter_digest("large"));
  CHECK(fixture.losses("small") == fixture.losses("large"));
}

TEST_CASE("device: a bench asks the device for what was planned", "[train][job][emu]") {
  const Fixture fixture;
  const auto bench = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = {
        "graft",          "bench",     "step",  "--shape", fixture.base(), "--device", "emu",
        "--batch",        "1",         "--seq", "16",      "--steps",      "2",        "--json",
        "--load-in-4bit", "--compute", "bf16"};
    words.insert(words.end(), more.begin(), more.end());
    const RunResult done = test::run(words);
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    return parse_json(done.out, "bench");
  };
  const Json whole = bench({}), small = bench({"--optimizer", "adamw_8bit"});
  const auto planned = [](const Json& json) { return json.at("planned_bytes").as_int(); };
  const auto part = [](const Json& json, const char* of, const char* name) {
    return json.at("planned_parts").at(of).at(name).as_int();
  };
  // Besides: AdamW's squares of tiles, and two numbers.
  CHECK(whole.at("allocated_bytes").as_int() >= planned(whole));
  CHECK(whole.at("allocated_bytes").as_int() - planned(whole) < 1 << 10);
  CHECK(part(small, "on_host", "moments of AdamW") == part(small, "bytes", "moments of AdamW"));
  CHECK(planned(small) == planned(whole) - part(whole, "bytes", "moments of AdamW"));
  CHECK(small.at("losses").as_array()[0].as_double() ==
        whole.at("losses").as_array()[0].as_double());
  const RunResult unknown =
      test::run({"graft", "bench", "step", "--shape", fixture.base(), "--optimizer", "adam"});
  CHECK(unknown.exit_code == 2);
  CHECK(unknown.err.find("unknown optimizer \"adam\"") != std::string::npos);
}

TEST_CASE("device: what is not there or not known is refused, with the reason", "[train][job]") {
  const Fixture fixture;
  const std::vector<std::string> commands[] = {
      {"graft", "train", fixture.config(), "output_dir=" + fixture.out("none")},
      {"graft", "plan", fixture.config(), "output_dir=" + fixture.out("none")},
      {"graft", "bench", "step", "--shape", fixture.base(), "--steps", "1"}};
  char name[256];
  double speed = 0;
  const bool has_gpu = graft_device_describe(GRAFT_CUDA, name, sizeof name, &speed) == GRAFT_OK;
  for (std::vector<std::string> words : commands) {
    CAPTURE(words[1]);
    words.insert(words.end(), {"--device", "gpu"});
    const RunResult unknown = test::run(words);
    CHECK(unknown.exit_code == 2);
    CHECK(unknown.err.find("unknown device \"gpu\"") != std::string::npos);
    CHECK(unknown.err.find("cuda") != std::string::npos);
    if (has_gpu) continue;
    words.back() = "cuda";
    const RunResult missing = test::run(words);
    CAPTURE(missing.err);
    CHECK(missing.exit_code == 4);
    CHECK(missing.err.find("--device cuda") != std::string::npos);
    CHECK(missing.err.find("leave out --device") != std::string::npos);
    words.back() = "auto";
  }
  CHECK_FALSE(directory_exists(fixture.out("none")));
  if (has_gpu) WARN("there is a GPU here: that none is there was not tried");
}
