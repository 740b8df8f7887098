#include "core/parallel.h"
#include "kernels/hadamard/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::hadamard::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int64_t kPair = 2 * kLanes, kBlock = 4 * kPair;

SK_INLINE void butterfly(F32& a, F32& b) {
  const F32 difference = sub(a, b);
  a = add(a, b);
  b = difference;
}

// Of 32 values: neighbours 2i and 2i + 1 become their sum at i and their difference at i + 16. That transforms the
// lowest bit of the index and makes it the highest: after five steps all are transformed, and back in place.
SK_INLINE void step(F32& a, F32& b) {
  const F32 even = even_lanes(a, b), odd = odd_lanes(a, b);
  a = even;
  b = odd;
  butterfly(a, b);
}

// 32 * kPairs values, scaled. Within pairs of vectors first, then across.
template <int kPairs, class T, class R>
SK_INLINE void transform(const T* x, float scale, R* y) {
  F32 v[2 * kPairs];
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) {
    F32 &a = v[2 * i], &b = v[2 * i + 1];
    a = load(x + i * kPair, Even{});
    b = load(x + i * kPair, Odd{});
    butterfly(a, b);
#pragma GCC unroll 4
    for (int bit = 1; bit < 5; ++bit) step(a, b);
  }
#pragma GCC unroll 4
  for (int half = 2; half < 2 * kPairs; half *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kPairs; ++i)
      if ((i & half) == 0) butterfly(v[i], v[i + half]);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kPairs; ++i) store_result(y + i * kLanes, mul(v[i], splat(scale)), All{});
}

// Up to 16 values, of 32 whose others are 0. A bit of the index that is always 0 is dropped instead of transformed.
template <class T>
SK_INLINE void transform_few(const T* x, int64_t dim, float scale, T* y) {
  F32 a = load(x, dim), b = splat(0.0f);
  for (int64_t bit = 1; bit < kPair; bit *= 2) {
    if (bit < dim) {
      step(a, b);
    } else {
      a = even_lanes(a, b);
      b = splat(0.0f);
    }
  }
  store_result(y, mul(a, splat(scale)), dim);
}

// Within blocks first, then across, in memory.
template <class T>
SK_INLINE void transform_many(const T* x, int64_t dim, float scale, float* v, T* y) {
  for (int64_t i = 0; i < dim; i += kBlock) transform<4>(x + i, 1.0f, v + i);
  for (int64_t half = kBlock; half < dim; half *= 2)
    for (int64_t first = 0; first < dim; first += 2 * half)
      for (int64_t i = first; i < first + half; i += kLanes) {
        F32 a = load(v + i), b = load(v + i + half);
        butterfly(a, b);
        store(v + i, a);
        store(v + i + half, b);
      }
  map_row(v, y, dim, [&](int64_t i, auto lanes) { return mul(load(v + i, lanes), splat(scale)); });
}

template <class T>
static void run_as(const Args& a) {
  const auto for_rows = [&](const auto& body) {
    parallel_rows(a.rows, 2 * a.dim * size_of(a.dtype), [&](int64_t first_row, int64_t last_row, int worker) {
      for (int64_t r = first_row; r < last_row; ++r)
        body(static_cast<const T*>(a.x.data) + r * a.x.stride, static_cast<T*>(a.y) + r * a.dim, worker);
    });
  };
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.dim));
  if (a.dim == kPair)
    for_rows([&](const T* x, T* y, int) { transform<1>(x, scale, y); });
  else if (a.dim == 2 * kPair)
    for_rows([&](const T* x, T* y, int) { transform<2>(x, scale, y); });
  else if (a.dim == kBlock)
    for_rows([&](const T* x, T* y, int) { transform<4>(x, scale, y); });
  else if (a.dim < kPair)
    for_rows([&](const T* x, T* y, int) { transform_few(x, a.dim, scale, y); });
  else
    for_rows([&](const T* x, T* y, int worker) { transform_many(x, a.dim, scale, a.scratch + worker * a.dim, y); });
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) { run_as<decltype(type)>(a); });
}

}  // namespace sk::hadamard::SK_ISA
