// Runs a parsed template.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "data/text/template_ast.h"

namespace graft::data::jinja {

struct RunInput {
  std::vector<std::pair<std::string, Value>> variables;
  std::string now;  // "YYYY-MM-DD" or ""
};

struct RunResult {
  Text text;
  std::vector<ByteRange> generation;  // of each {% generation %} block that ran
};

// Errors: kData at name:line:column.
RunResult run_template(const Tree& tree, const std::string& name, const RunInput& input);

}  // namespace graft::data::jinja
