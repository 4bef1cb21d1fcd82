#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include <catch2/catch.hpp>

#include "adapters/fit.h"
#include "adapters/peft.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/support/support.h"

using namespace graft;
using namespace graft::adapters;
using graft::test::source_path;
using graft::test::TempDir;

namespace {

const std::string kGolden = source_path("tests/golden/adapters/");

// What an action is refused with; "" when it is not.
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kData);
    return error.what();
  }
  return "";
}

Json golden_config() {
  return read_json_file(kGolden + "adapter/adapter_config.json");
}

struct Small {
  AdapterSpec spec;
  std::vector<float> a, b;
  std::vector<AdapterTensors> modules;
};

// One module of rank 2, in 3, out 4.
Small small_adapter() {
  Small small;
  small.spec.r = 2;
  small.spec.lora_alpha = 4;
  small.spec.target_modules = {"v_proj", "q_proj"};
  small.a = {1, 2, 3, 4, 5, 6};
  small.b = {1, 0, 0, 1, 2, -2, 0.5f, 0.25f};
  return small;
}

void write_small(const Small& small, const std::string& directory) {
  const std::vector<AdapterTensors> modules = {
      {"model.layers.0.self_attn.q_proj", 3, 4, 2, small.a.data(), small.b.data()}};
  write_peft(directory, small.spec, modules);
}

}  // namespace

TEST_CASE("peft: an adapter that PEFT wrote is read with its patterns", "[adapters][peft]") {
  const Adapter adapter = read_peft(kGolden + "adapter");
  CHECK(adapter.spec.r == 4);
  CHECK(adapter.spec.lora_alpha == 6.0);
  CHECK(adapter.spec.target_modules == std::vector<std::string>{"down_proj", "o_proj", "q_proj"});
  REQUIRE(adapter.modules.size() == 6);
  CHECK(adapter.modules[0].name == "model.layers.0.mlp.down_proj");
  CHECK(adapter.modules[0].rank == 2);
  CHECK(adapter.modules[0].scale == 3.0);  // 6 / 2
  CHECK((adapter.modules[0].in == 24 && adapter.modules[0].out == 16));
  CHECK(adapter.modules[1].scale == 1.5);   // layer 0, o_proj: 6 / 4
  CHECK(adapter.modules[4].scale == 1.25);  // layer 1, o_proj: 5 / 4
  fit_adapter(adapter, SafetensorsDirectory(kGolden + "base"));
}

TEST_CASE("peft: writing what was read gives PEFT's tensors to the byte", "[adapters][peft]") {
  const TempDir directory;
  const Adapter adapter = read_peft(kGolden + "adapter");
  std::vector<AdapterTensors> modules;
  for (const AdapterModule& m : adapter.modules) {
    modules.push_back({m.name, m.in, m.out, m.rank, m.a.data(), m.b.data()});
  }
  const std::string digest = write_peft(directory.path(), adapter.spec, modules);
  CHECK(digest == adapter.sha256);
  CHECK(read_file(directory.file("adapter_model.safetensors")) ==
        read_file(kGolden + "adapter/adapter_model.safetensors"));
  const Json config = read_json_file(directory.file("adapter_config.json"));
  const Json theirs = golden_config();
  for (const auto& [key, value] : config.as_object()) {
    if (key == "target_modules") continue;  // a set there, sorted here
    INFO(key);
    REQUIRE(theirs.find(key) != nullptr);
    CHECK(dump_json(value) == dump_json(theirs.at(key)));
  }
}

TEST_CASE("peft: the files are the same bytes wherever and whenever they are written",
          "[adapters][peft]") {
  const TempDir one, two;
  write_small(small_adapter(), one.path() + "/x");
  write_small(small_adapter(), two.path() + "/longer/name");
  for (const char* name : {"/adapter_config.json", "/adapter_model.safetensors"}) {
    CHECK(read_file(one.path() + "/x" + name) == read_file(two.path() + "/longer/name" + name));
  }
  const std::string config = read_file(one.path() + "/x/adapter_config.json");
  CHECK(config.find("\"lora_alpha\": 4,") != std::string::npos);  // an integer, not 4.0
  CHECK(config.find("\"q_proj\",\n    \"v_proj\"") != std::string::npos);
}

TEST_CASE("peft: scale follows rslora and the first matching pattern", "[adapters][peft]") {
  AdapterSpec spec;
  spec.r = 16;
  spec.lora_alpha = 8;
  spec.rank_pattern = {{"q_proj", 4}, {"layers.0.self_attn.q_proj", 2}};
  CHECK(spec.rank_of("model.layers.0.self_attn.q_proj") == 4);
  CHECK(spec.rank_of("model.layers.0.self_attn.xq_proj") == 16);  // not a whole component
  CHECK(spec.scale_of("model.layers.0.mlp.up_proj") == 0.5);
  spec.use_rslora = true;
  CHECK(spec.scale_of("model.layers.0.mlp.up_proj") == 2.0);  // 8 / sqrt(16)
  spec.alpha_pattern = {{"(", 1.0}};
  CHECK(refusal([&] { spec.scale_of("x"); }).find("no regular expression") != std::string::npos);
}

TEST_CASE("peft: settings that change the maths are refused by name", "[adapters][peft]") {
  struct Case {
    const char* key;
    Json value;
  };
  const Case c = GENERATE(
      Case{"lora_bias", true}, Case{"bias", "lora_only"}, Case{"fan_in_fan_out", true},
      Case{"layer_replication", Json::array({Json::array({0, 4})})},
      Case{"trainable_token_indices", Json::array({1, 1})}, Case{"use_qalora", true},
      Case{"alora_invocation_tokens", Json::array({5})}, Case{"init_lora_weights", "pissa"},
      Case{"loftq_config", Json::object({{"bits", 4}})}, Case{"something_new", 1},
      Case{"peft_type", "LOHA"}, Case{"r", 0}, Case{"r", "8"}, Case{"lora_alpha", Json()});
  Json config = golden_config();
  config.set(c.key, c.value);
  const std::string text = refusal([&] { parse_adapter_config(config); });
  INFO(text);
  CHECK(text.find(c.key == std::string("lora_alpha") ? "alpha" : c.key) != std::string::npos);
}

TEST_CASE("peft: settings that are off, or unknown and empty, are accepted", "[adapters][peft]") {
  Json config = golden_config();
  config.set("something_new", Json());
  config.set("another", Json::object());
  config.set("use_dora", false);
  config.set("init_lora_weights", "gaussian");
  config.set("target_parameters", Json::array({"mlp.experts.down_proj"}));
  CHECK(parse_adapter_config(config).r == 4);
}

TEST_CASE("peft: damaged adapters are refused with the tensor's name", "[adapters][peft]") {
  const TempDir directory;
  Small small = small_adapter();
  SECTION("a pickle") {
    write_small(small, directory.path());
    write_file_atomically(directory.file("adapter_model.bin"), "x");
    CHECK(refusal([&] { read_peft(directory.path()); }).find("pickle") != std::string::npos);
  }
  SECTION("a value that is not finite, when writing") {
    small.b[3] = std::numeric_limits<float>::quiet_NaN();
    const std::string text = refusal([&] { write_small(small, directory.path()); });
    CHECK(text.find("lora_B.weight") != std::string::npos);
  }
  SECTION("a rank that the settings do not give") {
    small.spec.rank_pattern = {{"q_proj", 3}};
    CHECK(refusal([&] { write_small(small, directory.path()); }).find("rank 2") !=
          std::string::npos);
  }
  SECTION("half of a pair, other tensors, NaN, 16-bit values") {
    write_small(small, directory.path());
    const std::string stem = "base_model.model.model.layers.0.self_attn.q_proj";
    std::vector<float> a = {1, 2, 3, 4, 5, 6}, b(8, 1.0f);
    const auto bytes = [](const std::vector<float>& v) {
      return std::as_bytes(std::span<const float>(v));
    };
    const auto write = [&](std::vector<TensorBytes> tensors) {
      write_safetensors(directory.file("adapter_model.safetensors"), std::move(tensors));
      return refusal([&] { read_peft(directory.path()); });
    };
    const TensorSpec a_spec{stem + ".lora_A.weight", DType::kF32, {2, 3}};
    const TensorSpec b_spec{stem + ".lora_B.weight", DType::kF32, {4, 2}};
    CHECK(write({{a_spec, bytes(a)}}).find("no lora_B") != std::string::npos);
    CHECK(write({{b_spec, bytes(b)}}).find("no lora_A") != std::string::npos);
    CHECK(write({{a_spec, bytes(a)},
                 {b_spec, bytes(b)},
                 {{stem + ".lora_magnitude_vector", DType::kF32, {4}}, bytes({1, 1, 1, 1})}})
              .find("lora_magnitude_vector") != std::string::npos);
    CHECK(write({{{a_spec.name, DType::kF32, {3, 2}}, bytes(a)}, {b_spec, bytes(b)}})
              .find("[3, 2]") != std::string::npos);
    std::vector<float> nan = a;
    nan[5] = std::numeric_limits<float>::infinity();
    CHECK(write({{a_spec, bytes(nan)}, {b_spec, bytes(b)}}).find("value 5 is not finite") !=
          std::string::npos);
    CHECK(write({{a_spec, bytes(a)}, {b_spec, bytes(b)}}) == "");
  }
}

TEST_CASE("peft: an adapter for another model is refused with both shapes", "[adapters][peft]") {
  Adapter adapter = read_peft(kGolden + "adapter");
  const SafetensorsDirectory model(kGolden + GENERATE("base", "nf4"));
  fit_adapter(adapter, model);
  SECTION("another width") {
    adapter.modules[0].in = 32;
    const std::string text = refusal([&] { fit_adapter(adapter, model); });
    CHECK(text.find("[16, 24]") != std::string::npos);
    CHECK(text.find("[16, 32]") != std::string::npos);
  }
  SECTION("a module that the model lacks") {
    adapter.modules[0].name = "model.layers.7.mlp.down_proj";
    CHECK(refusal([&] { fit_adapter(adapter, model); }).find("layers.7") != std::string::npos);
  }
}
