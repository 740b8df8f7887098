// A warp does a group.
#include "cuda/codes.cuh"
#include "kernels/quantize_fp4/op.h"

namespace sk::quantize_fp4::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) quantize(const Args a, int64_t groups) {
  const int64_t i = thread_number() / kWarp;
  if (i >= a.rows * groups) return;
  const int64_t row = i / groups, start = (i - row * groups) * a.group;
  const T* x = static_cast<const T*>(a.x.data) + row * a.x.stride + start;
  quantize_group(E2m1{}, min(a.dim - start, a.group), a.floor, Dtype::e8m0, a.q + (row * a.dim + start) / 2, a.scale,
                 i, [&](int64_t k) { return widen(x[k]); });
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t groups = ceil_div(a.dim, a.group);
  with_float_type(a.dtype, [&](auto type) {
    launch(quantize<decltype(type)>, ceil_div(a.rows * groups, kThreads / kWarp), kThreads, 0, stream, a, groups);
  });
}

}  // namespace sk::quantize_fp4::cuda
