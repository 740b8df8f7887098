// Rotation of pairs of channels.
#pragma once
#include "rope/rotation.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::rope::SK_ISA {
using namespace sk::simd::SK_ISA;

// Cosine and sine of 16 angles, in double from the reduction on and rounded once: no library's, which differ between
// systems, and hardly ever more than half an ulp off.
//
// x = k pi/2 + r, |r| <= pi/4, k nearest. pi/2 is three numbers, the first two of 21 bits, so that k times these is
// exact while k has 32 bits; then Taylor's series, whose first missing term is below 2^-50.
static void cosines_and_sines(const float* angle, float* cosine, float* sine) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kMagic = 0x1.8p52;  // adding kMagic rounds to an integer
  constexpr double kPio2[3] = {0x1.921fbp0, 0x1.5110bp-22, 0x1.18469898cc517p-44};
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const double x = static_cast<double>(angle[i]);
    const double shifted = x * kTwoOverPi + kMagic, k = shifted - kMagic;
    const double r = ((x - k * kPio2[0]) - k * kPio2[1]) - k * kPio2[2], z = r * r;
    const auto horner = [z](auto... coefficients) {
      double p = 0;
      return ((p = p * z + coefficients), ...);
    };
    const double s = r + r * z *
                             horner(-1 / 1307674368e3, 1 / 6227020800., -1 / 39916800., 1 / 362880., -1 / 5040.,
                                    1 / 120., -1 / 6.);
    const double c = 1 + z * horner(1 / 20922789888e3, -1 / 87178291200., 1 / 479001600., -1 / 3628800., 1 / 40320.,
                                    -1 / 720., 1 / 24., -1 / 2.);
    // In the k-th quarter of a turn: both change places in every second, and their signs after every second.
    const auto bits_of = [](double v) { return __builtin_bit_cast(uint64_t, v); };
    const uint64_t quarter = bits_of(shifted), swap = -(quarter & 1);
    const uint64_t both = bits_of(s) ^ bits_of(c), moved = both & swap;
    const uint64_t cosine_sign = ((quarter + 1) & 2) << 62, sine_sign = (quarter & 2) << 62;
    cosine[i] = static_cast<float>(__builtin_bit_cast(double, bits_of(c) ^ moved ^ cosine_sign));
    sine[i] = static_cast<float>(__builtin_bit_cast(double, bits_of(s) ^ moved ^ sine_sign));
  }
}

// The rotations of one position: table has table_floats(pairs).
static void rotations(const Rotation& r, int32_t position, float* table) {
  const int64_t padded = round_up(r.pairs, kLanes);
  const F32 p = splat(static_cast<float>(position));
  float angle[kLanes];
  for (int64_t i = 0; i < padded; i += kLanes) {
    store(angle, mul(p, load(r.frequency + i)));
    cosines_and_sines(angle, table + i, table + padded + i);
    if (r.inverse) store(table + padded + i, neg(load(table + padded + i)));
  }
}

struct Pair { F32 first, second; };
SK_INLINE Pair rotated(Pair x, F32 cosine, F32 sine) {
  return {one_nan(sub(mul(x.first, cosine), mul(x.second, sine))),
          one_nan(add(mul(x.second, cosine), mul(x.first, sine)))};
}

// The rotated channels of one row; x and y begin with the first of them.
template <class T>
SK_INLINE void rotate(const Rotation& r, const float* table, const T* x, T* y) {
  const float *cosine = table, *sine = table + round_up(r.pairs, kLanes);
  const int64_t n = r.pairs;
  int64_t i = 0;
  if (r.half) {
    const auto step = [&](auto lanes) {
      const Pair p = rotated({load(x + i, lanes), load(x + n + i, lanes)}, load(cosine + i), load(sine + i));
      store(y + i, p.first, lanes);
      store(y + n + i, p.second, lanes);
    };
    for (; i + kLanes <= n; i += kLanes) step(All{});
    if (i < n) step(n - i);
    return;
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Pair p = rotated({load(x + 2 * i, Even{}), load(x + 2 * i, Odd{})}, load(cosine + i), load(sine + i));
    store_even_odd(y + 2 * i, p.first, p.second);
  }
  if (i < n) {
    const int64_t left = 2 * (n - i), more = max(left - kLanes, 0);
    const F32 a = load(x + 2 * i, left), b = load(x + 2 * i + kLanes, more);
    const Pair p = rotated({even_lanes(a, b), odd_lanes(a, b)}, load(cosine + i), load(sine + i));
    store(y + 2 * i, interleave_low(p.first, p.second), left);
    store(y + 2 * i + kLanes, interleave_high(p.first, p.second), more);
  }
}

}  // namespace sk::rope::SK_ISA
