// A block does a token: the cosines and sines of its position, in double as the CPU has them, then all its heads.
// Frequencies are arguments of the kernel, some at a time.
#include "cuda/elements.cuh"
#include "kernels/rope/op.h"
#include "rope/turn.cuh"

namespace sk::rope::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

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
  for_frequencies(a.rotation, [&](const Frequencies& frequencies, int64_t first, int64_t count) {
    with_float_type(a.dtype, [&](auto type) {
      launch(rotate<decltype(type)>, a.tokens, kThreads, 0, stream, a, frequencies, first, count);
    });
  });
}

}  // namespace sk::rope::cuda
