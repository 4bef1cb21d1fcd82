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
  bool normalized = false;  // matched on the normalized text
  bool lstrip = false;      // swallows white space on its left
  bool rstrip = false;
};

// Finds the leftmost, then longest token of a set.
class TokenFinder {
 public:
  // `patterns[i]` stands for value `values[i]`; empty patterns are ignored.
  TokenFinder() = default;
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
  std::array<bool, 256> first_bytes_{};
  std::vector<Node> nodes_ = {Node{}};
};

}  // namespace graft::data
