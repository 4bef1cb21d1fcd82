// Memory for hash tables of megabytes: in pages of 2 MiB where the system has them, for a random
// look-up in 4 KiB pages waits for the page table as long as for the data.
#pragma once

#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace graft::data {

template <class T>
struct HugePages {
  using value_type = T;
  static constexpr std::align_val_t kPage{size_t{2} << 20};
  static constexpr bool is_large(size_t bytes) { return bytes >= static_cast<size_t>(kPage); }

  HugePages() = default;
  template <class U>
  HugePages(const HugePages<U>&) {}  // NOLINT(google-explicit-constructor): allocators convert

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (!is_large(bytes)) return static_cast<T*>(::operator new(bytes));
    void* memory = ::operator new(bytes, kPage);
#ifdef __linux__
    ::madvise(memory, bytes, MADV_HUGEPAGE);  // advice: where it is refused, small pages do
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t count) {
    if (is_large(count * sizeof(T))) {
      ::operator delete(memory, kPage);
    } else {
      ::operator delete(memory);
    }
  }
  friend bool operator==(const HugePages&, const HugePages&) {
    return true;
  }
};

}  // namespace graft::data
