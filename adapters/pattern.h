// Regular expressions over the names of modules, as PEFT takes them.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/error.h"

namespace re2 {
class RE2;
}

namespace graft::adapters {

class ModulePattern {
 public:
  enum class Form {
    kWhole,  // the expression matches the whole name: target_modules given as one text
    kEnd,    // it matches the last parts of the name: keys of rank_pattern and alpha_pattern
  };

  // Throws `code` at `where` for what RE2 does not accept (it has no back references and no
  // look-around, and takes linear time).
  ModulePattern(const std::string& pattern, Form form, ExitCode code, const std::string& where);
  ~ModulePattern();
  ModulePattern(ModulePattern&&) noexcept;

  bool matches(std::string_view module) const;

 private:
  std::unique_ptr<re2::RE2> expression_;
};

// Whether `end` is the name or its last parts: "self_attn.q_proj" of
// "model.layers.0.self_attn.q_proj".
bool ends_in_parts(std::string_view name, std::string_view end);

}  // namespace graft::adapters
