// The two ways in which kernels use threads (internal). Which thread runs a piece never changes a
// result: pieces write disjoint memory and their bounds do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include <omp.h>

namespace graft::kernels {

// A parallel region costs 2-10 us on an idle machine and more on a loaded one; below about this
// many element operations one thread is faster.
constexpr int64_t kParallelWork = 1 << 16;

// Calls task(i) for i in [0, count): each thread takes the next one that is left, or one thread all
// of them. That is no parallel region: a region of one thread allocates its team anew each time.
template <class Task>
void for_tasks(int64_t count, bool parallel, const Task& task) {
  if (!parallel || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) task(i);
}

// Calls body(begin, end) over [0, count) in pieces of `block`, the last one short. `work` is the
// total cost in element operations.
template <class Body>
void for_pieces(int64_t count, int64_t block, int64_t work, const Body& body) {
  const int64_t pieces = (count + block - 1) / block;
  const auto run = [&](int64_t piece) {
    const int64_t begin = piece * block;
    body(begin, begin + block < count ? begin + block : count);
  };
  if (pieces <= 1 || work <= kParallelWork || omp_get_max_threads() == 1) {
    for (int64_t piece = 0; piece < pieces; ++piece) run(piece);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) run(piece);
}

// A 64-byte aligned buffer of this thread, at least `floats` long, kept until the thread ends and
// grown when needed. One call's buffer is invalid after the next call on the same thread.
inline float* thread_scratch(int64_t floats) {
  struct Free {
    void operator()(float* pointer) const { std::free(pointer); }
  };
  static thread_local std::unique_ptr<float, Free> buffer;
  static thread_local int64_t capacity = 0;
  if (floats > capacity) {
    buffer.reset();
    capacity = 0;
    const int64_t rounded = (floats + 1023) / 1024 * 1024;
    void* memory = std::aligned_alloc(64, static_cast<size_t>(rounded) * sizeof(float));
    if (memory == nullptr) throw std::bad_alloc();
    buffer.reset(static_cast<float*>(memory));
    capacity = rounded;
  }
  return buffer.get();
}

}  // namespace graft::kernels
