// The bytes of a small GGUF file (version 3, no tensors) for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace graft::test {

class GgufFile {
 public:
  GgufFile& text(std::string_view key, std::string_view value) {
    begin(key, kString);
    append(value);
    return *this;
  }
  GgufFile& number(std::string_view key, uint32_t value) {
    begin(key, kUint32);
    append(value);
    return *this;
  }
  GgufFile& flag(std::string_view key, bool value) {
    begin(key, kBool);
    body_ += static_cast<char>(value);
    return *this;
  }
  GgufFile& texts(std::string_view key, const std::vector<std::string>& values) {
    begin_list(key, kString, values.size());
    for (const std::string& value : values) append(value);
    return *this;
  }
  GgufFile& numbers(std::string_view key, const std::vector<int32_t>& values) {
    begin_list(key, kInt32, values.size());
    for (const int32_t value : values) append(value);
    return *this;
  }
  GgufFile& numbers(std::string_view key, const std::vector<float>& values) {
    begin_list(key, kFloat32, values.size());
    for (const float value : values) append(value);
    return *this;
  }
  std::string bytes() const {
    GgufFile head;
    head.body_ = "GGUF";
    head.append(uint32_t{3});
    head.append(uint64_t{0});
    head.append(count_);
    return head.body_ + body_;
  }

 private:
  enum : uint32_t { kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9 };
  template <class T>
  void append(T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    body_.append(bytes, sizeof(T));
  }
  void append(std::string_view value) {
    append(uint64_t{value.size()});
    body_ += value;
  }
  void append(const std::string& value) { append(std::string_view(value)); }
  void begin(std::string_view key, uint32_t type) {
    ++count_;
    append(key);
    append(type);
  }
  void begin_list(std::string_view key, uint32_t type, size_t count) {
    begin(key, kArray);
    append(type);
    append(uint64_t{count});
  }

  std::string body_;
  uint64_t count_ = 0;
};

// The byte-level BPE of a tokenizer.json as a GGUF file, without its added tokens.
inline std::string gguf_of_tokenizer_json(const std::string& path, std::string_view pre) {
  const Json model = read_json_file(path).at("model");
  std::vector<std::string> tokens(model.at("vocab").size());
  for (const auto& [token, id] : model.at("vocab").as_object()) {
    tokens.at(static_cast<size_t>(id.as_int())) = token;
  }
  std::vector<std::string> merges;
  for (const Json& merge : model.at("merges").as_array()) {
    merges.push_back(merge.as_array()[0].as_string() + " " + merge.as_array()[1].as_string());
  }
  return GgufFile()
      .text("general.architecture", "llama")
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", pre)
      .texts("tokenizer.ggml.tokens", tokens)
      .numbers("tokenizer.ggml.token_type", std::vector<int32_t>(tokens.size(), 1))
      .texts("tokenizer.ggml.merges", merges)
      .flag("tokenizer.ggml.add_bos_token", false)
      .bytes();
}

}  // namespace graft::test
