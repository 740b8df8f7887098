#include "core/parallel.h"
#include "kernels/hadamard/op.h"
#include "simd/isa.h"

namespace sk::hadamard::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int kBlock = 8 * kLanes;

// Neighbours 2i, 2i + 1 become their sum at i and their difference at i + half. That transforms the lowest bit of the
// index and makes it the highest: after as many steps as the index has bits, all are transformed and back in place.
template <int kVectors>
SK_INLINE void step(F32 (&v)[kVectors]) {
  F32 r[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors / 2; ++i) {
    const F32 even = even_lanes(v[2 * i], v[2 * i + 1]), odd = odd_lanes(v[2 * i], v[2 * i + 1]);
    r[i] = add(even, odd);
    r[i + kVectors / 2] = sub(even, odd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) v[i] = r[i];
}

// 16 * kVectors values of a row, scaled, from x to y.
template <int kVectors, class T, class R>
static void transform(const T* x, float scale, R* y) {
  F32 v[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) v[i] = load(x + i * kLanes);
  for (int bit = 1; bit < kVectors * kLanes; bit *= 2) step(v);
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) store(y + i * kLanes, mul(v[i], splat(scale)));
}

// Up to 16 values: 32 of which the others are 0. An index bit that is always 0 is dropped instead of transformed.
template <class T>
static void transform_few(const T* x, int64_t dim, float scale, T* y) {
  F32 v[2] = {load(x, dim), splat(0.0f)};
  for (int64_t bit = 1; bit < 2 * kLanes; bit *= 2) {
    if (bit < dim) {
      step(v);
    } else {
      v[0] = even_lanes(v[0], v[1]);
      v[1] = splat(0.0f);
    }
  }
  store(y, mul(v[0], splat(scale)), dim);
}

// H_dim = H_(dim / block) x H_block: first within blocks, then across.
template <class T>
static void transform_many(const T* x, int64_t dim, float scale, float* v, T* y) {
  for (int64_t i = 0; i < dim; i += kBlock) transform<8>(x + i, 1.0f, v + i);
  for (int64_t half = kBlock; half < dim; half *= 2)
    for (int64_t first = 0; first < dim; first += 2 * half)
      for (int64_t i = first; i < first + half; i += kLanes) {
        const F32 a = load(v + i), b = load(v + i + half);
        store(v + i, add(a, b));
        store(v + i + half, sub(a, b));
      }
  for (int64_t i = 0; i < dim; i += kLanes) store(y + i, mul(load(v + i), splat(scale)));
}

void run(const Args& a) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.dim));
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, 2 * a.dim * size_of(a.dtype), [&](int64_t first_row, int64_t last_row, int worker) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const T* x = static_cast<const T*>(a.x.data) + r * a.x.stride;
        T* y = static_cast<T*>(a.y) + r * a.dim;
        switch (a.dim) {
          case 2 * kLanes: transform<2>(x, scale, y); break;
          case 4 * kLanes: transform<4>(x, scale, y); break;
          case 8 * kLanes: transform<8>(x, scale, y); break;
          default:
            if (a.dim <= kLanes)
              transform_few(x, a.dim, scale, y);
            else
              transform_many(x, a.dim, scale, a.scratch + worker * a.dim, y);
        }
      }
    });
  });
}

}  // namespace sk::hadamard::SK_ISA
