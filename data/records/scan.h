// Finding the ends of JSON values without parsing them.
#pragma once

#include <cstddef>
#include <string_view>

namespace graft::data {

inline bool is_json_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

// First position at or after `at` that is not JSON white space, or text.size().
size_t skip_json_space(std::string_view text, size_t at);

// One past the closing quote of the string whose opening quote is at text[at]; npos when it does
// not end. Escapes are stepped over, not checked.
size_t json_string_end(std::string_view text, size_t at);

// One past the value that begins at text[at]: an object or array up to its balancing bracket, a
// string up to its quote, anything else up to a delimiter. npos when it does not end.
size_t json_value_end(std::string_view text, size_t at);

// The text of the value of a member of the valid JSON object `text`, as it stands; empty when there
// is no such member. Only its own members are looked at; a key is compared as it is written.
std::string_view json_member(std::string_view text, std::string_view key);

}  // namespace graft::data
