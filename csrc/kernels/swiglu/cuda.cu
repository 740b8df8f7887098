// A thread does a few neighbouring columns.
#include "cuda/math.cuh"
#include "kernels/swiglu/op.h"

namespace sk::swiglu::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

template <int kColumns, class T>
__global__ void __launch_bounds__(kThreads) activate(const Args a, int64_t pieces) {
  const int64_t row = blockIdx.x / pieces;
  const int64_t column = (blockIdx.x % pieces * kThreads + threadIdx.x) * kColumns;
  if (column >= a.dim) return;
  const T* const gates = static_cast<const T*>(a.gate_up.data) + row * a.gate_up.stride + column;
  const float weight = a.weight == nullptr ? 1.0f : a.weight[row];
  float gate[kColumns], up[kColumns];
  load(gates, gate);
  load(gates + a.dim, up);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) gate[i] = gated_silu(gate[i], up[i], a.limit) * weight;
  store(static_cast<T*>(a.y) + row * a.dim + column, gate);
}

template <int kColumns, class T>
void start(const Args& a, void* stream) {
  const int64_t pieces = ceil_div(a.dim, kThreads * kColumns);
  launch(activate<kColumns, T>, a.rows * pieces, kThreads, 0, stream, a, pieces);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const bool aligned = a.dim % 8 == 0 && is_aligned(a.gate_up.data, 16) && is_aligned(a.y, 16) &&
                         a.gate_up.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
    aligned ? start<8, T>(a, stream) : start<1, T>(a, stream);
  });
}

}  // namespace sk::swiglu::cuda
