// The k best of a stream of numbers, exactly: larger first, of equal ones the one that came first.
//
// Candidates wait in the order in which they came. When there is no room for more, the k best of them stay, and from
// then on only what is larger than the last of these can be among the best. NaN and -inf never are. However the
// stream is cut, and whatever was guessed beforehand, the result is the same: the order is total.
#pragma once
#include "indexer/memory.h"
#include "simd/isa.h"

namespace sk::indexer::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr float kInfinity = __builtin_inff();

// Integers in the order of the numbers; -0 is just below 0.
SK_INLINE int32_t key_of(float x) {
  const int32_t u = __builtin_bit_cast(int32_t, x);
  return u ^ (u >> 31 & INT32_MAX);
}
SK_INLINE float number_of(int32_t key) { return __builtin_bit_cast(float, key ^ (key >> 31 & INT32_MAX)); }
// The largest number less than x > -inf.
SK_INLINE float just_below(float x) { return number_of(key_of(x == 0 ? -0.0f : x) - 1); }

// --- the worst of the best

// How many of n numbers are less than t; n in whole strides.
static int64_t count_less(const float* x, int64_t n, float t) {
  int64_t count = 0;
  const F32 bound = splat(t);
  for (int64_t i = 0; i < n; i += kStride) {
    uint64_t less = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      less |= static_cast<uint64_t>(to_bits(lt(load(x + i + v * kLanes), bound))) << v * kLanes;
    count += __builtin_popcountll(less);
  }
  return count;
}

// At least k numbers are not less than `at`, and the first `ties` of those equal to it complete the k best.
struct Cut {
  float at;
  int64_t ties;
};

// By bisection, which counts sixteen numbers at a time and asks nothing of how they are distributed. n >= k >= 1
// numbers, none NaN or less than `least`; up to a stride past the last must be writable.
static Cut find_cut(float* x, int64_t n, int64_t k, float least) {
  const int64_t padded = round_up(n, kStride);
  for (int64_t i = n; i < padded; i += kLanes) store(x + i, splat(-kInfinity));
  const auto count_from = [&](int64_t key) {
    return padded - count_less(x, padded, number_of(static_cast<int32_t>(key)));
  };
  F32 most = splat(-kInfinity);
  for (int64_t i = 0; i < padded; i += kLanes) most = max(load(x + i), most);
  // The answer is in [low, high]. A largest number of -0 is taken for 0, or its equals would count as larger.
  int64_t low = key_of(least), high = key_of(largest(most) + 0.0f);
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2, count = count_from(middle);
    if (count == k) return {number_of(static_cast<int32_t>(middle)), n};
    if (count > k)
      low = middle;
    else
      high = middle - 1;
  }
  const float at = number_of(static_cast<int32_t>(low));
  return {at, k - (at == kInfinity ? 0 : count_from(low + 1))};
}

// --- candidates

// The lowest `n` set bits.
SK_INLINE uint32_t first_set(uint32_t set, int64_t n) {
  while (__builtin_popcount(set) > n) set &= ~(0x80000000u >> __builtin_clz(set));
  return set;
}

static void keep_best(Best& b) {
  if (b.count <= b.k) return;
  Cut cut = find_cut(b.numbers, b.count, b.k, b.above);
  const F32 at = splat(cut.at);
  int64_t kept = 0;
  for (int64_t i = 0; i < b.count; i += kLanes) {  // what is written never passes what is read
    const F32 x = load(b.numbers + i);
    const I32 index = load(b.indices + i);
    const uint32_t equal = first_set(to_bits(eq(x, at)), cut.ties), set = to_bits(lt(at, x)) | equal;
    cut.ties -= __builtin_popcount(equal);
    compress(b.numbers + kept, x, set);
    compress(b.indices + kept, index, set);
    kept += __builtin_popcount(set);
  }
  b.count = kept;
  b.above = cut.at;
}

// Numbers x[0] to x[n - 1]; index_at(i) says which the sixteen from i are, in ascending order and after all before.
template <class T, class IndexAt>
SK_INLINE void offer(Best& b, const T* x, int64_t n, const IndexAt& index_at) {
  for (int64_t first = 0; first < n; first += kBlock) {
    if (b.count + kBlock + kLanes > b.room) keep_best(b);
    const int64_t end = min(n, first + kBlock);
    const F32 above = splat(b.above);
    // Few vectors hold a candidate: which, is found without a branch.
    uint8_t holders[kBlock / kLanes + 1];
    int64_t held = 0, i = first;
    for (; i + kLanes <= end; i += kLanes) {
      __builtin_prefetch(x + i + kBlock);  // comes while candidates are taken
      holders[held] = static_cast<uint8_t>((i - first) / kLanes);
      held += to_bits(lt(above, load(x + i))) != 0;
    }
    float* numbers = b.numbers + b.count;
    int32_t* indices = b.indices + b.count;
    const auto take = [&](F32 v, I32 index, uint32_t set) {
      compress(numbers, v, set);
      compress(indices, index, set);
      numbers += __builtin_popcount(set);
      indices += __builtin_popcount(set);
    };
    for (int64_t h = 0; h < held; ++h) {
      const int64_t at = first + holders[h] * kLanes;
      const F32 v = load(x + at);
      take(v, index_at(at), to_bits(lt(above, v)));
    }
    if (i < end) {
      const F32 v = load(x + i, end - i);
      take(v, index_at(i), to_bits(lt(above, v)) & ((1u << (end - i)) - 1));
    }
    b.count = numbers - b.numbers;
  }
}

// Consecutive ones.
SK_INLINE auto from(int64_t first) {
  return [=](int64_t i) { return add(lane_numbers(), splat_i(static_cast<int32_t>(first + i))); };
}
// The candidates of another, which come after all before.
static void offer_best(Best& b, const Best& other) {
  offer(b, other.numbers, other.count, [&](int64_t i) { return load(other.indices + i); });
}

// The best in the order in which they came, -1 where there are none; n >= k places.
static void write_best(Best& b, int32_t* out, int64_t n) {
  keep_best(b);
  int64_t i = 0;
  for (; i + kLanes <= b.count; i += kLanes) store(out + i, load(b.indices + i));
  store(out + i, load(b.indices + i, b.count - i), b.count - i);
  for (i = b.count; i < n; i += kLanes) store(out + i, splat_i(-1), n - i);
}

}  // namespace sk::indexer::SK_ISA
