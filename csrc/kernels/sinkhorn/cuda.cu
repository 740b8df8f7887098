// A thread balances a matrix.
#include "hyper/mix.cuh"
#include "kernels/sinkhorn/op.h"

namespace sk::sinkhorn::cuda {
namespace {
using namespace sk::hyper::cuda;

constexpr int kThreads = 64;

template <int kN>
__global__ void __launch_bounds__(kThreads) normalise(const Args a) {
  const int64_t matrix = thread_number();
  if (matrix >= a.matrices) return;
  const int n = kN > 0 ? kN : static_cast<int>(a.n);
  float m[kN > 0 ? kN * kN : hyper::kMaxStreams * hyper::kMaxStreams];
  for (int r = 0; r < n; ++r)
    for (int i = 0; i < n; ++i) m[r * n + i] = a.logits.data[(matrix * n + r) * a.logits.stride + i];
  balance(m, n, a.iters, a.eps);
  for (int i = 0; i < n * n; ++i) a.out[matrix * n * n + i] = narrow<float>(m[i]);
}

}  // namespace

void run(const Args& a, void* stream) {
  launch(a.n == 4 ? normalise<4> : normalise<0>, ceil_div(a.matrices, kThreads), kThreads, 0, stream, a);
}

}  // namespace sk::sinkhorn::cuda
