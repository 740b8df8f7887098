// A thread decodes two neighbouring values of a row, which FP4 keeps in a byte.
#include "cuda/codes.cuh"
#include "kernels/dequantize/op.h"

namespace sk::dequantize::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) decode(const Args a, int64_t down) {
  const int64_t pairs = ceil_div(a.cols, 2), i = thread_number();
  if (i >= a.matrices * a.rows * pairs) return;
  const int64_t r = i / pairs, first = (i - r * pairs) * 2;
  const int64_t scale_row = r / a.rows * down + r % a.rows / a.block_rows;
#pragma unroll
  for (int64_t k = first; k < first + 2; ++k) {
    if (k >= a.cols) return;
    const float scale = scale_at(a.scale.data, a.scale_dtype, scale_row * a.scale.stride + k / a.block_cols);
    const uint8_t* q = a.q.data + r * a.q.stride;
    const float value = a.fp4 ? e2m1_value(q[k / 2] >> k % 2 * 4) : e4m3_value(q[k]);
    static_cast<T*>(a.x)[r * a.cols + k] = narrow<T>(value * scale);
  }
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t pairs = a.matrices * a.rows * ceil_div(a.cols, 2);
  with_float_type(a.dtype, [&](auto type) {
    launch(decode<decltype(type)>, ceil_div(pairs, kThreads), kThreads, 0, stream, a, ceil_div(a.rows, a.block_rows));
  });
}

}  // namespace sk::dequantize::cuda
