// What is fuzzed: each target reads one hostile file and uses what came out of it.
//
// A target returns when the file is refused (graft::Error of code kData) or when everything that it
// did with the file kept its promises; anything else - a crash, another exception, a broken promise
// - is a finding. `make fuzz` runs them with libFuzzer, `make test` replays their corpora.
#pragma once

#include <array>
#include <string_view>

namespace graft::fuzz {

void chat_template(std::string_view input);    // template, zero byte, messages as JSON
void gguf(std::string_view input);             // a GGUF file
void tokenizer_json(std::string_view input);   // tokenizer.json, zero byte, text
void tokenizer_model(std::string_view input);  // tokenizer.model

struct Target {
  std::string_view name;
  void (*run)(std::string_view input);
};
inline constexpr std::array<Target, 4> kTargets = {{
    {"chat_template", chat_template},
    {"gguf", gguf},
    {"tokenizer_json", tokenizer_json},
    {"tokenizer_model", tokenizer_model},
}};

// Ends the process unless the promise holds.
void require(bool holds, const char* promise);

}  // namespace graft::fuzz
