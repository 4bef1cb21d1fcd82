// Which linears a pattern means, and what is refused.
#include <set>
#include <string>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "tests/train/reference.h"
#include "train/model/lora.h"
#include "train/model/targets.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

// Three layers.
std::unique_ptr<Model> small(const char* family) {
  const test::TempDir dir;
  return test::make_rough_model(test::write_family_config(dir.path(), test::tiny_family(family)),
                                7);
}

LoraSettings targeting(std::vector<std::string> targets) {
  LoraSettings settings;
  settings.rank = 2;
  settings.alpha = 6;
  settings.targets = std::move(targets);
  return settings;
}

std::set<std::string> names(Model& model, const LoraSettings& settings) {
  std::set<std::string> names;
  for (const Linear* const linear : find_targets(model, settings)) names.insert(linear->name);
  return names;
}

std::string refusal(const char* family, const LoraSettings& settings) {
  const auto model = small(family);
  try {
    add_lora(*model, settings, 1);
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::kUsage);
    return error.what();
  }
  return "nothing was refused";
}

void check_refusal(const char* family,
                   const LoraSettings& settings,
                   std::initializer_list<const char*> parts) {
  const std::string text = refusal(family, settings);
  for (const char* const part : parts) CHECK_THAT(text, Catch::Contains(part));
}

}  // namespace

TEST_CASE("targets: ends of names, expressions and keywords", "[train][targets]") {
  const auto model = small("llama");
  const std::string q = ".self_attn.q_proj", v = ".self_attn.v_proj", layer = "model.layers.";
  CHECK(names(*model, targeting({"q_proj"})) ==
        std::set<std::string>{layer + "0" + q, layer + "1" + q, layer + "2" + q});
  CHECK(names(*model, targeting({"self_attn.q_proj"})).size() == 3);
  CHECK(names(*model, targeting({".*\\.[qv]_proj"})).size() == 6);
  CHECK(names(*model, targeting({"layers.1.self_attn.q_proj"})) ==
        std::set<std::string>{layer + "1" + q});
  CHECK(names(*model, targeting({".*layers\\.[02]\\..*v_proj"})) ==
        std::set<std::string>{layer + "0" + v, layer + "2" + v});
  CHECK(names(*model, targeting({"all-linear"})).size() == 21);
  CHECK(names(*model, targeting({"peft-default"})).size() == 6);  // q_proj and v_proj
  CHECK(names(*model, targeting({"peft-default", "q_proj", "k_proj"})).size() == 9);
  LoraSettings settings = targeting({"all-linear"});
  settings.exclude = {"down_proj", "layers.0.self_attn.q_proj"};
  CHECK(names(*model, settings).size() == 21 - 3 - 1);
  settings.layers = {1};
  settings.exclude = {"down_proj"};
  CHECK(names(*model, settings).size() == 6);
}

TEST_CASE("targets: what matches nothing, or not everywhere, is refused with a table",
          "[train][targets]") {
  check_refusal("llama", targeting({"q_proj", "qproj"}),
                {"unknown linear \"qproj\"", "did you mean \"q_proj\"?", "pattern  layers 0-2",
                 "q_proj            1", "qproj             0", "lora_target_modules"});
  check_refusal("llama", targeting({"proj"}), {"unknown linear"});  // whole parts only
  check_refusal("llama", targeting({"q_proj("}), {"no regular expression"});
  // Layer 1 of this model has no experts, and so no router.
  check_refusal("qwen3_moe", targeting({"q_proj", "mlp.gate"}),
                {"\"mlp.gate\" matches in 2 of 3 layers", "pattern   layer 0  layer 1  layer 2",
                 "mlp.gate        1        0        1", "lora_layers_to_transform"});
  const auto model = small("qwen3_moe");
  LoraSettings settings = targeting({"mlp.gate"});
  settings.layers = {0, 2};
  CHECK(names(*model, settings).size() == 2);
  settings.layers = {3};
  check_refusal("llama", settings, {"layer 3 of a model with layers 0..2"});
  settings = targeting({"q_proj"});
  settings.exclude = {"down_proj"};
  check_refusal("llama", settings, {"\"down_proj\"", "lora_exclude_modules"});
  settings.exclude = {"q_proj"};
  check_refusal("llama", settings, {"no linear is targeted"});
  settings.exclude = {};
  settings.rank_pattern = {{"down_proj", 4}};
  check_refusal("llama", settings,
                {"\"down_proj\" matches no adapted linear", "lora_rank_pattern"});
}

TEST_CASE("targets: ranks and alphas of their own, through the files and back",
          "[train][targets]") {
  const test::TempDir dir;
  const auto model = small("llama");
  LoraSettings settings = targeting({"q_proj", "down_proj"});
  settings.layers = {0, 2};
  settings.rank_pattern = {{"layers.0.*", 5}};
  settings.alpha_pattern = {{"down_proj", 3.0}};
  add_lora(*model, settings, 1);
  const auto expect = [](Model& one) {
    const Lora& q = one.layers[0].qkv[0].lora;
    const Lora& down = one.layers[2].mlps[0].down.lora;
    CHECK((q.rank == 5 && q.scale == 6.0F / 5.0F));
    CHECK((down.rank == 2 && down.scale == 1.5F));
    CHECK(one.layers[0].mlps[0].down.lora.scale == 3.0F / 5.0F);
    CHECK(one.layers[1].qkv[0].lora.rank == 0);
  };
  expect(*model);
  save_adapter(*model, settings, "base", dir.file("adapter"));
  // Layer 1 is left out, so the names alone would say too much.
  const Json config = read_json_file(dir.file("adapter/adapter_config.json"));
  CHECK(dump_json(config.at("target_modules")) ==
        R"(["model.layers.0.mlp.down_proj","model.layers.0.self_attn.q_proj",)"
        R"("model.layers.2.mlp.down_proj","model.layers.2.self_attn.q_proj"])");
  const auto reloaded = small("llama");
  load_adapter(*reloaded, dir.file("adapter"));
  expect(*reloaded);
}
