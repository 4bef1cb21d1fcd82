// A tokenizer whose tokens are single bytes and a few special tokens: masks show byte by byte.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/text/mask.h"
#include "data/text/tokenizer.h"
#include "tests/support/support.h"

namespace graft::test {

// `bos`: "" = the tokenizer adds none. `eos`: "" = it has none.
inline std::unique_ptr<data::Tokenizer> byte_tokenizer(const TempDir& dir,
                                                       const std::vector<std::string>& specials,
                                                       const std::string& bos = "",
                                                       const std::string& eos = "") {
  Json vocab = Json::object();
  Json added = Json::array();
  int64_t id = 0;
  const auto add_special = [&](const std::string& token) {
    vocab.set(token, id);
    added.push_back(Json::object({{"id", id},
                                  {"content", token},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", false},
                                  {"special", true}}));
    ++id;
  };
  add_special("<unk>");
  for (const std::string& token : specials) add_special(token);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    vocab.set(name, id++);
  }
  Json file = Json::object({{"version", "1.0"},
                            {"added_tokens", added},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", nullptr},
                            {"post_processor", nullptr},
                            {"decoder", Json::object({{"type", "ByteFallback"}})},
                            {"model", Json::object({{"type", "BPE"},
                                                    {"unk_token", "<unk>"},
                                                    {"fuse_unk", true},
                                                    {"byte_fallback", true},
                                                    {"vocab", vocab},
                                                    {"merges", Json::array()}})}});
  Json config = Json::object({{"add_bos_token", !bos.empty()}});
  if (!bos.empty()) config.set("bos_token", bos);
  if (!eos.empty()) config.set("eos_token", eos);
  write_file_atomically(dir.file("tokenizer.json"), dump_json(file));
  write_file_atomically(dir.file("tokenizer_config.json"), dump_json(config));
  return data::load_tokenizer(dir.path());
}

// The document with its trained stretches in brackets; "[2:…]" where the weight is another.
inline std::string marked_text(const data::Document& doc, const data::Tokenizer& tokenizer) {
  std::string text;
  uint8_t last = 0;
  for (size_t i = 0; i < doc.ids.size(); ++i) {
    if (doc.loss[i] != last) {
      if (last != 0) text += "]";
      if (doc.loss[i] == 1) text += "[";
      if (doc.loss[i] > 1) {
        char weight[32];
        std::snprintf(weight, sizeof weight,
                      "[%g:", static_cast<double>(doc.weights[doc.loss[i] - 2U]));
        text += weight;
      }
      last = doc.loss[i];
    }
    text += tokenizer.decode({{doc.ids[i]}});
  }
  return last != 0 ? text + "]" : text;
}

// Only the trained stretches.
inline std::string trained_text(const data::Document& doc, const data::Tokenizer& tokenizer) {
  std::string text;
  bool was_trained = false;
  for (size_t i = 0; i < doc.ids.size(); ++i) {
    const bool is_trained = doc.loss[i] != 0;
    if (is_trained != was_trained) text += is_trained ? "[" : "]";
    if (is_trained) text += tokenizer.decode({{doc.ids[i]}});
    was_trained = is_trained;
  }
  return was_trained ? text + "]" : text;
}

}  // namespace graft::test
