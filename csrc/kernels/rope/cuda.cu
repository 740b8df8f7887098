// A block does a token: the cosines and sines of its position, in double as the CPU has them, then all its heads.
// Frequencies are arguments of the kernel, some at a time.
#include "cuda/elements.cuh"
#include "kernels/rope/op.h"

namespace sk::rope::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128, kPairs = 256;  // at a time

struct Frequencies { float at[kPairs]; };
struct Turn { float cosine, sine; };

__device__ double horner(double, double p) { return p; }
template <class... More>
__device__ double horner(double z, double p, double next, More... more) {
  return horner(z, p * z + next, more...);
}

// csrc/rope/rotate.h explains it.
__device__ Turn turn_by(float angle) {
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

template <class T>
__global__ void __launch_bounds__(kThreads)
    rotate(const Args a, const Frequencies frequencies, int64_t first, int64_t count) {
  __shared__ Turn turns[kPairs];
  const int64_t token = blockIdx.x;
  const Rotation& how = a.rotation;
  const float position = static_cast<float>(a.positions[token]);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    turns[i] = turn_by(position * frequencies.at[i]);
    if (how.inverse) turns[i].sine = -turns[i].sine;
  }
  __syncthreads();
  const auto row_of = [&](int64_t head) {
    return static_cast<const T*>(a.x.data) + (token * a.heads + head) * a.x.stride;
  };
  T* const y = static_cast<T*>(a.y) + token * a.heads * a.dim;
  for (int64_t i = threadIdx.x; i < a.heads * count; i += kThreads) {
    const int64_t head = i / count, pair = first + i % count;
    const int64_t at = how.offset + (how.half ? pair : 2 * pair), other = at + (how.half ? how.pairs : 1);
    const float u = widen(row_of(head)[at]), v = widen(row_of(head)[other]);
    const Turn t = turns[i % count];
    y[head * a.dim + at] = narrow<T>(u * t.cosine - v * t.sine);
    y[head * a.dim + other] = narrow<T>(v * t.cosine + u * t.sine);
  }
  if (first != 0) return;
  const int64_t rest = a.dim - 2 * how.pairs;  // channels that stay as they are
  for (int64_t i = threadIdx.x; i < a.heads * rest; i += kThreads) {
    const int64_t head = i / rest, at = i % rest < how.offset ? i % rest : i % rest + 2 * how.pairs;
    y[head * a.dim + at] = row_of(head)[at];
  }
}

}  // namespace

void run(const Args& a, void* stream) {
  for (int64_t first = 0; first < a.rotation.pairs; first += kPairs) {
    const int64_t count = min(kPairs, a.rotation.pairs - first);
    Frequencies frequencies = {};
    for (int64_t i = 0; i < count; ++i) frequencies.at[i] = a.rotation.frequency[first + i];
    with_float_type(a.dtype, [&](auto type) {
      launch(rotate<decltype(type)>, a.tokens, kThreads, 0, stream, a, frequencies, first, count);
    });
  }
}

}  // namespace sk::rope::cuda
