#include "core/cpu_features.h"

#include <atomic>

namespace sk {

static std::atomic<Isa> cap{Isa::avx512bf16};

Isa best_isa() {
#if defined(__x86_64__)
  static const Isa best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(SK_AVX512_EMULATED)
    if (avx2) return Isa::avx512bf16;
#elif defined(SK_AVX512)
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
    if (bf16) return Isa::avx512bf16;
    if (avx512) return Isa::avx512;
#endif
    return avx2 ? Isa::avx2 : Isa::scalar;
  }();
  return best;
#else
  return Isa::scalar;
#endif
}

Isa active_isa() {
  const Isa highest = cap.load(std::memory_order_relaxed);
  return highest < best_isa() ? highest : best_isa();
}

void cap_isa(Isa highest) { cap.store(highest, std::memory_order_relaxed); }

}  // namespace sk
