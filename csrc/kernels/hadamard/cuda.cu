// A block transforms a row in shared memory, the lowest bit of the index first, as the CPU does. A row that does not
// fit is transformed in parts, whose sums and differences are then taken in global memory.
#include "cuda/elements.cuh"
#include "kernels/hadamard/op.h"

namespace sk::hadamard::cuda {
namespace {
using namespace sk::cuda;

// Transforms `size` values of every `dim`, and scales them.
template <class T, class R>
__global__ void transform(const T* x, int64_t stride, int64_t dim, int64_t size, float scale, R* y) {
  extern __shared__ __align__(16) float v[];
  const int64_t parts = dim / size, row = blockIdx.x / parts, first = blockIdx.x % parts * size;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) v[i] = widen(x[row * stride + first + i]);
  for (int64_t half = 1; half < size; half *= 2) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
      const int64_t at = i / half * 2 * half + i % half;
      const float a = v[at], b = v[at + half];
      v[at] = a + b;
      v[at + half] = a - b;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) y[row * dim + first + i] = narrow<R>(v[i] * scale);
}

__global__ void add_halves(float* v, int64_t pairs, int64_t half) {
  const int64_t i = thread_number();
  if (i >= pairs) return;
  const int64_t at = i / half * 2 * half + i % half;
  const float a = v[at], b = v[at + half];
  v[at] = a + b;
  v[at + half] = a - b;
}

template <class T>
__global__ void finish(const float* v, int64_t size, float scale, T* y) {
  const int64_t i = thread_number();
  if (i < size) y[i] = narrow<T>(v[i] * scale);
}

}  // namespace

void run(const Args& a, void* stream) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.dim));
  const int64_t size = min(a.dim, kInShared), blocks = a.rows * (a.dim / size), all = a.rows * a.dim;
  const int threads = static_cast<int>(min(256, max(32, size / 2)));
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const T* x = static_cast<const T*>(a.x.data);
    T* y = static_cast<T*>(a.y);
    if (size == a.dim)
      return launch(transform<T, T>, blocks, threads, size * 4, stream, x, a.x.stride, a.dim, size, scale, y);
    launch(transform<T, float>, blocks, threads, size * 4, stream, x, a.x.stride, a.dim, size, 1.0f, a.scratch);
    for (int64_t half = size; half < a.dim; half *= 2)
      launch(add_halves, ceil_div(all / 2, 256), 256, 0, stream, a.scratch, all / 2, half);
    launch(finish<T>, ceil_div(all, 256), 256, 0, stream, a.scratch, all, scale, y);
  });
}

}  // namespace sk::hadamard::cuda
