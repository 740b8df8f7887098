// A thread adds up a few neighbouring columns of a token, in slot order as the CPU does: the same bits.
#include "cuda/elements.cuh"
#include "kernels/moe_combine/op.h"

namespace sk::moe_combine::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

template <int kColumns, class T, class Out>
__global__ void __launch_bounds__(kThreads) add_slots(const Args a, int64_t pieces) {
  const int64_t token = blockIdx.x / pieces;
  const int64_t column = (blockIdx.x % pieces * kThreads + threadIdx.x) * kColumns;
  if (column >= a.dim) return;
  float sum[kColumns] = {};
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t row = a.slot_row[token * a.top_k + j];
    if (static_cast<uint32_t>(row) >= static_cast<uint64_t>(a.rows)) continue;
    const float w = a.weights.data == nullptr ? 1.0f : a.weights.data[token * a.weights.stride + j];
    float y[kColumns];
    load(static_cast<const T*>(a.y.data) + row * a.y.stride + column, y);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[i] = fmaf(w, y[i], sum[i]);
  }
  store(static_cast<Out*>(a.out) + token * a.dim + column, sum);
}

template <int kColumns, class T, class Out>
void start(const Args& a, void* stream) {
  const int64_t pieces = ceil_div(a.dim, kThreads * kColumns);
  launch(add_slots<kColumns, T, Out>, a.tokens * pieces, kThreads, 0, stream, a, pieces);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    with_float_type(a.out_dtype, [&](auto out_type) {
      using T = decltype(type);
      using Out = decltype(out_type);
      const bool aligned = a.dim % 8 == 0 && is_aligned(a.y.data, 16) && is_aligned(a.out, 16) &&
                           a.y.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
      aligned ? start<8, T, Out>(a, stream) : start<1, T, Out>(a, stream);
    });
  });
}

}  // namespace sk::moe_combine::cuda
