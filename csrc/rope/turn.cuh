// Cosine and sine of an angle, in double as the CPU has them (csrc/rope/rotate.h explains it): the same bits.
#pragma once
#include "cuda/launch.cuh"
#include "rope/rotation.h"

namespace sk::rope::cuda {

struct Turn { float cosine, sine; };

__device__ inline double horner(double, double p) { return p; }
template <class... More>
__device__ double horner(double z, double p, double next, More... more) {
  return horner(z, p * z + next, more...);
}

__device__ inline Turn turn_by(float angle) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kMagic = 0x1.8p52;
  constexpr double kPio2[3] = {0x1.921fbp0, 0x1.5110bp-22, 0x1.18469898cc517p-44};
  const double x = static_cast<double>(angle), shifted = x * kTwoOverPi + kMagic, k = shifted - kMagic;
  const double r = ((x - k * kPio2[0]) - k * kPio2[1]) - k * kPio2[2], z = r * r;
  const double s = r + r * z *
                           horner(z, -1 / 1307674368e3, 1 / 6227020800., -1 / 39916800., 1 / 362880., -1 / 5040.,
                                  1 / 120., -1 / 6.);
  const double c = 1 + z * horner(z, 1 / 20922789888e3, -1 / 87178291200., 1 / 479001600., -1 / 3628800., 1 / 40320.,
                                  -1 / 720., 1 / 24., -1 / 2.);
  const int64_t quarter = __double_as_longlong(shifted);
  const double cosine = (quarter & 1) != 0 ? s : c, sine = (quarter & 1) != 0 ? c : s;
  return {static_cast<float>(((quarter + 1) & 2) != 0 ? -cosine : cosine),
          static_cast<float>((quarter & 2) != 0 ? -sine : sine)};
}

// For a kernel to take: frequencies are on the host.
constexpr int kPairs = 256;
struct Frequencies { float at[kPairs]; };

// body(frequencies, first, count) for some pairs after the other.
template <class Body>
void for_frequencies(const Rotation& how, const Body& body) {
  for (int64_t first = 0; first < how.pairs; first += kPairs) {
    const int64_t count = min(kPairs, how.pairs - first);
    Frequencies frequencies = {};
    for (int64_t i = 0; i < count; ++i) frequencies.at[i] = how.frequency[first + i];
    body(frequencies, first, count);
  }
}

}  // namespace sk::rope::cuda
