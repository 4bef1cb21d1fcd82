// Runs a parsed template.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "data/text/template_ast.h"

namespace graft::data::jinja {

// Variables by the numbers of their names; those with kNoName are not seen.
using Variables = std::vector<std::pair<int32_t, Value>>;

struct RunInput {
  const Variables* defaults = nullptr;
  Variables variables;  // win over the defaults
  std::string now;      // "YYYY-MM-DD" or ""
};

struct RunResult {
  Text text;
  std::vector<ByteRange> generation;  // of each {% generation %} block that ran
};

// Errors: kData at name:line:column.
RunResult run_template(const Tree& tree, const std::string& name, const RunInput& input);

}  // namespace graft::data::jinja
