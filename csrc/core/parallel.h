// Parallel loops on torch's own OpenMP runtime: one thread team for both (DESIGN, law 8).
#pragma once
#include "core/types.h"

namespace sk {

int threads();            // threads that a loop may use
void limit_threads(int n);  // 0: what torch uses

// Subnormals kept, rounding to nearest, until it goes out of scope: whatever torch.set_flush_denormal said, and
// whatever a worker thread inherited from the thread that made it (DESIGN, law 9).
class PlainFloats {
 public:
  PlainFloats();
  ~PlainFloats();
  PlainFloats(const PlainFloats&) = delete;
  PlainFloats& operator=(const PlainFloats&) = delete;

 private:
  uint32_t saved_;
};

// Calls body(context, item, worker) for every item, in any order; worker < threads().
void parallel_items(int64_t items, void (*body)(void*, int64_t, int), void* context);

// body(item, worker). Static: every instruction set keeps a copy of its own. Where there is too little to do for a
// second thread to be worth waking, `worth_threads` is false and the items run one after the other.
template <class Body>
static inline void parallel_for(int64_t items, const Body& body, bool worth_threads = true) {
  if (!worth_threads) {
    for (int64_t i = 0; i < items; ++i) body(i, 0);
    return;
  }
  parallel_items(
      items, [](void* f, int64_t item, int worker) { (*static_cast<const Body*>(f))(item, worker); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(first, last) or body(first, last, worker) over ranges of rows, each worth a thread: a row costs about
// `bytes_per_row` of traffic.
template <class Body>
static inline void parallel_rows(int64_t rows, int64_t bytes_per_row, const Body& body) {
  constexpr int64_t kWorthAThread = 32 << 10;
  const int64_t chunk = max(1, ceil_div(kWorthAThread, max(bytes_per_row, 1)));
  const int64_t chunks = ceil_div(rows, chunk);
  parallel_for(chunks, [&](int64_t i, int worker) {
    const int64_t first = i * chunk, last = min(rows, first + chunk);
    if constexpr (requires { body(first, last, worker); })
      body(first, last, worker);
    else
      body(first, last);
  });
}

}  // namespace sk
