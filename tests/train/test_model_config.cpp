// config.json: what is read, what it becomes, what is refused.
#include <cmath>

#include <catch2/catch.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"
#include "train/model/config.h"

namespace {

using namespace graft;         // NOLINT(google-build-using-namespace)
using namespace graft::train;  // NOLINT(google-build-using-namespace)

const std::string kSizes = R"("hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 4,
    "num_attention_heads": 4, "vocab_size": 37)";

ModelConfig config_of(const std::string& text) {
  const test::TempDir dir;
  write_file_atomically(dir.file("config.json"), "{" + text + "}");
  return read_model_config(dir.path());
}

ModelConfig config_with(const std::string& extra) {
  const bool says_heads = extra.find("num_key_value_heads") != std::string::npos;
  return config_of(kSizes + (says_heads ? ", " : ", \"num_key_value_heads\": 2, ") + extra);
}

std::string error_of(const std::string& extra) {
  try {
    config_with(extra);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<int64_t> windows(const ModelConfig& config) {
  std::vector<int64_t> all;
  for (const LayerConfig& layer : config.layers) all.push_back(layer.window);
  return all;
}

}  // namespace

TEST_CASE("model config: every family reads a config of sizes only", "[train][model]") {
  for (const Family& family : families()) {
    CAPTURE(family.model_type);
    const ModelConfig config =
        config_with(R"("model_type": ")" + std::string(family.model_type) + "\"");
    CHECK(config.family == &family);
    CHECK(config.layer_count() == 4);
    CHECK(config.ropes.size() == (family.local_rope ? 2 : 1));
  }
}

TEST_CASE("model config: what would change the maths is refused by name", "[train][model]") {
  const auto refuses = [](const std::string& extra, const std::string& word) {
    CAPTURE(extra);
    CHECK_THAT(error_of(extra), Catch::Contains(word));
  };
  const std::string llama = R"("model_type": "llama", )";
  CHECK(error_of(R"("model_type": "llama")").empty());
  refuses(R"("model_type": "gpt2")", "known: llama, mistral");
  refuses(R"("architectures": ["LlamaForCausalLM"])", "unknown model_type \"\"");
  refuses(R"("model_type": "gemma3")", "text_config");
  // Keys that graft does not know for the family, with a value that is not off.
  refuses(llama + R"("sliding_window": 8)", "config.json:2:");
  refuses(llama + R"("sliding_window": 8)", "sliding_window");
  CHECK(error_of(llama + R"("sliding_window": null, "use_mrope": false)").empty());
  refuses(llama + R"("mlp_multiplier": 2)", "mlp_multiplier");
  refuses(llama + R"("query_pre_attn_scalar": 256)", "query_pre_attn_scalar");
  refuses(R"("model_type": "mixtral", "router_jitter_noise": 0.1)", "router_jitter_noise");
  refuses(R"("model_type": "mixtral", "output_router_logits": true)", "output_router_logits");
  refuses(R"("model_type": "phi3", "embd_pdrop": 0.1)", "embd_pdrop");
  refuses(R"("model_type": "phi3", "full_attn_mod": 2)", "full_attn_mod");
  CHECK(error_of(R"("model_type": "phi3", "full_attn_mod": 1, "embd_pdrop": 0.0)").empty());
  refuses(R"("model_type": "gemma", "use_bidirectional_attention": true)",
          "use_bidirectional_attention");
  // Known keys with values that are not implemented.
  refuses(llama + R"("hidden_act": "relu")", "relu");
  refuses(llama + R"("hidden_act": "gelu")", "hidden_act must be");
  refuses(R"("model_type": "qwen2", "layer_types": ["full_attention", "linear_attention",
             "full_attention", "full_attention"])",
          "layer_types[1]");
  refuses(R"("model_type": "qwen2", "layer_types": ["full_attention"])", "each of the 4 layers");
  refuses(R"("model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention",
             "full_attention", "full_attention"])",
          "sliding_window is off");
  refuses(R"("model_type": "smollm3", "no_rope_layers": [1, 1, 2, 0])", "no_rope_layers[2]");
  refuses(R"("model_type": "mixtral", "num_experts_per_tok": 9)", "9 of 8 experts");
  refuses(llama + R"("quantization_config": {"quant_method": "gptq"})", "gptq");
  refuses(llama + R"("quantization_config": {"quant_method": "bitsandbytes",
             "load_in_8bit": true})",
          "bitsandbytes in 4 bits");
  // Sizes.
  refuses(llama + R"("num_key_value_heads": 3)", "multiple");
  // Products of unbounded sizes would overflow before any weight is looked at.
  refuses(llama + R"("num_key_value_heads": 268435456)", "1..4096");
  refuses(llama + R"("head_dim": 7)", "head_dim");
  refuses(llama + R"("rms_norm_eps": 0)", "rms_norm_eps must be a number above 0");
  refuses(llama + R"("tie_word_embeddings": "yes")", "true or false");
}

TEST_CASE("model config: rotations that are not known are refused by type and key",
          "[train][model]") {
  const auto refuses = [](const std::string& rope, const std::string& word) {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      CAPTURE(key, rope);
      CHECK_THAT(error_of(R"("model_type": "llama", ")" + std::string(key) + "\": " + rope),
                 Catch::Contains(word) && Catch::Contains(key));
    }
  };
  refuses(R"({"rope_type": "mrope"})", "mrope");
  refuses(R"({"type": 3})", "\"3\"");
  refuses(R"({"rope_type": "linear"})", "factor must be");
  refuses(R"({"rope_type": "linear", "factor": 0.5})", "factor must be");
  refuses(R"({"rope_type": "linear", "factor": 2, "beta_fast": 3})", "has no \"beta_fast\"");
  refuses(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})",
          "low_freq_factor above 0");
  refuses(R"({"rope_type": "longrope", "short_factor": [1], "long_factor": [1]})",
          "a list of 4 numbers");
  refuses(R"({"rope_type": "yarn", "factor": 2, "truncate": 1})", "truncate must be");
  refuses(R"({"rope_type": "default", "partial_rotary_factor": 0.5})", "partial rotation");
  refuses(R"([1])", "must be an object");
  CHECK_THAT(error_of(R"("model_type": "llama", "rope_parameters": {"rope_theta": 0})"),
             Catch::Contains("rope_theta must be"));
  CHECK_THAT(error_of(R"("model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2})"),
             Catch::Contains("known: default, longrope"));
  CHECK_THAT(error_of(R"("model_type": "phi3", "partial_rotary_factor": 0.4)"),
             Catch::Contains("an even number of elements"));
  CHECK_THAT(error_of(R"("model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e6})"),
             Catch::Contains("full_attention and sliding_attention"));
}

TEST_CASE("model config: which layers have a window", "[train][model]") {
  using Windows = std::vector<int64_t>;
  const auto of = [](const std::string& extra) { return windows(config_with(extra)); };
  CHECK(of(R"("model_type": "llama")") == Windows{0, 0, 0, 0});
  CHECK(of(R"("model_type": "mistral", "sliding_window": 8)") == Windows{8, 8, 8, 8});
  CHECK(of(R"("model_type": "mistral", "sliding_window": null)") == Windows{0, 0, 0, 0});
  CHECK(of(R"("model_type": "qwen2", "sliding_window": 8, "max_window_layers": 2)") ==
        Windows{0, 0, 0, 0});
  CHECK(of(R"("model_type": "qwen2", "sliding_window": 8, "max_window_layers": 2,
              "use_sliding_window": true)") == Windows{0, 0, 8, 8});
  CHECK(of(R"("model_type": "gemma2", "sliding_window": 8)") == Windows{8, 0, 8, 0});
  CHECK(of(R"("model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3)") ==
        Windows{8, 8, 0, 8});
  CHECK(of(R"("model_type": "smollm3", "sliding_window": 8, "use_sliding_window": true)") ==
        Windows{0, 0, 0, 8});
  CHECK(of(R"("model_type": "gemma2", "sliding_window": 8, "layer_types": ["full_attention",
              "sliding_attention", "sliding_attention", "full_attention"])") ==
        Windows{0, 8, 8, 0});
}

TEST_CASE("model config: a multimodal Gemma 3 is read from its text_config", "[train][model]") {
  // What google/gemma-3-4b's own file leaves out comes from the class's defaults.
  const ModelConfig config = config_of(R"("model_type": "gemma3", "image_token_index": 262144,
    "vision_config": {"hidden_size": 1152}, "text_config": {"model_type": "gemma3_text",
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024})");
  CHECK(config.nested);
  CHECK(config.heads == 8);
  CHECK(config.kv_heads == 4);
  CHECK(config.head_dim == 256);
  CHECK(config.vocab_size == 262208);
  CHECK(config.tied_embeddings);
  CHECK(config.layers[0].window == 1024);
  CHECK(config.layers[0].rope == 1);
  CHECK(config.layers[5].window == 0);
  CHECK(config.layers[5].rope == 0);
  CHECK(config.ropes[0].theta == 1e6);
  CHECK(config.ropes[0].factor == 8);
  CHECK(config.ropes[1].theta == 1e4);
  CHECK(config.ropes[1].type == RopeType::kDefault);
  CHECK(config.attention_scale == 1.0F / 16.0F);  // 256^-0.5
  try {
    config_of(R"("model_type": "gemma3", "text_config": {"model_type": "gemma3_text",
      "hidden_size": 0})");
    FAIL("expected an error");
  } catch (const Error& error) {
    CHECK_THAT(error.what(), Catch::Contains("text_config.hidden_size"));
  }
}

TEST_CASE("model config: rotations of long texts reach as far as they are stretched",
          "[train][model]") {
  const auto reach = [](const std::string& extra) {
    return config_with(R"("model_type": "llama", "max_position_embeddings": 100, )" + extra)
        .max_positions;
  };
  CHECK(reach(R"("rope_scaling": null)") == 100);
  CHECK(reach(R"("rope_scaling": {"type": "dynamic", "factor": 4})") == 400);
  CHECK(reach(R"("rope_scaling": {"rope_type": "yarn", "factor": 4,
                 "original_max_position_embeddings": 50})") == 200);
  // A config that says the long context itself.
  CHECK(reach(R"("rope_scaling": {"rope_type": "yarn", "factor": 4,
                 "original_max_position_embeddings": 25})") == 100);
}

TEST_CASE("rope: frequencies follow their formulas", "[train][model]") {
  RopeConfig rope;
  rope.theta = 10000;
  rope.rotary_dim = 8;
  rope.max_positions = 16;
  rope.original_positions = 32;
  const auto plain = [](double i) { return std::pow(10000.0, -2 * i / 8); };
  const auto frequency = [&](int64_t length, size_t i) {
    return static_cast<double>(rope_frequencies(rope, length)[i]);
  };
  for (size_t i = 0; i < 4; ++i) {
    const auto place = static_cast<double>(i);
    rope.type = RopeType::kDefault;
    CHECK(frequency(10, i) == Approx(plain(place)).epsilon(1e-6));
    rope.type = RopeType::kLinear;
    rope.factor = 4;
    CHECK(frequency(10, i) == Approx(plain(place) / 4).epsilon(1e-6));
    rope.type = RopeType::kDynamic;
    rope.factor = 2;
    CHECK(frequency(16, i) == Approx(plain(place)).epsilon(1e-6));
    // base * (2 * 24 / 16 - 1)^(8 / 6) = base * 2^(4/3)
    const double base = 10000.0 * std::pow(2.0, 4.0 / 3.0);
    CHECK(frequency(24, i) == Approx(std::pow(base, -2 * place / 8)).epsilon(1e-6));
    rope.type = RopeType::kLongrope;
    rope.short_factor = {1, 2, 3, 4};
    rope.long_factor = {5, 6, 7, 8};
    CHECK(frequency(32, i) == Approx(plain(place) / (place + 1)).epsilon(1e-6));
    CHECK(frequency(33, i) == Approx(plain(place) / (place + 5)).epsilon(1e-6));
  }
  rope.type = RopeType::kDynamic;
  CHECK(rope_length_class(rope, 16) == rope_length_class(rope, 3));
  CHECK(rope_length_class(rope, 17) != rope_length_class(rope, 18));
  rope.type = RopeType::kLongrope;
  CHECK(rope_length_class(rope, 32) != rope_length_class(rope, 33));
  CHECK(rope_length_class(rope, 33) == rope_length_class(rope, 1000));
}
