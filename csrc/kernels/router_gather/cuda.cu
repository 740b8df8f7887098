// Half a warp does a logit, in the order of the CPU's sums (gate.h); a warp does a group of a row.
#include "cuda/codes.cuh"
#include "cuda/rows.cuh"
#include "cuda/sums.cuh"
#include "kernels/router_gather/op.h"

namespace sk::router_gather {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128, kHalf = kWarp / 2;

__global__ void __launch_bounds__(kThreads) multiply(const gate::Args a) {
  const int64_t i = thread_number() / kHalf;
  const bool works = i < a.tokens * a.experts;
  const int64_t token = works ? i / a.experts : 0, expert = works ? i % a.experts : 0;
  const bool pairs = a.dtype == Dtype::bf16 && a.router_dtype == Dtype::bf16;
  const int lane = threadIdx.x % kHalf;
  float sum = 0.0f;
  const auto add = [&](int64_t k) {
    const bool there = works && k < a.dim;
    const float x = there ? value_at(a.x.data, a.dtype, token * a.x.stride + k) : 0.0f;
    sum = fmaf(x, there ? value_at(a.router.data, a.router_dtype, expert * a.router.stride + k) : 0.0f, sum);
  };
  for (int64_t k = 0; pairs && k < a.dim; k += 2 * kHalf) {
    add(k + 2 * lane + 1);
    add(k + 2 * lane);
  }
  for (int64_t k = 0; !pairs && k < a.dim; k += kHalf) add(k + lane);
  sum = sum_half(sum);
  if (works && lane == 0) a.logits[i] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) quantize(const place::Args a, int64_t groups) {
  constexpr float kAmaxFloor = 1e-4f;  // that of quantize_fp8
  const int64_t i = thread_number() / kWarp, row = i / groups, start = i % groups * a.group;
  if (row >= a.row_count) return;
  const int64_t token = a.row_token[row], size = min(a.dim - start, a.group);
  uint8_t* const codes = a.rows + row * a.dim + start;
  if (token >= 0) {
    const T* const x = static_cast<const T*>(a.x.data) + token * a.x.stride + start;
    return quantize_group(E4m3{}, size, kAmaxFloor, a.scale_dtype, codes, a.scales, i,
                          [&](int64_t k) { return widen(x[k]); });
  }
  for (int64_t k = threadIdx.x % kWarp; k < size; k += kWarp) codes[k] = 0;
  if (threadIdx.x % kWarp == 0) store_scale(a.scales, a.scale_dtype, i, 0.0f);
}

}  // namespace

void gate::cuda::run(const Args& a, void* stream) {
  launch(multiply, ceil_div(a.tokens * a.experts, kThreads / kHalf), kThreads, 0, stream, a);
}

void place::cuda::run(const Args& a, void* stream) {
  const int64_t size = size_of(a.dtype), groups = ceil_div(a.dim, a.group);
  if (!a.quantize)
    return copy_rows({{static_cast<const uint8_t*>(a.x.data), a.x.stride * size},
                      a.tokens,
                      a.row_token,
                      a.rows,
                      a.row_count,
                      a.dim * size},
                     stream);
  with_float_type(a.dtype, [&](auto type) {
    launch(quantize<decltype(type)>, ceil_div(a.row_count * groups, kThreads / kWarp), kThreads, 0, stream, a,
           groups);
  });
}

}  // namespace sk::router_gather
