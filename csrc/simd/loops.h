// Loops over a row: full vectors without masks, then one masked tail. A body is written once, as a function of
// (i, lanes), and reads with load(x + i, lanes) whichever lanes these are.
#pragma once

namespace sk::simd::SK_ISA {

// Which values a vector takes: the first n (an int64_t), all 16, or the even or the odd ones of 32. A vector of bf16
// is cheaper to take apart, and to put together, that way.
struct All {};
struct Even {};
struct Odd {};

template <class T>
SK_INLINE auto load(const T* p, All) {
  return load(p);
}
SK_INLINE F32 load(const bf16* p, Even) { return even(load_pairs(p)); }
SK_INLINE F32 load(const bf16* p, Odd) { return odd(load_pairs(p)); }
SK_INLINE F32 load(const float* p, Even) { return even_lanes(load(p), load(p + kLanes)); }
SK_INLINE F32 load(const float* p, Odd) { return odd_lanes(load(p), load(p + kLanes)); }
SK_INLINE I32 load(const uint8_t* p, Even) { return load_words(p); }  // the next byte is above it
SK_INLINE I32 load(const uint8_t* p, Odd) { return shr<8>(load_words(p)); }

template <class T, class V>
SK_INLINE void store(T* p, V x, All) {
  store(p, x);
}
SK_INLINE void store_even_odd(bf16* p, F32 even, F32 odd) { store_pairs(p, narrow_pairs(even, odd)); }
SK_INLINE void store_even_odd(float* p, F32 even, F32 odd) {
  store(p, interleave_low(even, odd));
  store(p + kLanes, interleave_high(even, odd));
}
SK_INLINE void store_even_odd(uint8_t* p, I32 even, I32 odd) {
  store_words(p, or_(and_(even, splat_i(0xff)), shl<8>(odd)));
}

// The first n lanes of x, zeros elsewhere.
SK_INLINE F32 keep(F32 x, All) { return x; }
SK_INLINE F32 keep(F32 x, int64_t n) {
  float lanes[kLanes];
  store(lanes, x);
  return load(lanes, n);
}

// Every NaN as the same one, as rounding to bf16 makes it anyway. Of two NaN operands the first survives, and which
// is first the compiler decides.
SK_INLINE F32 one_nan(F32 x) { return select(ne(x, x), from_bits(splat_i(0x7fc00000)), x); }
SK_INLINE I32 one_nan(I32 x) { return x; }
template <class T, class V>
SK_INLINE V result_of(V x) {  // to be stored as T
  return sizeof(T) < sizeof(float) ? x : one_nan(x);
}
template <class T, class V, class Lanes>
SK_INLINE void store_result(T* p, V x, Lanes lanes) {
  store(p, result_of<T>(x), lanes);
}

// y[i] = f(i, lanes), which depends on x[i] first of all: types narrower than float are best taken by twos.
template <class X, class Y, class F>
SK_INLINE void map_row(const X*, Y* y, int64_t size, const F& f) {
  int64_t i = 0;
  if constexpr (sizeof(X) < sizeof(float) && sizeof(Y) < sizeof(float))
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) store_even_odd(y + i, f(i, Even{}), f(i, Odd{}));
  for (; i + kLanes <= size; i += kLanes) store_result(y + i, f(i, All{}), All{});
  if (i < size) store_result(y + i, f(i, size - i), size - i);
}

// The sum over all lanes of acc = step(acc, i, lanes). Four chains hide the latency of an addition; their order is
// part of the result: same on every ISA.
template <class Step>
SK_INLINE float sum_over(int64_t size, const Step& step) {
  F32 acc[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) acc[u] = step(acc[u], i + u * kLanes, All{});
  for (; i + kLanes <= size; i += kLanes) acc[0] = step(acc[0], i, All{});
  if (i < size) acc[0] = step(acc[0], i, size - i);
  return sum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

}  // namespace sk::simd::SK_ISA
