// One config.json: typed access to its keys, with the family's defaults, and the refusal of keys
// that may change the maths (internal to model/).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/json.h"
#include "train/model/families.h"

namespace graft::train {

class ConfigFile {
 public:
  // Reads the file and finds its family in the table, which must outlive what is read. Errors: kIo,
  // kData (no JSON object, an unknown model_type, a key that graft does not know and that is not
  // off).
  ConfigFile(const std::string& path, std::span<const Family> table);

  const Family& family() const { return *family_; }
  bool nested() const { return nested_; }

  // The value of a key, or the family's default for it; nullptr for one that has neither, and for
  // null.
  const Json* find(std::string_view key) const;
  bool knows(std::string_view key) const;  // the family reads it

  // Checked values. Errors: kData with path:line:column: key.
  int64_t size(std::string_view key, int64_t most) const;  // 1..most
  int64_t size_or(std::string_view key, int64_t most, int64_t if_null) const;
  double number(std::string_view key) const;  // finite, above 0
  double number_or(std::string_view key, double if_null) const;
  bool flag(std::string_view key) const;  // false when it has no value
  std::string text(std::string_view key) const;

  // The same for a value inside another one; `key` is its full name.
  int64_t size_of(const Json& value, std::string_view key, int64_t most) const;
  double number_of(const Json& value, std::string_view key) const;

  [[noreturn]] void refuse(std::string_view key,
                           const std::string& what,
                           const std::string& fix = "") const;
  [[noreturn]] void refuse_at(const Json& value,
                              std::string_view key,
                              const std::string& what,
                              const std::string& fix = "") const;

 private:
  void check_keys() const;
  void check_quantization() const;

  std::string path_;
  Json root_;
  const Json* tree_ = nullptr;  // the language model's part of root_
  Json defaults_;
  const Family* family_ = nullptr;
  bool nested_ = false;
};

}  // namespace graft::train
