// What a template finds without defining it: global functions, and what `loop` knows (internal to
// data/text).
#pragma once

#include <optional>
#include <string>

#include "data/text/template_library.h"

namespace graft::data::jinja {

// raise_exception, namespace, range, strftime_now, dict; nullopt for other names. Errors: kData for
// those of Jinja that graft does not have.
std::optional<Value> global_function(const std::string& name);
// now: "YYYY-MM-DD" or "". Errors: kData, kUsage (now is no date).
Value call_global(Budget& budget,
                  const std::string& name,
                  const Arguments& arguments,
                  const std::string& now);

// loop.index, … and loop.cycle(…), loop.changed(…). Errors: kData (the loop has ended).
Value loop_attribute(const Loop& loop, const std::string& name);
Value call_loop(Loop& loop, const std::string& name, const Arguments& arguments);

// Errors: kData for values that could form a cycle in one that holds them.
void refuse_cycle(const Value& value);
// namespace.name = value. Errors: as above.
void store(Namespace& space, const std::string& name, Value value);

}  // namespace graft::data::jinja
