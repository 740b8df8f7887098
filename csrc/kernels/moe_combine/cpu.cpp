#include "core/parallel.h"
#include "kernels/moe_combine/op.h"
#include "simd/isa.h"

namespace sk::moe_combine::SK_ISA {
using namespace sk::simd::SK_ISA;

// kVectors vectors of columns, of which n columns count; n is known to be all of them where the row goes on.
template <int kVectors, class T, class Out>
SK_INLINE void add_slots(const Args& a, int64_t token, int64_t column, int64_t n) {
  constexpr int64_t kColumns = kVectors * kLanes;
  const T* y = static_cast<const T*>(a.y.data) + column;
  F32 acc[kVectors];
  for (F32& x : acc) x = splat(0.0f);
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t row = a.slot_row[token * a.top_k + j];
    if (row < 0) continue;
    const F32 w = splat(a.weights.data == nullptr ? 1.0f : a.weights.data[token * a.weights.stride + j]);
    const T* from = y + row * a.y.stride;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      acc[v] = fma(w, n == kColumns ? load(from + v * kLanes) : load(from + v * kLanes, n), acc[v]);
  }
  Out* out = static_cast<Out*>(a.out) + token * a.dim + column;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) n == kColumns ? store(out + v * kLanes, acc[v]) : store(out + v * kLanes, acc[v], n);
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    with_float_type(a.out_dtype, [&](auto out_type) {
      using T = decltype(type);
      using Out = decltype(out_type);
      constexpr int64_t kBlock = 8 * kLanes;
      constexpr int64_t kStripe = 16 * kBlock;  // so that a single token keeps all threads busy
      const int64_t stripes = ceil_div(a.dim, kStripe);
      const int64_t bytes = (a.top_k * size_of(a.dtype) + size_of(a.out_dtype)) * min(a.dim, kStripe);
      parallel_rows(a.tokens * stripes, bytes, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          const int64_t token = i / stripes, end = min(a.dim, (i % stripes + 1) * kStripe);
          int64_t column = i % stripes * kStripe;
          for (; column + kBlock <= end; column += kBlock) add_slots<8, T, Out>(a, token, column, kBlock);
          for (; column < end; column += kLanes) add_slots<1, T, Out>(a, token, column, min(kLanes, end - column));
        }
      });
    });
  });
}

}  // namespace sk::moe_combine::SK_ISA
