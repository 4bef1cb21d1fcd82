// Added tokens: those that are cut out of the text before the model sees it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace graft::data {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // matched on the normalized text
  bool lstrip = false;       // swallows white space on its left
  bool rstrip = false;       // and on its right
  bool single_word = false;  // only where no word character stands beside it
};

// Finds the leftmost, then longest token of a set.
class TokenFinder {
 public:
  // `pattern` stands for `value`; empty patterns are ignored.
  void add(std::string_view pattern, int32_t value);
  bool empty() const { return nodes_.size() <= 1; }

  struct Match {
    size_t begin = 0;
    size_t end = 0;
    int32_t value = -1;  // -1 = none
  };
  // The first match that begins at or after `from`.
  Match find(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::map<char, int32_t> children;
    int32_t value = -1;
  };
  // Where a match may begin at or after `from`.
  size_t candidate(std::string_view text, size_t from) const;

  std::array<bool, 256> first_bytes_{};
  std::string first_byte_list_;
  std::vector<Node> nodes_ = {Node{}};
};

// Whether the text begins (ends) with a word character, as single_word understands it.
bool begins_with_word(std::string_view text);
bool ends_with_word(std::string_view text);
// Bytes of leading white space, and the end of the text without its trailing white space, as
// lstrip and rstrip understand it (\s).
size_t leading_blank(std::string_view text);
size_t end_without_blank(std::string_view text);

}  // namespace graft::data
