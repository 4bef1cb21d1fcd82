// graft doctor: passes on engines that keep their promises, and finds each kind that does not.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "tests/train/catch_aten.h"
#include "tests/train/reference.h"
#include "train/engine/tensor.h"
#include "train/job/doctor.h"
#include "train/job/machine.h"
#include "train/model/weights.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

// A config on the quickstart's base, of 32 tokens a row.
class Fixture {
 public:
  explicit Fixture(const std::string& base = test::source_path("examples/quickstart/base")) {
    write_file_atomically(
        path(), "base_model: " + base + "\ndatasets: [" +
                    test::source_path("examples/quickstart/eval.jsonl") +
                    "]\nlora_r: 4\nlora_dropout: 0.1\nsequence_len: 32\nlearning_rate: 0.01\n"
                    "excess_length_strategy: truncate_left\noutput_dir: " +
                    dir_.file("out") + "\n");
  }
  std::string path() const { return dir_.file("run.yaml"); }
  std::string file(const std::string& name) const { return dir_.file(name); }
  DoctorReport run(const std::vector<std::string>& overrides = {},
                   const DoctorEngine& engine = {},
                   int64_t layers = 1) const {
    return run_checks(read_train_config(path(), overrides), {.layers = layers, .engine = engine});
  }

 private:
  test::TempDir dir_;
};

// "mask ok, start ok, …"
std::map<std::string, Verdict> verdicts(const DoctorReport& report) {
  std::map<std::string, Verdict> all;
  for (const DoctorCheck& check : report.checks) {
    UNSCOPED_INFO(check.name << ": " << check.result);
    all[check.name] = check.verdict;
  }
  return all;
}

// The smallest change that a step's gradients can have.
void flip_a_bit(Model& model) {
  float* value = f32(model.trained[1].grad);
  uint32_t bits = 0;
  std::memcpy(&bits, value, sizeof bits);
  bits ^= 1U;
  std::memcpy(value, &bits, sizeof bits);
}

// An engine that flips a bit where `is_faulty` says so.
DoctorEngine faulty(std::function<bool(const Model&, const Arrangement&)> is_faulty) {
  DoctorEngine engine;
  engine.step = [is_faulty = std::move(is_faulty)](Model& model, const StepRows& rows,
                                                   const Arrangement& how) {
    const HeadResult sums = compute_step(model, rows, how);
    if (is_faulty(model, how)) flip_a_bit(model);
    return sums;
  };
  return engine;
}

// Of all checks only this one fails.
void check_finds(const DoctorReport& report, const std::string& name) {
  CAPTURE(name);
  for (const auto& [check, verdict] : verdicts(report)) {
    CAPTURE(check);
    CHECK((verdict == Verdict::kFailed) == (check == name));
  }
  CHECK_FALSE(report.passed());
}

}  // namespace

TEST_CASE("doctor: every kind of training keeps the engine's promises", "[train][doctor][slow]") {
  const Fixture fixture;
  const std::vector<std::string> config = GENERATE(
      std::vector<std::string>{"adapter=qlora"},
      std::vector<std::string>{"adapter=lora", "use_dora=true"},
      std::vector<std::string>{"adapter=lora", "init_lora_weights=pissa"},
      std::vector<std::string>{"adapter=qlora", "init_lora_weights=loftq", "optimizer=adamw_8bit"},
      std::vector<std::string>{"adapter=qlora", "init_lora_weights=pissa"},
      std::vector<std::string>{"adapter=qlora", "lora_modules_to_save=[embed_tokens]"},
      std::vector<std::string>{"adapter=qlora", "new_tokens=[<tool>, <end tool>]"},
      std::vector<std::string>{"adapter=none"});
  CAPTURE(config);
  const DoctorReport report = fixture.run(config, {}, 0);
  std::map<std::string, Verdict> all = verdicts(report);
  CHECK(report.passed());
  CHECK(all.size() == 10);
  CHECK(report.model.rfind("all 4 blocks", 0) == 0);
  const bool full = config[0] == "adapter=none", quantized = config[0] == "adapter=qlora";
  const bool nearer = quantized && std::any_of(config.begin(), config.end(), [](const auto& line) {
                        return line.rfind("init_lora_weights", 0) == 0;
                      });
  CHECK((all["start"] == Verdict::kSkipped) == (full || nearer));
  CHECK((all["4 bits"] == Verdict::kSkipped) == !quantized);
  for (const char* name :
       {"mask", "finite", "accumulation", "packing", "plan", "threads", "head", "resume"}) {
    CHECK(all[name] == Verdict::kPassed);
  }
}

TEST_CASE("doctor: every family keeps them, with windows, caps, experts and joined weights",
          "[train][doctor][families][slow]") {
  const std::string text = test::source_path("examples/quickstart/base");
  for (const test::TinyFamily& family : test::tiny_families()) {
    CAPTURE(family.name);
    const test::TempDir dir;
    test::write_family_config(dir.path(), family);
    Json config = read_json_file(dir.file("config.json"));
    config.set("vocab_size", 768);
    write_file_atomically(dir.file("config.json"), dump_json(config));
    save_model(*test::make_rough_model(dir.path(), 7), dir.path(), dir.file("base"));
    for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}) {
      write_file_atomically(dir.file("base") + "/" + name, read_file(join_path(text, name)));
    }
    const DoctorReport report = Fixture(dir.file("base")).run({}, {}, 0);
    CHECK(verdicts(report)["packing"] == Verdict::kPassed);
    CHECK(report.passed());
  }
}

TEST_CASE("doctor: one bit that depends on how a step is computed is found, and named",
          "[train][doctor]") {
  const Fixture fixture;
  SECTION("micro-batches") {
    const DoctorReport report =
        fixture.run({}, faulty([](const Model&, const Arrangement& how) { return how.rows == 1; }));
    check_finds(report, "accumulation");
    CHECK_THAT(report.checks[3].result,
               Catch::Contains("1 row at a time: 1 of 14 gradients, first that of "
                               "model.layers.0.self_attn.q_proj.lora_B.weight"));
  }
  SECTION("what a block keeps") {
    const LayerMemory memory = GENERATE(LayerMemory::kRecomputeMlp, LayerMemory::kRecomputeBlock,
                                        LayerMemory::kRecomputeInput, LayerMemory::kOffloadInput);
    check_finds(fixture.run({}, faulty([&](const Model&, const Arrangement& how) {
                              return !how.layers.empty() && how.layers[0].memory == memory;
                            })),
                "plan");
  }
  SECTION("threads") {
    check_finds(fixture.run({}, faulty([](const Model&, const Arrangement& how) {
                              return how.threads == 3;
                            })),
                "threads");
  }
  SECTION("chunks of the head") {
    check_finds(fixture.run({}, faulty([](const Model&, const Arrangement& how) {
                              return how.head_chunk == 17;
                            })),
                "head");
  }
  SECTION("weights in 4 bits") {
    check_finds(fixture.run({}, faulty([](const Model& model, const Arrangement&) {
                              return !model.quantized();
                            })),
                "4 bits");
  }
}

TEST_CASE("doctor: something that a step knows and a checkpoint does not have is found",
          "[train][doctor]") {
  const Fixture fixture;
  DoctorEngine engine;
  int calls = 0;
  engine.step = [&](Model& model, const StepRows& rows, const Arrangement& how) {
    const HeadResult sums = compute_step(model, rows, how);
    const bool plain =
        how.rows == 0 && how.threads == 0 && how.layers.empty() && how.head_chunk == kHeadChain;
    // finite, 4 bits, two steps, and the second one again
    if (plain && ++calls == 5) f32(model.trained[1].grad)[0] *= 1.01F;
    return sums;
  };
  const DoctorReport report = fixture.run({}, engine);
  check_finds(report, "resume");
  CHECK(calls == 5);
  CHECK_THAT(report.checks.back().result, Catch::Contains("differs after the second step"));
}

TEST_CASE("doctor: documents that see their neighbours are found", "[train][doctor]") {
  const Fixture fixture;
  DoctorEngine engine;
  SECTION("in the forward pass: positions that go on from one document to the next") {
    engine.logits = [](Model& model, const Batch& batch) {
      Batch joined = batch;
      for (size_t t = 0; t < joined.positions.size(); ++t) {
        joined.positions[t] = static_cast<int32_t>(t);
      }
      return last_logits(model, joined);
    };
  }
  SECTION("in the backward pass: one document where there are two") {
    engine.input_gradient = [](Model& model, const Batch& batch, double scale) {
      Batch joined = batch;
      joined.cu_seqlens.erase(joined.cu_seqlens.begin() + 1);
      joined.text_length.erase(joined.text_length.begin());
      joined.text_length[0] = joined.cu_seqlens[1];
      return input_gradient(model, joined, scale);
    };
  }
  // Rounded to bfloat16, queries and keys hide so small a turn.
  check_finds(fixture.run({"compute=fp32"}, engine), "packing");
}

TEST_CASE("doctor: an adapter that does not begin as the base is found", "[train][doctor]") {
  const Fixture fixture;
  DoctorEngine engine;
  engine.logits = [](Model& model, const Batch& batch) {
    for (Linear* const linear : model.linears()) {
      // As if B had begun elsewhere; in the packing check it has.
      if (linear->lora.rank > 0 && f32(linear->lora.b)[0] == 0) f32(linear->lora.b)[0] = 1e-3F;
    }
    return last_logits(model, batch);
  };
  check_finds(fixture.run({}, engine), "start");
}

TEST_CASE("doctor: a gradient that is not finite is found and named", "[train][doctor]") {
  const Fixture fixture;
  DoctorEngine engine;
  int calls = 0;
  engine.step = [&](Model& model, const StepRows& rows, const Arrangement& how) {
    const HeadResult sums = compute_step(model, rows, how);
    if (++calls == 1) f32(model.trained[3].grad)[2] = NAN;
    return sums;
  };
  const DoctorReport report = fixture.run({}, engine);
  CHECK(verdicts(report)["finite"] == Verdict::kFailed);
  CHECK(report.checks[2].result ==
        "the gradient of model.layers.0.self_attn.k_proj.lora_B.weight is not finite");
}

TEST_CASE("doctor: data that teaches nothing, or never to stop, is found", "[train][doctor]") {
  const Fixture fixture;
  write_file_atomically(fixture.file("none.jsonl"),
                        R"({"messages": [{"role": "user", "content": "a"}]})"
                        "\n");
  const DoctorReport nothing = fixture.run({"datasets=[" + fixture.file("none.jsonl") + "]"});
  check_finds(nothing, "mask");
  CHECK_THAT(nothing.checks[0].result, Catch::Contains("none.jsonl:1: nothing_trained"));

  const std::string from = test::source_path("examples/quickstart/base"), base = fixture.file("b");
  make_directories(base);
  for (const std::string& name : list_directory(from)) {
    write_file_atomically(join_path(base, name), read_file(join_path(from, name)));
  }
  Json config = read_json_file(base + "/tokenizer_config.json");
  config.set("chat_template",
             "{% for m in messages %}{{ m.role + ':\\n' + m.content + '\\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}");
  write_file_atomically(base + "/tokenizer_config.json", dump_json(config));
  const DoctorReport unstopped = fixture.run({"base_model=" + base});
  check_finds(unstopped, "mask");
  CHECK_THAT(unstopped.checks[0].result,
             Catch::Contains("0 of 64 turns end in a trained stop token"));
}

TEST_CASE("doctor: of a model that does not fit the first blocks are taken, or none",
          "[train][doctor]") {
  const Fixture fixture;
  const std::vector<std::string> lora = {"adapter=lora"};
  CHECK(fixture.run(lora, {}, 2).model.rfind("the first 2 of 4 blocks", 0) == 0);
  const DoctorReport cut = fixture.run({"adapter=lora", "max_memory=4MB"}, {}, 0);
  CHECK(cut.passed());
  CHECK(cut.model.rfind("the first ", 0) == 0);
  CHECK_THROWS_WITH(fixture.run({"adapter=lora", "max_memory=100KB"}, {}, 0),
                    Catch::Contains("the checks of 1 blocks need"));
  CHECK_THROWS_WITH(fixture.run(lora, {}, 5), Catch::Contains("the model has 4 blocks, got 5"));
  // An adapter of the third block alone needs three.
  CHECK(fixture.run({"adapter=lora", "lora_layers_to_transform=[2]", "max_memory=1GB"}, {}, 1)
            .model.rfind("the first 3 of 4 blocks", 0) == 0);
}

TEST_CASE("doctor: the command tells about the machine, and of a config as JSON",
          "[train][doctor]") {
  const test::RunResult machine = test::run({"graft", "doctor"});
  CHECK(machine.exit_code == 0);
  for (const MachineFact& fact : machine_facts()) {
    CAPTURE(fact.name);
    CHECK(machine.out.find(fact.name) != std::string::npos);
    CHECK(fact.value != "");
  }
  const Fixture fixture;
  const test::RunResult result =
      test::run({"graft", "doctor", fixture.path(), "--layers", "1", "--json"});
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "doctor");
  CHECK(json.at("passed").as_bool());
  CHECK(json.at("checks").size() == 11);
  CHECK(json.at("machine").at("kernels").as_string() != "");
  write_file_atomically(fixture.file("none.jsonl"),
                        R"({"messages": [{"role": "user", "content": "a"}]})"
                        "\n");
  const test::RunResult failed = test::run({"graft", "doctor", fixture.path(), "--layers", "1",
                                            "datasets=[" + fixture.file("none.jsonl") + "]"});
  CHECK(failed.exit_code == 1);
  CHECK(failed.out.find("FAILED") != std::string::npos);
}
