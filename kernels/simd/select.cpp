#include <atomic>

#include "kernels/simd/table.h"

namespace graft::kernels {
namespace {

const Table& table_of(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Bf16) {
    static const Table kTable = [] {
      Table result = avx512::table();
      result.name = "avx512bf16";
      result.weights = &avx512bf16::weight_table();
      return result;
    }();
    return kTable;
  }
  if (set == InstructionSet::kAvx512) return avx512::table();
  if (set == InstructionSet::kAvx2) return avx2::table();
#endif
  static_cast<void>(set);
  return generic::table();
}

const Table& best_table() {
  for (const InstructionSet set :
       {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512, InstructionSet::kAvx2}) {
    if (instruction_set_available(set)) return table_of(set);
  }
  return generic::table();
}

std::atomic<const Table*> chosen{nullptr};

}  // namespace

bool instruction_set_available(InstructionSet set) {
  if (set == InstructionSet::kGeneric) return true;
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512Bf16 && !__builtin_cpu_supports("avx512bf16")) return false;
  if (set == InstructionSet::kAvx512 || set == InstructionSet::kAvx512Bf16) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

const Table& table() {
  const Table* known = chosen.load(std::memory_order_relaxed);
  if (known == nullptr) {
    known = &best_table();
    chosen.store(known, std::memory_order_relaxed);
  }
  return *known;
}

void use_instruction_set(InstructionSet set) {
  chosen.store(&table_of(set), std::memory_order_relaxed);
}

}  // namespace graft::kernels
