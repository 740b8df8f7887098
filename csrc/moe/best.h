// The best of up to 1024 numbers, exactly: larger first, then smaller index.
//
// Numbers are compared as integers in the same order. Sixteen of them make a chunk; the largest of every chunk is
// kept, sixteen chunks to a vector. The best of all is found there, then in its chunk. Nothing branches on data.
#pragma once
#include "simd/isa.h"

namespace sk::moe::SK_ISA {
using namespace sk::simd::SK_ISA;

inline constexpr int32_t kNone = INT32_MIN;  // below the key of every number
inline constexpr int64_t kChunksAVector = kLanes, kKeysAVector = kChunksAVector * kLanes;

// Integers in the order of the numbers. NaN counts as -inf; x must not be -0.
SK_INLINE I32 key_of(F32 x) {
  const I32 u = bits(max(x, splat(-__builtin_inff())));
  return xor_(u, and_(sra<31>(u), splat_i(INT32_MAX)));
}
SK_INLINE F32 number_of(I32 key) { return from_bits(xor_(key, and_(sra<31>(key), splat_i(INT32_MAX)))); }

// Sixteen vectors become one, whose lane i is the largest of at(i). Each step halves what is left of a vector; kRun
// is how many of its lanes that is, next to those of the others.
SK_INLINE I32 join(I32 a, I32 b) { return max(a, b); }
template <int N>
SK_INLINE I32 fold(I32 a, I32 b) {
  return join(even_runs<N>(a, b), odd_runs<N>(a, b));
}
template <int kRun = 1, class At>
SK_INLINE auto fold_all(const At& at, int first = 0) {
  if constexpr (kRun == kLanes)
    return at(first);
  else
    return fold<kRun>(fold_all<2 * kRun>(at, first), fold_all<2 * kRun>(at, first + 8 / kRun));
}

// The same for the two largest.
struct Top2 { I32 best, second; };
SK_INLINE Top2 pair(I32 a, I32 b) { return {max(a, b), min(a, b)}; }
SK_INLINE Top2 join(Top2 a, Top2 b) {
  return {max(a.best, b.best), max(min(a.best, b.best), max(a.second, b.second))};
}
template <int N>
SK_INLINE Top2 fold(Top2 a, Top2 b) {
  return join(Top2{even_runs<N>(a.best, b.best), even_runs<N>(a.second, b.second)},
              Top2{odd_runs<N>(a.best, b.best), odd_runs<N>(a.second, b.second)});
}
template <class At>
SK_INLINE Top2 fold_all_to_two(const At& at) {
  const auto first_step = [&](int i) {
    const I32 a = at(2 * i), b = at(2 * i + 1);
    return pair(even_runs<8>(a, b), odd_runs<8>(a, b));
  };
  return fold<1>(fold<2>(fold<4>(first_step(0), first_step(1)), fold<4>(first_step(2), first_step(3))),
                 fold<2>(fold<4>(first_step(4), first_step(5)), fold<4>(first_step(6), first_step(7))));
}

// The largest key of every chunk; both come in whole vectors of chunks, 4 at most.
static void find_maxima(const int32_t* keys, int32_t* maxima, int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v)
    store(maxima + v * kLanes, fold_all([&](int i) { return load(keys + v * kKeysAVector + i * kLanes); }));
}
SK_INLINE I32 with_lane(I32 x, int i, I32 y) { return select(eq(lane_numbers(), splat_i(i)), y, x); }

// Takes the best key out and returns where it was. Vectors: of maxima, a number that the compiler may know.
template <class Vectors>
SK_INLINE int32_t pop_best(int32_t* keys, int32_t* maxima, Vectors vectors) {
  I32 best = load(maxima);
  for (int64_t v = 1; v < vectors; ++v) best = max(best, load(maxima + v * kLanes));
  best = max_across(best);
  uint64_t holders = 0;
  for (int64_t v = 0; v < vectors; ++v)
    holders |= static_cast<uint64_t>(to_bits(eq(load(maxima + v * kLanes), best))) << (v * kLanes);
  const int chunk = __builtin_ctzll(holders);

  int32_t* const its_keys = keys + chunk * kLanes;
  I32 left = load(its_keys);
  const int lane = __builtin_ctz(to_bits(eq(left, best)));
  left = with_lane(left, lane, splat_i(kNone));
  store(its_keys, left);
  int32_t* const its_vector = vectors > 1 ? maxima + chunk / kLanes * kLanes : maxima;
  store(its_vector, with_lane(load(its_vector), chunk % kLanes, max_across(left)));
  return chunk * kLanes + lane;
}
}  // namespace sk::moe::SK_ISA
