// The documents say what the programs do.
#include <cstdlib>
#include <string>

#include <catch2/catch.hpp>

#include "core/file.h"
#include "tests/support/support.h"
#include "train/job/config.h"
#include "train/model/families.h"

namespace {

using graft::test::source_path;

std::string key_rows(std::span<const graft::train::ConfigKey> keys) {
  std::string text;
  for (const graft::train::ConfigKey& key : keys) {
    std::string values(key.type);
    for (size_t at = 0; (at = values.find('|', at)) != std::string::npos; at += 2) {
      values.replace(at, 1, "\\|");
    }
    text += "| `" + std::string(key.name) + "` | " + values + " | " +
            (key.fallback.empty() ? "" : "`" + std::string(key.fallback) + "`") + " | " +
            std::string(key.help) + " |\n";
  }
  return text;
}

std::string config_reference() {
  std::string text =
      "# Config reference\n\n"
      "Keys of a training config (`graft train CONFIG.yaml`). Any of them can be set on the "
      "command\n"
      "line: `graft train run.yaml lora_r=8`. An unknown or doubled key, a value of the wrong type "
      "or\n"
      "out of its range is an error with line and column.\n\n"
      "This page is made from the table in `train/job/config.cpp`; a test compares them\n"
      "(`GRAFT_UPDATE=1` writes it).\n\n"
      "| key | values | default | meaning |\n|---|---|---|---|\n";
  text += key_rows(graft::train::config_keys());
  text +=
      "\n## An entry of `datasets`\n\n"
      "A file, or a mapping with these keys. At most one of `repeat`, `weight` and `budget`; "
      "none of\n"
      "them: all of it, once in each epoch. What an epoch takes is drawn anew for each epoch, "
      "nothing\n"
      "is seen twice before the rest was seen, and the shares are printed when training "
      "starts.\n\n"
      "| key | values | default | meaning |\n|---|---|---|---|\n";
  text += key_rows(graft::train::dataset_keys());
  text +=
      "\n## An entry of `new_tokens`\n\n"
      "The token, or a mapping with these keys, which mean what they mean in Hugging Face's\n"
      "`AddedToken`. [New tokens](models.md#new-tokens) says how they are trained and shipped.\n\n"
      "| key | values | default | meaning |\n|---|---|---|---|\n";
  return text + key_rows(graft::train::token_keys());
}

}  // namespace

TEST_CASE("docs: the config reference is the table of keys", "[docs]") {
  const std::string path = source_path("docs/config.md");
  if (std::getenv("GRAFT_UPDATE") != nullptr) {
    graft::write_file_atomically(path, config_reference());
  }
  CHECK(graft::read_file(path) == config_reference());
}

TEST_CASE("docs: every config that ships is accepted, and every key of the table is known",
          "[docs]") {
  for (const std::string& name : graft::list_directory(source_path("configs"))) {
    CAPTURE(name);
    CHECK_NOTHROW(graft::train::read_train_config(source_path("configs/" + name), {}));
  }
  const graft::train::TrainConfig config =
      graft::train::read_train_config(source_path("examples/quickstart/qlora.yaml"), {});
  const graft::Json json = graft::train::config_to_json(config);
  REQUIRE(json.size() == graft::train::config_keys().size());
  size_t at = 0;
  for (const auto& [key, value] : json.as_object()) {
    CHECK(key == graft::train::config_keys()[at++].name);
  }
}

TEST_CASE("docs: the README's config is the one that the demo runs", "[docs]") {
  const std::string readme = graft::read_file(source_path("README.md"));
  const std::string config = graft::read_file(source_path("examples/quickstart/qlora.yaml"));
  CHECK(readme.find(config.substr(config.find('\n') + 1)) != std::string::npos);
}

TEST_CASE("docs: the README names only commands that exist", "[docs]") {
  const std::string readme = graft::read_file(source_path("README.md"));
  size_t commands = 0;
  for (size_t at = readme.find("`graft "); at != std::string::npos;
       at = readme.find("`graft ", at + 1)) {
    const std::string text = readme.substr(at + 7, readme.find('`', at + 7) - at - 7);
    std::vector<std::string> words = {"graft", text.substr(0, text.find(' '))};
    if (words[1] == "data" || words[1] == "adapter") {
      const size_t begin = text.find(' ') + 1;
      words.push_back(text.substr(begin, text.find(' ', begin) - begin));
    }
    words.emplace_back("--help");
    CAPTURE(text);
    CHECK(graft::test::run(words).exit_code == 0);
    ++commands;
  }
  CHECK(commands >= 10);
}

TEST_CASE("docs: every row of the family table is in the list of models, with PEFT's targets",
          "[docs]") {
  const std::string models = graft::read_file(source_path("docs/models.md"));
  for (const graft::train::Family& family : graft::train::families()) {
    CAPTURE(family.model_type);
    const size_t row = models.find("| `" + std::string(family.model_type) + "` |");
    REQUIRE(row != std::string::npos);
    std::string targets(family.peft_targets);
    for (size_t at = 0; (at = targets.find(' ', at)) != std::string::npos; at += 2) {
      targets.replace(at, 1, ", ");
    }
    const std::string line = models.substr(row, models.find('\n', row) - row);
    CHECK(line.find("| " + (targets.empty() ? "none" : targets) + " |") != std::string::npos);
  }
}
