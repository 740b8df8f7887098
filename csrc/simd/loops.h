// Loops over a row: full vectors without masks, then one masked tail. A body is written once, for both.
#pragma once

namespace sk::simd::SK_ISA {

// Stands where a count of lanes stands: all of them. load(p, All{}) is load(p).
struct All {};
template <class T>
SK_INLINE auto load(const T* p, All) {
  return load(p);
}
template <class T, class V>
SK_INLINE void store(T* p, V x, All) {
  store(p, x);
}

// The first n pairs of two vectors that follow one another.
template <class T>
SK_INLINE void store_pairs_of(T* p, F32 a, F32 b, All) {
  store(p, a);
  store(p + kLanes, b);
}
template <class T>
SK_INLINE void store_pairs_of(T* p, F32 a, F32 b, int64_t n) {
  store(p, a, 2 * n);
  if (2 * n > kLanes) store(p + kLanes, b, 2 * n - kLanes);
}

// The first n lanes of x, zeros elsewhere.
SK_INLINE F32 keep(F32 x, All) { return x; }
SK_INLINE F32 keep(F32 x, int64_t n) {
  float lanes[kLanes];
  store(lanes, x);
  return load(lanes, n);
}

// body(i, n) for i = 0, 16, ...: n is All, and at the end of the row the number of lanes left.
template <class Body>
SK_INLINE void for_lanes(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, All{});
  if (i < size) body(i, size - i);
}

// The sum over all lanes of acc = step(acc, i, n). Four chains hide the latency of an addition; their order is part
// of the result: same on every ISA.
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
