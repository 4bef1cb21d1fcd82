#include "adapters/pattern.h"

#include <re2/re2.h>

namespace graft::adapters {

ModulePattern::ModulePattern(const std::string& pattern,
                             Form form,
                             ExitCode code,
                             const std::string& where) {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_max_mem(1 << 20);
  const std::string prefix = form == Form::kEnd ? "(?:.*\\.)?" : "";
  expression_ = std::make_unique<RE2>(prefix + "(?:" + pattern + ")", options);
  if (!expression_->ok()) {
    fail(code, "pattern \"" + pattern + "\" is no regular expression: " + expression_->error(),
         where, "escape special characters with a backslash");
  }
}

ModulePattern::~ModulePattern() = default;
ModulePattern::ModulePattern(ModulePattern&&) noexcept = default;

bool ModulePattern::matches(std::string_view module) const {
  return RE2::FullMatch(re2::StringPiece(module.data(), module.size()), *expression_);
}

bool ends_in_parts(std::string_view name, std::string_view end) {
  if (name.size() <= end.size()) return name == end;
  const size_t begin = name.size() - end.size();
  return name[begin - 1] == '.' && name.substr(begin) == end;
}

}  // namespace graft::adapters
