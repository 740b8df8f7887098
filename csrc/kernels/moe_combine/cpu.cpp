#include "core/parallel.h"
#include "kernels/moe_combine/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::moe_combine::SK_ISA {
using namespace sk::simd::SK_ISA;

template <int kVectors, class T, class Out, class Lanes>
SK_INLINE void add_slots(const Args& a, int64_t token, int64_t column, Lanes lanes) {
  F32 acc[kVectors];
  for (F32& x : acc) x = splat(0.0f);
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t row = a.slot_row[token * a.top_k + j];
    if (row < 0) continue;
    const F32 w = splat(a.weights.data == nullptr ? 1.0f : a.weights.data[token * a.weights.stride + j]);
    const T* y = static_cast<const T*>(a.y.data) + row * a.y.stride + column;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[v] = fma(w, load(y + v * kLanes, lanes), acc[v]);
  }
  Out* out = static_cast<Out*>(a.out) + token * a.dim + column;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store_result(out + v * kLanes, acc[v], lanes);
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    with_float_type(a.out_dtype, [&](auto out_type) {
      using T = decltype(type);
      using Out = decltype(out_type);
      constexpr int kVectors = 4;
      constexpr int64_t kBlock = kVectors * kLanes,
                        kStripe = 32 * kBlock;  // stripes: a single token suits all threads
      const int64_t stripes = ceil_div(a.dim, kStripe);
      const int64_t bytes = (a.top_k * size_of(a.dtype) + size_of(a.out_dtype)) * min(a.dim, kStripe);
      parallel_rows(a.tokens * stripes, bytes, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          const int64_t token = i / stripes, end = min(a.dim, (i % stripes + 1) * kStripe);
          int64_t column = i % stripes * kStripe;
          for (; column + kBlock <= end; column += kBlock) add_slots<kVectors, T, Out>(a, token, column, All{});
          for (; column + kLanes <= end; column += kLanes) add_slots<1, T, Out>(a, token, column, All{});
          if (column < end) add_slots<1, T, Out>(a, token, column, end - column);
        }
      });
    });
  });
}

}  // namespace sk::moe_combine::SK_ISA
