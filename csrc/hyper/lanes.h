// The small numbers of sixteen tokens, one token a lane.
#pragma once
#include "hyper/streams.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::hyper::SK_ISA {
using namespace sk::simd::SK_ISA;

// v[e] lane t = x[t][e], for e < size and t < tokens; 0 in the other lanes.
static void load_tokens(const float* x, int64_t stride, int64_t tokens, int64_t size, F32* v) {
  for (int64_t first = 0; first < size; first += kLanes) {
    const int64_t n = min(kLanes, size - first);
    I32 block[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) block[t] = t < tokens ? bits(load(x + t * stride + first, n)) : splat_i(0);
    transpose(block);
    for (int64_t e = 0; e < n; ++e) v[first + e] = from_bits(block[e]);
  }
}

// And back, to rows without gaps.
static void store_tokens(const F32* v, int64_t size, float* x, int64_t tokens) {
  for (int64_t first = 0; first < size; first += kLanes) {
    const int64_t n = min(kLanes, size - first);
    I32 block[kLanes];
    for (int64_t e = 0; e < kLanes; ++e) block[e] = e < n ? bits(one_nan(v[first + e])) : splat_i(0);
    transpose(block);
    for (int64_t t = 0; t < tokens; ++t) store(x + t * size + first, from_bits(block[t]), n);
  }
}

// The n values at m, `step` apart, over their sum + eps: one reciprocal, n products.
SK_INLINE void divide_by_sum(F32* m, int64_t n, int64_t step, F32 eps) {
  F32 total = m[0];
#pragma GCC unroll 4
  for (int64_t i = 1; i < n; ++i) total = add(total, m[i * step]);
  const F32 inverse = div(splat(1.0f), add(total, eps));
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; ++i) m[i * step] = mul(m[i * step], inverse);
}

// m [n][n], a matrix a lane: a softmax of each row, then rows and columns by turns.
SK_INLINE void balance_matrices(F32* m, int64_t n, int64_t iters, float epsilon) {
  const F32 eps = splat(epsilon), none = splat(0.0f);
#pragma GCC unroll 4
  for (int64_t r = 0; r < n; ++r) {
    F32* row = m + r * n;
    F32 top = row[0];
#pragma GCC unroll 4
    for (int64_t i = 1; i < n; ++i) top = max(top, row[i]);
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; ++i) row[i] = exp(sub(row[i], top));
    divide_by_sum(row, n, 1, none);
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; ++i) row[i] = add(row[i], eps);
  }
  for (int64_t it = 0; it < iters; ++it) {
    if (it > 0)
#pragma GCC unroll 4
      for (int64_t r = 0; r < n; ++r) divide_by_sum(m + r * n, n, 1, eps);
#pragma GCC unroll 4
    for (int64_t c = 0; c < n; ++c) divide_by_sum(m + c, n, n, eps);
  }
}

// Models have four streams: there the compiler knows the number.
static void balance(F32* m, int64_t n, int64_t iters, float eps) {
  n == 4 ? balance_matrices(m, 4, iters, eps) : balance_matrices(m, n, iters, eps);
}

}  // namespace sk::hyper::SK_ISA
