// Every decoder family against transformers' own numbers.
#include <filesystem>
#include <functional>
#include <iostream>
#include <set>
#include <string>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "tests/train/golden.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::test;   // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

// A directory with the weights of `model` and one of its two config files as config.json.
class Dialect {
 public:
  Dialect(const std::string& model, const std::string& config) {
    std::filesystem::create_symlink(join_path(model, "model.safetensors"),
                                    dir_.file("model.safetensors"));
    std::filesystem::create_symlink(join_path(model, config), dir_.file("config.json"));
  }
  const std::string& path() const { return dir_.path(); }

 private:
  TempDir dir_;
};

std::vector<std::string> folders_of(const std::string& directory) {
  std::vector<std::string> names;
  for (const std::string& name : list_directory(directory)) {
    if (directory_exists(join_path(directory, name))) names.push_back(name);
  }
  return names;
}

std::string committed(const std::string& name) {
  return source_path("tests/golden/families/" + name);
}

// How the comparison with the golden numbers fails, "" when it does not.
std::string failure_of(const std::string& name, const std::function<ModelConfig()>& config) {
  try {
    GoldenResult result =
        compare_with_golden(config(), committed(name), committed(name) + "/golden.safetensors");
    result.model = name;
    return result.first_failure();
  } catch (const Error& error) {
    return error.text().what;
  }
}

// Qwen 2 with another width of a head where config.json does not say it.
void change_default(Family& family) {
  static std::string keys;
  const std::string_view known = R"("head_dim": null)";
  keys = family.keys;
  keys.replace(keys.find(known), known.size(), R"("head_dim": 10)");
  family.keys = keys;
}

struct FamilyChange {
  const char* field;
  const char* model;
  void (*change)(Family&);
};
// Every field of Family but peft_targets, which says nothing about the maths (tests/peers compares
// it with PEFT).
constexpr FamilyChange kFamilyChanges[] = {
    {"model_type", "gemma2", [](Family& f) { f.model_type = "gemma4"; }},
    {"keys: none", "gemma2", [](Family& f) { f.keys = "{}"; }},
    {"keys: another default", "qwen2", change_default},
    {"placement: sandwich as pre", "gemma2", [](Family& f) { f.placement = Placement::kPre; }},
    {"placement: post as pre", "olmo2", [](Family& f) { f.placement = Placement::kPre; }},
    {"placement: pre as post", "qwen2", [](Family& f) { f.placement = Placement::kPost; }},
    {"norm", "gemma2", [](Family& f) { f.norm = GRAFT_RMSNORM_WEIGHT; }},
    {"norm", "olmo2", [](Family& f) { f.norm = GRAFT_RMSNORM_ONE_PLUS_WEIGHT; }},
    {"qk_norm: none", "gemma3", [](Family& f) { f.qk_norm = QkNorm::kNone; }},
    {"qk_norm: per head as full", "gemma3", [](Family& f) { f.qk_norm = QkNorm::kFull; }},
    {"qk_norm: full as per head", "olmo2", [](Family& f) { f.qk_norm = QkNorm::kPerHead; }},
    {"fused: apart", "phi3", [](Family& f) { f.fused = false; }},
    {"fused: joined", "qwen2", [](Family& f) { f.fused = true; }},
    {"qkv_bias", "qwen2", [](Family& f) { f.qkv_bias = false; }},
    {"scaled_embedding", "gemma2", [](Family& f) { f.scaled_embedding = false; }},
    {"window: none", "gemma2", [](Family& f) { f.window = WindowRule::kNone; }},
    {"window: none", "phi3", [](Family& f) { f.window = WindowRule::kNone; }},
    {"window: every", "gemma2", [](Family& f) { f.window = WindowRule::kEvery; }},
    {"window: every", "qwen2", [](Family& f) { f.window = WindowRule::kEvery; }},
    {"window: without rope", "smollm3", [](Family& f) { f.window = WindowRule::kNone; }},
    {"window_pattern", "gemma2", [](Family& f) { f.window_pattern = 1; }},
    {"local_rope", "gemma3", [](Family& f) { f.local_rope = false; }},
    {"experts: none", "mixtral", [](Family& f) { f.experts = ExpertNames::kNone; }},
    {"experts: Qwen's names", "mixtral", [](Family& f) { f.experts = ExpertNames::kQwen; }},
    {"experts: Mixtral's names", "qwen3_moe", [](Family& f) { f.experts = ExpertNames::kMixtral; }},
    {"renormalises: not", "mixtral", [](Family& f) { f.renormalises = false; }},
    {"renormalises", "qwen3_moe", [](Family& f) { f.renormalises = true; }},
};

struct ConfigChange {
  const char* field;
  const char* model;
  void (*change)(ModelConfig&);
};
// Every field of ModelConfig, LayerConfig and RopeConfig that the engine reads.
constexpr ConfigChange kConfigChanges[] = {
    {"hidden_size", "qwen2", [](ModelConfig& c) { c.hidden_size = 8; }},
    {"heads", "qwen2", [](ModelConfig& c) { c.heads = 3; }},
    {"head_dim", "qwen2", [](ModelConfig& c) { c.head_dim = 10; }},
    {"kv_heads", "qwen2", [](ModelConfig& c) { c.kv_heads = c.heads; }},
    {"vocab_size", "qwen2", [](ModelConfig& c) { c.vocab_size += 1; }},
    {"rms_norm_eps", "qwen2", [](ModelConfig& c) { c.rms_norm_eps *= 100; }},
    {"tied_embeddings", "qwen2", [](ModelConfig& c) { c.tied_embeddings = true; }},
    {"tied_embeddings: not", "gemma2", [](ModelConfig& c) { c.tied_embeddings = false; }},
    {"nested", "gemma3", [](ModelConfig& c) { c.nested = true; }},
    {"activation: gelu", "qwen2", [](ModelConfig& c) { c.activation = Activation::kGeluTanh; }},
    {"activation: silu", "gemma2", [](ModelConfig& c) { c.activation = Activation::kSilu; }},
    {"o_bias", "granite", [](ModelConfig& c) { c.o_bias = false; }},
    {"mlp_bias", "granite", [](ModelConfig& c) { c.mlp_bias = false; }},
    {"qkv_bias", "granite", [](ModelConfig& c) { c.qkv_bias = false; }},
    {"embedding_scale", "granite", [](ModelConfig& c) { c.embedding_scale *= 1.001F; }},
    {"attention_scale", "granite", [](ModelConfig& c) { c.attention_scale *= 1.001F; }},
    {"attention_scale", "gemma2", [](ModelConfig& c) { c.attention_scale *= 1.01F; }},
    {"residual_scale", "granite", [](ModelConfig& c) { c.residual_scale *= 1.001F; }},
    {"logit_scale", "granite", [](ModelConfig& c) { c.logit_scale *= 1.001F; }},
    {"attention_cap", "gemma2", [](ModelConfig& c) { c.attention_cap *= 1.01F; }},
    {"attention_cap: none", "gemma2", [](ModelConfig& c) { c.attention_cap = 0; }},
    {"logit_cap", "gemma2", [](ModelConfig& c) { c.logit_cap *= 1.01F; }},
    {"logit_cap: none", "gemma2", [](ModelConfig& c) { c.logit_cap = 0; }},
    {"experts_per_token", "mixtral", [](ModelConfig& c) { c.experts_per_token = 3; }},
    {"renormalises_experts", "mixtral", [](ModelConfig& c) { c.renormalises_experts = false; }},
    {"layers: window", "mixtral", [](ModelConfig& c) { c.layers[1].window += 1; }},
    {"layers: rope off", "qwen2", [](ModelConfig& c) { c.layers[1].rope = -1; }},
    {"layers: rope on", "smollm3", [](ModelConfig& c) { c.layers[0].rope = 0; }},
    {"layers: the other rope", "gemma3", [](ModelConfig& c) { c.layers[0].rope = 0; }},
    {"layers: experts", "qwen3_moe", [](ModelConfig& c) { c.layers[1].experts = 5; }},
    {"layers: intermediate_size", "qwen2",
     [](ModelConfig& c) { c.layers[1].intermediate_size = 19; }},
    {"layers: one fewer", "qwen2", [](ModelConfig& c) { c.layers.pop_back(); }},
    {"ropes: type", "phi3", [](ModelConfig& c) { c.ropes[0].type = RopeType::kDefault; }},
    {"ropes: max_positions", "qwen2", [](ModelConfig& c) { c.ropes[0].max_positions = 12; }},
    {"ropes: factor", "qwen2", [](ModelConfig& c) { c.ropes[0].factor = 3; }},
    {"ropes: low_frequency", "granite", [](ModelConfig& c) { c.ropes[0].low_frequency = 2; }},
    {"ropes: high_frequency", "granite", [](ModelConfig& c) { c.ropes[0].high_frequency = 8; }},
    {"ropes: original_positions", "granite",
     [](ModelConfig& c) { c.ropes[0].original_positions = 32; }},
    {"ropes: theta", "qwen2", [](ModelConfig& c) { c.ropes[0].theta *= 1.1; }},
    {"ropes: rotary_dim", "phi3", [](ModelConfig& c) { c.ropes[0].rotary_dim = 4; }},
    {"ropes: factor", "gemma3", [](ModelConfig& c) { c.ropes[0].factor = 7; }},
    {"ropes: factor", "mixtral", [](ModelConfig& c) { c.ropes[0].factor = 5; }},
    {"ropes: original_positions", "phi3",
     [](ModelConfig& c) { c.ropes[0].original_positions = 24; }},
    {"ropes: original_positions", "mixtral",
     [](ModelConfig& c) { c.ropes[0].original_positions = 4096; }},
    {"ropes: beta_fast", "mixtral", [](ModelConfig& c) { c.ropes[0].beta_fast = 8; }},
    {"ropes: beta_slow", "mixtral", [](ModelConfig& c) { c.ropes[0].beta_slow = 4; }},
    {"ropes: truncate", "mixtral", [](ModelConfig& c) { c.ropes[0].truncate = false; }},
    {"ropes: cos_sin_scale", "mixtral", [](ModelConfig& c) { c.ropes[0].cos_sin_scale = 1; }},
    {"ropes: cos_sin_scale", "phi3", [](ModelConfig& c) { c.ropes[0].cos_sin_scale = 1; }},
    {"ropes: short_factor", "phi3", [](ModelConfig& c) { c.ropes[0].short_factor[1] += 0.1F; }},
    {"ropes: long_factor", "phi3", [](ModelConfig& c) { c.ropes[0].long_factor[1] += 0.1F; }},
};

}  // namespace

TEST_CASE("families: nine small models equal transformers", "[train][golden][families]") {
  std::vector<GoldenResult> results;
  for (const std::string& name : folders_of(committed(""))) {
    results.push_back(
        compare_with_golden(committed(name), committed(name) + "/golden.safetensors"));
    results.back().model = name;
    CHECK(results.back().first_failure() == "");
  }
  std::cout << golden_table(results);
  CHECK(results.size() == 9);
}

TEST_CASE("families: a wrong flag in any field of the table is noticed",
          "[train][golden][families]") {
  // Does not compile when a field is added: then it needs a row above.
  [[maybe_unused]] const auto& [model_type, keys, placement, norm, qk_norm, fused, qkv_bias,
                                scaled_embedding, window, window_pattern, local_rope, experts,
                                renormalises, peft_targets] = families()[0];
  std::set<std::string> fields;
  for (const FamilyChange& wrong : kFamilyChanges) {
    const std::string field = wrong.field;
    fields.insert(field.substr(0, field.find(':')));
  }
  CHECK(fields == std::set<std::string>{"model_type", "keys", "placement", "norm", "qk_norm",
                                        "fused", "qkv_bias", "scaled_embedding", "window",
                                        "window_pattern", "local_rope", "experts", "renormalises"});
  for (const FamilyChange& wrong : kFamilyChanges) {
    CAPTURE(wrong.field, wrong.model);
    std::vector<Family> table(families().begin(), families().end());
    const std::string type = wrong.model == std::string("gemma3") ? "gemma3_text" : wrong.model;
    for (Family& family : table) {
      if (family.model_type == type) wrong.change(family);
    }
    // layer_types would win over the table's rule for windows.
    const TempDir dir;
    Json config = read_json_file(committed(wrong.model) + "/config.json");
    config.set("layer_types",
               wrong.model == std::string("gemma3") ? config.at("layer_types") : Json());
    write_file_atomically(dir.file("config.json"), dump_json(config));
    const std::string failure =
        failure_of(wrong.model, [&] { return read_model_config(dir.path(), table); });
    CHECK(failure != "");
    std::cout << "wrong " << wrong.field << ": " << failure << "\n";
  }
}

TEST_CASE("families: a wrong value in any field of the config is noticed",
          "[train][golden][families]") {
  for (const ConfigChange& wrong : kConfigChanges) {
    CAPTURE(wrong.field, wrong.model);
    const std::string failure = failure_of(wrong.model, [&] {
      ModelConfig config = read_model_config(committed(wrong.model));
      wrong.change(config);
      return config;
    });
    CHECK(failure != "");
    std::cout << "wrong " << wrong.field << ": " << failure << "\n";
  }
}

TEST_CASE("families: all tiny models equal transformers in both dialects of config.json",
          "[train][golden][families]") {
  const std::string shared = shared_data();
  if (shared.empty()) return;
  std::vector<GoldenResult> results;
  std::string failures;
  for (const std::string& name : folders_of(shared + "/data/models/tiny")) {
    const std::string model = shared + "/data/models/tiny/" + name;
    for (const char* config : {"config.json", "config_v4.json"}) {
      const Dialect directory(model, config);
      GoldenResult result;
      try {
        result = compare_with_golden(directory.path(), model + "/golden.safetensors");
      } catch (const Error& error) {
        result.differences.push_back({error.what(), 1, 0});
      }
      result.model = name + (std::string(config) == "config.json" ? "" : " (old)");
      const std::string failure = result.first_failure();
      if (!failure.empty()) failures += failure + "\n";
      results.push_back(std::move(result));
    }
  }
  std::cout << golden_table(results);
  CHECK(results.size() == 60);
  CHECK(failures == "");
}
