// Tokens and their ids: one block of bytes and a flat hash table.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer/huge_pages.h"

namespace graft::data {

// Above every real vocabulary (262,144 today); bounds the memory that a hostile file can ask for.
constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;

// A hash of short byte strings, not stable between versions. Whoever uses it compares the bytes.
inline uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kFirst = 0x9E3779B97F4A7C15ULL;
  constexpr uint64_t kSecond = 0xBF58476D1CE4E5B9ULL;
  uint64_t hash = kFirst ^ bytes.size();
  const size_t size = bytes.size();
  const char* data = bytes.data();
  size_t at = 0;
  for (; at + 8 < size; at += 8) {
    uint64_t block;
    std::memcpy(&block, data + at, 8);
    hash = (hash ^ block) * kSecond;
    hash ^= hash >> 32;
  }
  // The last bytes, with some before them: a copy of just them would be a call.
  uint64_t tail = 0;
  if (size >= 8) {
    std::memcpy(&tail, data + size - 8, 8);
  } else if (size >= 4) {
    uint32_t first;
    uint32_t last;
    std::memcpy(&first, data, 4);
    std::memcpy(&last, data + size - 4, 4);
    tail = uint64_t{first} << 32 | last;
  } else if (size > 0) {
    const auto byte = [&](size_t i) { return uint64_t{static_cast<unsigned char>(data[i])}; };
    tail = byte(0) << 16 | byte(size / 2) << 8 | byte(size - 1);
  }
  hash = (hash ^ tail) * kFirst;
  hash ^= hash >> 29;
  hash *= kSecond;
  return hash ^ hash >> 32;
}

class Vocabulary {
 public:
  // Real tokens have at most some hundred bytes.
  static constexpr size_t kMaxTokenBytes = 0xFFFF;

  // Room for this many tokens without growing.
  void reserve(size_t tokens, size_t bytes);
  // Adds a token; the same token with the same id again is nothing. Errors: kData (id out of range
  // or taken, token with another id or too long), naming `where`.
  void add(std::string_view token, int64_t id, const std::string& where) {
    add(token, hash_bytes(token), id, where);
  }
  void add(std::string_view token, uint64_t hash, int64_t id, const std::string& where);

  // -1 = unknown.
  int32_t find(std::string_view token) const { return find(token, hash_bytes(token)); }
  int32_t find(std::string_view token, uint64_t hash) const {
    if (slots_.empty()) return -1;
    if (token.size() > kMaxTokenBytes) return -1;
    const uint64_t key = key_of(token, hash);
    for (size_t slot = hash & mask_;; slot = (slot + 1) & mask_) {
      const Slot& entry = slots_[slot];
      if (entry.id < 0) return -1;
      if (entry.key == key && has_text(entry, token)) return entry.id;
    }
  }
  // Start to load what find(hash) will look at: first the entry, later the token.
  void prefetch_entry(uint64_t hash) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[hash & mask_]);
  }
  void prefetch_token(uint64_t hash) const {
    if (!slots_.empty()) __builtin_prefetch(bytes_.data() + slots_[hash & mask_].begin);
  }

  int64_t size() const { return static_cast<int64_t>(places_.size()); }  // highest id + 1
  int64_t count() const { return static_cast<int64_t>(count_); }
  bool has(int64_t id) const {
    return id >= 0 && id < size() && places_[static_cast<size_t>(id)].length >= 0;
  }
  // The token as it stands in the file; "" for an id that does not exist.
  std::string_view text(int32_t id) const {
    const Place& place = places_[static_cast<size_t>(id)];
    return {bytes_.data() + place.begin, static_cast<size_t>(place.length < 0 ? 0 : place.length)};
  }

 private:
  struct Slot {
    uint64_t key = 0;
    int32_t id = -1;
    uint32_t begin = 0;
  };
  // Half of the tokens have at most this many bytes, and are their own key.
  static constexpr size_t kInline = 7;
  static_assert(std::endian::native == std::endian::little);
  static uint64_t key_of(std::string_view token, uint64_t hash) {
    const size_t size = token.size();
    const char* data = token.data();
    if (size > kInline) return uint64_t{0xFF} << 56 | uint64_t{size} << 40 | hash >> 24;
    uint64_t bytes = 0;
    if (size >= 4) {
      uint32_t first;
      uint32_t last;
      std::memcpy(&first, data, 4);
      std::memcpy(&last, data + size - 4, 4);
      bytes = first | uint64_t{last} << (8 * (size - 4));
    } else if (size > 0) {
      const auto byte = [&](size_t i) {
        return uint64_t{static_cast<unsigned char>(data[i])} << (8 * i);
      };
      bytes = byte(0) | byte(size / 2) | byte(size - 1);
    }
    return uint64_t{size} << 56 | bytes;
  }
  // With the same key.
  bool has_text(const Slot& slot, std::string_view token) const {
    const size_t size = token.size();
    if (size <= kInline) return true;
    const char* known = bytes_.data() + slot.begin;
    if (size > 16) return std::memcmp(known, token.data(), size) == 0;
    // Two words that may overlap: a call for so few bytes costs more than they do.
    const auto word = [](const char* at) {
      uint64_t bytes;
      std::memcpy(&bytes, at, 8);
      return bytes;
    };
    return word(known) == word(token.data()) &&
           word(known + size - 8) == word(token.data() + size - 8);
  }
  struct Place {
    uint32_t begin = 0;
    int32_t length = -1;  // -1 = no such id
  };
  void grow(size_t slots);
  void insert(int32_t id);

  std::string bytes_;
  std::vector<Place> places_;                 // by id
  std::vector<Slot, HugePages<Slot>> slots_;  // a power of two
  uint64_t mask_ = 0;
  size_t count_ = 0;
};

}  // namespace graft::data
