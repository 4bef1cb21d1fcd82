#include "data/text/tokenizer/vocabulary.h"

#include <algorithm>

#include "core/error.h"

namespace graft::data {
namespace {

// Together with the 4 Mi ids, what a hostile file can make of a vocabulary; real ones have 5 MB.
constexpr size_t kMaxBytes = size_t{256} << 20;

}  // namespace

void Vocabulary::reserve(size_t tokens, size_t bytes) {
  places_.reserve(tokens);
  bytes_.reserve(bytes);
  size_t slots = 64;
  while (slots < tokens * 2) slots *= 2;
  if (slots > slots_.size()) grow(slots);
}

void Vocabulary::grow(size_t slots) {
  slots_.assign(slots, Slot{});
  mask_ = slots - 1;
  for (size_t id = 0; id < places_.size(); ++id) {
    if (places_[id].length >= 0) insert(static_cast<int32_t>(id));
  }
}

void Vocabulary::insert(int32_t id) {
  const uint64_t hash = hash_bytes(text(id));
  size_t slot = hash & mask_;
  while (slots_[slot].id >= 0) slot = (slot + 1) & mask_;
  const Place& place = places_[static_cast<size_t>(id)];
  slots_[slot] = {key_of(text(id), hash), id, place.begin};
}

void Vocabulary::add(std::string_view token, uint64_t hash, int64_t id, const std::string& where) {
  if (id < 0 || id > kMaxTokenId) {
    fail(ExitCode::kData,
         "token ids must be in 0.." + std::to_string(kMaxTokenId) + ", got " + std::to_string(id) +
             " for \"" + std::string(token) + "\"",
         where);
  }
  if (token.size() > kMaxTokenBytes) {
    fail(ExitCode::kData,
         "a token must have at most " + std::to_string(kMaxTokenBytes) + " bytes, got " +
             std::to_string(token.size()) + " for id " + std::to_string(id),
         where);
  }
  const auto number = static_cast<int32_t>(id);
  const auto index = static_cast<size_t>(id);
  if (has(id) && text(number) != token) {
    fail(ExitCode::kData,
         "token id " + std::to_string(id) + " is given to both \"" + std::string(text(number)) +
             "\" and \"" + std::string(token) + "\"",
         where);
  }
  if ((count_ + 1) * 2 > slots_.size()) grow(std::max<size_t>(64, slots_.size() * 2));
  const uint64_t key = key_of(token, hash);
  size_t slot = hash & mask_;
  for (; slots_[slot].id >= 0; slot = (slot + 1) & mask_) {
    if (slots_[slot].key != key || !has_text(slots_[slot], token)) continue;
    if (slots_[slot].id == number) return;
    fail(ExitCode::kData,
         "token \"" + std::string(token) + "\" has both id " + std::to_string(slots_[slot].id) +
             " and id " + std::to_string(id),
         where);
  }
  if (bytes_.size() + token.size() > kMaxBytes) {
    fail(ExitCode::kData,
         "the tokens of a vocabulary must have at most " + std::to_string(kMaxBytes) +
             " bytes together",
         where);
  }
  if (index >= places_.size()) places_.resize(index + 1);
  places_[index] = {static_cast<uint32_t>(bytes_.size()), static_cast<int32_t>(token.size())};
  bytes_.append(token);
  slots_[slot] = {key, number, places_[index].begin};
  ++count_;
}

}  // namespace graft::data
