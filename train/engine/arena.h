// One block of memory for all buffers of a step, and the regions that lie in it.
//
// The same code declares the buffers twice: once to learn how large each region is and when it is
// in use (the layout, which a planner may ask for before any weight is loaded), and once to hand
// out the places that the layout gave them. So a plan cannot be wrong about the engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "train/engine/device.h"

namespace graft::train {

enum class Place { kDevice, kHost };
constexpr size_t kPlaces = 2;

// Buffers with one lifetime, side by side.
struct Region {
  std::string name;
  Place place = Place::kDevice;
  int first = 0;  // phases in which it is in use, both included
  int last = 0;
  int64_t bytes = 0;
  int64_t offset = 0;  // in its place
  bool overlaps_in_time(const Region& other) const {
    return place == other.place && first <= other.last && other.first <= last;
  }
};

struct Layout {
  std::vector<Region> regions;
  int phases = 0;
  int64_t bytes[kPlaces] = {0, 0};  // of each place, as packed

  // Bytes in use in a phase; never more than `bytes`.
  int64_t live(int phase, Place place) const;
};

// Gives each region its offset: the largest first, each at the lowest place that is free in its
// phases. Deterministic.
void pack(Layout& layout);

enum class Poison { kNo, kYes };

// Memory of both places. With poison, what is not in use is filled with bytes 0xff (NaN, or -1), so
// that a read of it shows.
class Arena {
 public:
  // Room for each of the layouts, one at a time. Errors: kDevice (not enough memory).
  explicit Arena(const std::vector<const Layout*>& layouts,
                 const Device& device = {},
                 Poison poison = Poison::kNo);

  std::byte* at(Place place, int64_t offset) const;
  int64_t bytes(Place place) const;
  // Whether somebody else had it since `user` last asked, so that nothing that `user` left there is
  // left.
  bool changes_hands(const void* user) const { return std::exchange(user_, user) != user; }
  // To be called at the end of a phase.
  void end_phase(const Layout& layout, int phase) const;

 private:
  const Device& device_of(Place place) const;

  Device device_;
  Device host_;
  at::Tensor memory_[kPlaces];
  Poison poison_;
  mutable const void* user_ = nullptr;
};

// Alignment of every buffer, a cache line.
constexpr int64_t kAlignment = 64;

// Hands out buffers, or counts them.
class Buffers {
 public:
  explicit Buffers(Layout& layout) : counted_(&layout) {}  // every pointer is nullptr
  Buffers(const Layout& layout, const Arena& arena) : packed_(&layout), arena_(&arena) {}

  // The buffers made from here on lie in this region.
  void region(const std::string& name, int first, int last, Place place = Place::kDevice);

  float* f32(int64_t count) { return make<float>(count); }
  // nullptr for no values.
  template <typename T>
  T* make(int64_t count) {
    return reinterpret_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  std::byte* take(int64_t bytes);

  Layout* counted_ = nullptr;
  const Layout* packed_ = nullptr;
  const Arena* arena_ = nullptr;
  size_t next_ = 0;   // region
  int64_t used_ = 0;  // of the last region
};

}  // namespace graft::train
