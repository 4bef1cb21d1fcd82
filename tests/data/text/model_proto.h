// tokenizer.model files by hand, in the protobuf wire format.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

namespace graft::test {

// A field with bytes in it.
inline std::string field(int number, const std::string& bytes) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  for (size_t size = bytes.size();; size >>= 7) {
    out += static_cast<char>((size & 0x7F) | (size > 0x7F ? 0x80 : 0));
    if (size <= 0x7F) break;
  }
  return out + bytes;
}

// pieces {piece, score, type}; type: 1 normal, 2 unknown.
inline std::string piece(const std::string& text, float score, char type = 1) {
  std::string number = "\x15";
  const auto bits = std::bit_cast<uint32_t>(score);
  for (int i = 0; i < 4; ++i) number += static_cast<char>(bits >> (8 * i) & 0xFF);
  return field(1, field(1, text) + number + "\x18" + type);
}

}  // namespace graft::test
