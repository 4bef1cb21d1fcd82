// graft check: every fault of a config, its model and its data, in one run.
#include <algorithm>
#include <cmath>
#include <string>

#include <catch2/catch.hpp>

#include "adapters/quantize.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "train/job/check.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

constexpr const char* kGood = R"({"messages": [{"role": "user", "content": "a question"},
  {"role": "assistant", "content": "an answer"}]})";

// A model directory and a config of its own, on the quickstart's base.
class Fixture {
 public:
  Fixture() {
    const std::string from = test::source_path("examples/quickstart/base");
    make_directories(base());
    for (const std::string& name : list_directory(from)) {
      write_file_atomically(base() + "/" + name, read_file(join_path(from, name)));
    }
    write_data("data.jsonl", {kGood, kGood});
  }
  std::string base() const { return dir_.file("base"); }
  std::string file(const std::string& name) const { return dir_.file(name); }
  std::string write_data(const std::string& name, const std::vector<std::string>& rows) const {
    std::string text;
    for (std::string row : rows) {
      std::replace(row.begin(), row.end(), '\n', ' ');
      text += row + "\n";
    }
    write_file_atomically(file(name), text);
    return file(name);
  }
  // The template of the base with `change` made to it.
  void set_template(const std::string& text) const {
    Json config = read_json_file(base() + "/tokenizer_config.json");
    config.set("chat_template", text);
    write_file_atomically(base() + "/tokenizer_config.json", dump_json(config));
  }
  std::string write_config(const std::string& extra = "") const {
    write_file_atomically(file("run.yaml"),
                          "base_model: " + base() + "\ndatasets: [" + file("data.jsonl") +
                              "]\nadapter: lora\nlora_r: 4\nsequence_len: 64\noutput_dir: " +
                              file("out") + "\n" + extra);
    return file("run.yaml");
  }
  CheckReport check(const std::vector<std::string>& overrides = {}) const {
    return check_config(write_config(), overrides);
  }

 private:
  test::TempDir dir_;
};

// The findings of one part: "error: what @ where".
std::vector<std::string> found(const CheckReport& report, const std::string& part) {
  std::vector<std::string> texts;
  for (const Finding& finding : report.findings) {
    if (finding.part != part) continue;
    texts.push_back((finding.severity == Severity::kError ? "error: " : "warning: ") +
                    finding.text.what + " @ " + finding.text.where);
  }
  return texts;
}

bool has(const std::vector<std::string>& texts, const std::string& begin, const std::string& part) {
  return std::any_of(texts.begin(), texts.end(), [&](const std::string& text) {
    return text.rfind(begin, 0) == 0 && text.find(part) != std::string::npos;
  });
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("check: a config that trains has no findings, and everything was looked at",
          "[train][check]") {
  const Fixture fixture;
  const CheckReport report = fixture.check();
  for (const Finding& finding : report.findings) UNSCOPED_INFO(finding.text.what);
  CHECK(report.findings.empty());
  CHECK(report.parts ==
        Names{"config", "model", "weights", "text", "data", "adapter", "plan", "output"});
  CHECK(report.skipped.empty());
  REQUIRE(report.data.size() == 1);
  CHECK(report.data[0].records == 2);
  CHECK(report.data[0].supervised > 0);
  CHECK(report.data[0].supervised < report.data[0].tokens);
  // all-linear of four blocks: q, k, v, o, gate, up, down.
  REQUIRE(report.coverage.size() == 2);
  CHECK(report.coverage[0].pattern == "all-linear");
  CHECK(report.coverage[0].of_layer == std::vector<int64_t>(4, 7));
  CHECK(report.coverage[1].of_layer == std::vector<int64_t>(4, 7));
  CHECK(report.planned_bytes > 0);
  CHECK_FALSE(directory_exists(fixture.file("out")));
}

TEST_CASE("check: all that is wrong is found in one run, not only the first of it",
          "[train][check]") {
  const Fixture fixture;
  make_directories(fixture.file("out"));
  write_file_atomically(fixture.file("out") + "/thesis.doc", "x");
  remove_file(fixture.base() + "/model.safetensors");
  const std::string config = fixture.write_config(
      "learning_rte: 1\nmicro_batch_size: 0\ntrain_on_turns: most\n"
      "test_datasets: [/nonexistent.jsonl]\n");
  const CheckReport report =
      check_config(config, {"lora_alpha=high", "lora_target_modules=[q_porj]", "warmup_ratio=2"});
  const std::vector<std::string> of_config = found(report, "config");
  CHECK(of_config.size() == 5);
  CHECK(has(of_config, "error: ", "did you mean \"learning_rate\"? @ " + config + ":7:15"));
  CHECK(has(of_config, "error: ", "micro_batch_size must be in 1..4096, got 0"));
  CHECK(has(of_config, "error: ", "unknown value \"most\""));
  CHECK(has(of_config, "error: ", "command line: lora_alpha"));
  CHECK(has(of_config, "error: ", "command line: warmup_ratio"));
  CHECK(has(found(report, "weights"), "error: ", "no model.safetensors"));
  CHECK(has(found(report, "data"), "error: ", "/nonexistent.jsonl"));
  CHECK(has(found(report, "adapter"), "error: ", "did you mean \"q_proj\"?"));
  CHECK(has(found(report, "output"), "error: ", "holds \"thesis.doc\""));
  CHECK(report.data.size() == 1);  // the other file was read all the same
  CHECK(report.skipped == Names{"plan"});
  CHECK(report.errors() == 9);
}

TEST_CASE("check: keys that are missing are named, and the rest is read without them",
          "[train][check]") {
  const test::TempDir dir;
  write_file_atomically(dir.file("run.yaml"), "lora_r: 0\n");
  const CheckReport report = check_config(dir.file("run.yaml"), {});
  const std::vector<std::string> texts = found(report, "config");
  CHECK(texts.size() == 4);
  CHECK(has(texts, "error: ", "missing key \"base_model\""));
  CHECK(has(texts, "error: ", "missing key \"output_dir\""));
  CHECK(has(texts, "error: ", "no training data"));
  CHECK(has(texts, "error: ", "lora_r must be in 1..512, got 0"));
  CHECK(report.skipped == Names{"model", "weights", "text", "data", "adapter", "plan", "output"});
}

TEST_CASE("check: records that are left out are counted by reason, with the first of each",
          "[train][check]") {
  const Fixture fixture;
  fixture.write_data(
      "data.jsonl",
      {kGood, "{\"messages\": 7}", "not json", R"({"messages": [{"role": "user", "content": "a"},
           {"role": "assistant", "content": "b", "train": false}]})",
       R"({"messages": [{"role": "user", "content": "</s>"},
           {"role": "assistant", "content": "b"}]})",
       R"({"messages": [{"role": "system", "content": "a"},
           {"role": "assistant", "content": "b"}]})",
       R"({"messages": [{"role": "user", "content": "a"},
           {"role": "assistant", "content": "b", "weight": "much"}]})",
       R"({"messages": [{"role": "user", "content": ")" + std::string(300, 'x') +
           R"("}, {"role": "assistant", "content": "b"}]})"});
  const CheckReport report = fixture.check();
  const std::vector<std::string> of_data = found(report, "data"), of_mask = found(report, "mask");
  CHECK(has(of_data, "warning: " + fixture.file("data.jsonl") + ": 2 records cannot be read",
            "data.jsonl:2: "));
  CHECK(has(of_mask, "warning: ", "1 records have no trained token"));
  CHECK(has(of_mask, "warning: ", "data.jsonl:4: "));
  CHECK(has(of_data, "warning: ", "1 records hold the text of special tokens"));
  CHECK(has(found(report, "text"), "warning: ", "refused by the chat template"));
  CHECK(has(of_data, "warning: ", "of the wrong kind"));
  // excess_length_strategy: raise would end the run here.
  CHECK(has(of_data, "error: ", "1 documents are longer than sequence_len"));
  CHECK(report.errors() == 1);
  REQUIRE(report.data.size() == 1);
  CHECK(report.data[0].records == 8);
  CHECK(report.data[0].documents == 1);
  CHECK(fixture.check({"excess_length_strategy=drop"}).errors() == 0);
}

TEST_CASE("check: masks that teach something else than is meant are warned of", "[train][check]") {
  const Fixture fixture;
  fixture.write_data("data.jsonl", {R"({"messages": [{"role": "user", "content": "p"},
      {"role": "assistant", "content": "q"}, {"role": "user", "content": "r"},
      {"role": "assistant", "content": "s"}]})"});
  SECTION("a stop token that is never trained") {
    fixture.set_template(
        "{{ bos_token }}{% for m in messages %}{{ m.role + ':\\n' + m.content + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}");
    const CheckReport report = fixture.check();
    CHECK(has(found(report, "mask"), "warning: ", "do not end in a trained stop token"));
    CHECK(report.errors() == 0);
    CHECK(fixture.check({"on_unstopped_turn=raise"}).errors() == 1);
  }
  SECTION("BOS twice") {
    fixture.set_template(
        "{{ bos_token + bos_token }}{% for m in messages %}{{ m.role + ':\\n' + m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif "
        "%}");
    const CheckReport report = fixture.check();
    CHECK(has(found(report, "mask"), "warning: ", "begin with two BOS"));
    CHECK(report.errors() == 1);  // and nothing is left to train on
  }
  SECTION("turns: all differs from serving") {
    // The text begins with the number of questions.
    fixture.set_template(
        "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.n }}"
        "{% for m in messages %}{{ m.role + ':\\n' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}");
    CHECK(has(found(fixture.check(), "mask"),
              "warning: ", "train_on_turns: all differs from serving"));
    CHECK(fixture.check({"train_on_turns=expand"}).findings.empty());
  }
  SECTION("no template, and records with turns") {
    fixture.set_template("");
    Json config = read_json_file(fixture.base() + "/tokenizer_config.json");
    config.set("chat_template", Json());
    write_file_atomically(fixture.base() + "/tokenizer_config.json", dump_json(config));
    CHECK(has(found(fixture.check(), "data"), "error: ", "no chat template"));
  }
}

TEST_CASE("check: no weight is read, but the headers of their files are", "[train][check]") {
  const Fixture fixture;
  const std::string weights = fixture.base() + "/model.safetensors";
  std::string bytes = read_file(weights);
  std::fill(bytes.end() - 4000, bytes.end(), '\xff');  // NaN, which loading refuses
  write_file_atomically(weights, bytes);
  CHECK(fixture.check().findings.empty());
  Json config = read_json_file(fixture.base() + "/config.json");
  config.set("intermediate_size", 392);
  write_file_atomically(fixture.base() + "/config.json", dump_json(config));
  CHECK(has(found(fixture.check(), "weights"), "error: expected shape [392, 128]", "mlp."));
  config.set("intermediate_size", 384);
  config.set("num_hidden_layers", 3);
  write_file_atomically(fixture.base() + "/config.json", dump_json(config));
  CHECK(has(found(fixture.check(), "weights"), "error: ", "no such tensor"));
}

TEST_CASE("check: beginnings that need the weights before they were quantized", "[train][check]") {
  const Fixture fixture;
  const std::string packed = fixture.file("packed");
  adapters::quantize_directory(fixture.base(), packed, {});
  const auto of_adapter = [&](const std::vector<std::string>& overrides) {
    return found(fixture.check(overrides), "adapter");
  };
  const std::string init = GENERATE("init_lora_weights=loftq", "init_lora_weights=pissa");
  CHECK(of_adapter({init, "adapter=qlora"}).empty());
  CHECK(of_adapter({"base_model=" + packed, "adapter=qlora"}).empty());
  CHECK(has(of_adapter({init, "adapter=qlora", "base_model=" + packed}),
            "error: ", "the checkpoint is in 4 bits"));
  CHECK(has(
      found(fixture.check({"loftq_iter=2", "init_lora_weights=pissa", "adapter=qlora"}), "config"),
      "error: it is of loftq, and init_lora_weights is pissa", "loftq_iter"));
}

TEST_CASE("check: a plan that cannot fit comes with what would", "[train][check]") {
  const Fixture fixture;
  const CheckReport report = fixture.check({"max_memory=2MB"});
  CHECK(has(found(report, "plan"), "error: this run needs at least", "are allowed (max_memory)"));
  CHECK(report.limit_bytes == 2000000);
  CHECK(report.planned_bytes > report.limit_bytes);
}

TEST_CASE("check: the command's exit code and JSON", "[train][check]") {
  const Fixture fixture;
  const test::RunResult good = test::run({"graft", "check", fixture.write_config(), "--json"});
  REQUIRE(good.exit_code == 0);
  const Json json = parse_json(good.out, "check");
  CHECK(json.at("passed").as_bool());
  CHECK(json.at("coverage").as_array()[0].at("linears_by_layer").size() == 4);
  const test::RunResult bad = test::run({"graft", "check", fixture.write_config(), "lora_r=0"});
  CHECK(bad.exit_code == 1);
  CHECK(bad.out.find("error: lora_r must be in 1..512, got 0") != std::string::npos);
  CHECK(bad.out.find("all-linear") != std::string::npos);
  CHECK(test::run({"graft", "check", fixture.file("none.yaml")}).exit_code == 74);
}
