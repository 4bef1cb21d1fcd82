// The memory that a run takes from the system, beside what the plan says: six shapes of at least
// 512 MiB, each fullest in another way.
#include <set>

#include <catch2/catch.hpp>

#include "core/file.h"
#include "core/json.h"
#include "tests/support/support.h"

namespace {

using namespace graft;  // NOLINT(google-build-using-namespace)

struct Shape {
  const char* what;
  const char* config;
  std::vector<std::string> options;
  const char* fullest;
};

const Shape kShapes[] = {
    {"logits",
     R"({"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 320000})",
     {"--batch", "2", "--seq", "128", "--lora-r", "4"},
     "head and loss"},
    {"every tensor, with gradients and moments",
     R"({"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 9, "num_attention_heads": 8,
         "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 512})",
     {"--batch", "1", "--seq", "64", "--lora-r", "0"},
     "head and loss"},
    {"gates",
     R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 8192, "vocab_size": 512})",
     {"--batch", "16", "--seq", "176", "--lora-r", "4"},
     "backward of block 1, MLP"},
    {"heads",
     R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 32,
         "num_key_value_heads": 32, "head_dim": 128, "intermediate_size": 64, "vocab_size": 512})",
     {"--batch", "44", "--seq", "64", "--lora-r", "4"},
     "backward of block 1, attention"},
    {"blocks, some computed again",
     R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 16, "num_attention_heads": 4,
         "num_key_value_heads": 4, "intermediate_size": 256, "vocab_size": 512})",
     {"--batch", "192", "--seq", "64", "--lora-r", "4", "--max-memory", "600MiB"},
     "backward of block 15, MLP"},
    {"4-bit weights, decoded for good",
     R"({"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16,
         "num_key_value_heads": 4, "intermediate_size": 12288, "vocab_size": 512})",
     {"--batch", "1", "--seq", "16", "--lora-r", "4", "--load-in-4bit"},
     "backward of block 2, MLP"},
};

}  // namespace

TEST_CASE("memory used: six shapes take what was planned, within 5 %", "[train][plan][slow]") {
  std::set<std::string> choices;
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.what);
    const test::TempDir dir;
    write_file_atomically(dir.file("config.json"), shape.config);
    std::vector<std::string> command = {"graft",    "bench",   "step", "--shape",
                                        dir.path(), "--steps", "2",    "--json"};
    // The same on every processor.
    command.insert(command.end(), {"--compute", "fp32"});
    command.insert(command.end(), shape.options.begin(), shape.options.end());
    const test::RunResult done = test::run(command);
    CAPTURE(done.err);
    REQUIRE(done.exit_code == 0);
    const Json result = parse_json(done.out, "graft bench step");
    const double used = result.at("peak_rss_bytes").as_double();
    const double planned = result.at("planned_bytes").as_double();
    CHECK(used >= 512.0 * 1024 * 1024);
    CHECK(used / planned == Approx(1).margin(0.05));
    CHECK(result.at("fullest_phase").as_string() == shape.fullest);
    choices.insert(result.at("blocks").as_string());
    WARN(shape.what << ": " << used / 1048576 << " MiB used, " << planned / 1048576 << " planned, "
                    << shape.fullest << "; " << result.at("blocks").as_string());
  }
  CHECK(choices.size() >= 4);
}
