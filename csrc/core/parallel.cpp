#include "core/parallel.h"

#include <omp.h>

#include <atomic>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace sk {

#if defined(__SSE2__)
PlainFloats::PlainFloats() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
PlainFloats::~PlainFloats() { _mm_setcsr(saved_); }
#else
PlainFloats::PlainFloats() : saved_(0) {}
PlainFloats::~PlainFloats() = default;
#endif

static std::atomic<int> limit{0};

int threads() {
  const int wanted = limit.load(std::memory_order_relaxed);
  return wanted > 0 ? wanted : omp_get_max_threads();
}

void limit_threads(int n) { limit.store(n, std::memory_order_relaxed); }

void parallel_items(int64_t items, void (*body)(void*, int64_t, int), void* context) {
  const int team = static_cast<int>(min(items, threads()));
  if (team <= 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < items; ++i) body(context, i, 0);
    return;
  }
  // Items are handed out one by one: experts are unequal, and the machine is shared.
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(team)
  {
    const PlainFloats plain;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;)
      body(context, i, omp_get_thread_num());
  }
}

}  // namespace sk
