// A block does a row.
#include "indexer/select.cuh"
#include "kernels/topk_per_row/op.h"

namespace sk::topk_per_row::cuda {
namespace {
using namespace sk::indexer::cuda;

template <class T>
__global__ void __launch_bounds__(kSelectThreads) choose(const Args a) {
  __shared__ SelectMemory memory;
  const int64_t row = blockIdx.x;
  const indexer::Range range = a.bounds.range_of(row, a.cols);
  const T* const x = static_cast<const T*>(a.scores.data) + row * a.scores.stride + range.first;
  int32_t* const out = a.out + row * a.k;
  const int64_t taken = take_best(
      memory, range.size(), min(a.k, a.cols), [&](int64_t i) { return rank_of(widen(x[i])); },
      [&](int64_t place, int64_t i) { out[place] = static_cast<int32_t>(range.first + i); });
  for (int64_t i = taken + threadIdx.x; i < a.k; i += kSelectThreads) out[i] = -1;
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) { launch(choose<decltype(type)>, a.rows, kSelectThreads, 0, stream, a); });
}

}  // namespace sk::topk_per_row::cuda
