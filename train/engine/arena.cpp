#include "train/engine/arena.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "train/engine/tensor.h"

namespace graft::train {
namespace {

constexpr int kPoison = 0xff;

size_t index_of(Place place) {
  return static_cast<size_t>(place);
}

// The lowest offset that is free of the regions placed so far.
int64_t lowest_fit(const Region& region, std::vector<const Region*> taken) {
  std::sort(taken.begin(), taken.end(),
            [](const Region* a, const Region* b) { return a->offset < b->offset; });
  int64_t offset = 0;
  for (const Region* other : taken) {
    if (other->offset - offset >= region.bytes) break;
    offset = std::max(offset, other->offset + other->bytes);
  }
  return offset;
}

}  // namespace

int64_t Layout::live(int phase, Place place) const {
  int64_t sum = 0;
  for (const Region& region : regions) {
    if (region.place == place && region.first <= phase && phase <= region.last) sum += region.bytes;
  }
  return sum;
}

void pack(Layout& layout) {
  std::vector<size_t> order(layout.regions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return layout.regions[a].bytes > layout.regions[b].bytes;
  });
  std::vector<const Region*> placed;
  for (const size_t index : order) {
    Region& region = layout.regions[index];
    std::vector<const Region*> taken;
    std::copy_if(placed.begin(), placed.end(), std::back_inserter(taken),
                 [&](const Region* other) { return region.overlaps_in_time(*other); });
    region.offset = lowest_fit(region, std::move(taken));
    int64_t& bytes = layout.bytes[index_of(region.place)];
    bytes = std::max(bytes, region.offset + region.bytes);
    placed.push_back(&region);
  }
}

Arena::Arena(const std::vector<const Layout*>& layouts, const Device& device, Poison poison)
    : device_(device), poison_(poison) {
  for (const Place place : {Place::kDevice, Place::kHost}) {
    int64_t bytes = 0;
    for (const Layout* layout : layouts) bytes = std::max(bytes, layout->bytes[index_of(place)]);
    at::Tensor& memory = memory_[index_of(place)];
    memory = empty_on(device_of(place), at::kByte, {bytes});
    if (poison == Poison::kYes) {
      device_of(place).fill(memory.data_ptr(), kPoison, memory.nbytes());
    }
  }
}

const Device& Arena::device_of(Place place) const {
  return place == Place::kDevice ? device_ : host_;
}

std::byte* Arena::at(Place place, int64_t offset) const {
  return static_cast<std::byte*>(memory_[index_of(place)].data_ptr()) + offset;
}

int64_t Arena::bytes(Place place) const {
  return static_cast<int64_t>(memory_[index_of(place)].nbytes());
}

void Arena::end_phase(const Layout& layout, int phase) const {
  if (poison_ == Poison::kNo) return;
  for (const Region& region : layout.regions) {
    if (region.last == phase) {
      device_of(region.place)
          .fill(at(region.place, region.offset), kPoison, static_cast<size_t>(region.bytes));
    }
  }
}

void Buffers::region(const std::string& name, int first, int last, Place place) {
  used_ = 0;
  ++next_;
  if (counted_ != nullptr) {
    counted_->regions.push_back({name, place, first, last, 0, 0});
    counted_->phases = std::max(counted_->phases, last + 1);
  }
}

std::byte* Buffers::take(int64_t bytes) {
  if (bytes == 0) return nullptr;
  const int64_t begin = used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (counted_ != nullptr) {
    counted_->regions.back().bytes = used_;
    return nullptr;
  }
  const Region& region = packed_->regions.at(next_ - 1);
  if (used_ > region.bytes) {
    fail(ExitCode::kBug, "the buffers of \"" + region.name + "\" are larger than planned");
  }
  return arena_->at(region.place, region.offset + begin);
}

}  // namespace graft::train
