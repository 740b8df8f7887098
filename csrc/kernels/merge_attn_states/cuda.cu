// A warp merges a row.
#include "cuda/math.cuh"
#include "kernels/merge_attn_states/op.h"

namespace sk::merge_attn_states::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

// The weight of the side with the larger sum, and ln of both sums together.
struct Balance { float larger, smaller, lse; };
__device__ Balance balance(float larger, float smaller) {
  const float ratio = exp_of(smaller - larger);  // at most 1; NaN where a sum is
  const float weight = 1.0f / (1.0f + ratio);
  return {weight, weight * ratio, larger + (ratio != ratio ? ratio : log1p_of(ratio))};
}

template <class A, class B>
__global__ void __launch_bounds__(kThreads) merge(const Args p) {
  const int64_t row = thread_number() / kWarp;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % kWarp;
  const A* const a = static_cast<const A*>(p.a.data) + row * p.a.stride;
  const B* const b = static_cast<const B*>(p.b.data) + row * p.b.stride;
  A* const out = static_cast<A*>(p.out) + row * p.dim;
  const float lse_a = p.lse_a[row], lse_b = p.lse_b[row];
  const bool no_a = fabsf(lse_a) == INFINITY, no_b = fabsf(lse_b) == INFINITY;
  if (no_a || no_b) {  // what an empty side holds is not read
    for (int64_t i = lane; i < p.dim; i += kWarp)
      out[i] = narrow<A>(!no_a ? widen(a[i]) : !no_b ? widen(b[i]) : 0.0f);
    if (lane == 0) p.lse[row] = no_a && no_b ? INFINITY : no_a ? lse_b : lse_a;
    return;
  }
  const bool swapped = lse_a < lse_b;
  const Balance w = swapped ? balance(lse_b, lse_a) : balance(lse_a, lse_b);
  const float weight_a = swapped ? w.smaller : w.larger, weight_b = swapped ? w.larger : w.smaller;
  for (int64_t i = lane; i < p.dim; i += kWarp)
    out[i] = narrow<A>(fmaf(widen(a[i]), weight_a, widen(b[i]) * weight_b));
  if (lane == 0) p.lse[row] = w.lse;
}

}  // namespace

void run(const Args& p, void* stream) {
  with_float_type(p.a_dtype, [&](auto a) {
    with_float_type(p.b_dtype, [&](auto b) {
      launch(merge<decltype(a), decltype(b)>, ceil_div(p.rows, kThreads / kWarp), kThreads, 0, stream, p);
    });
  });
}

}  // namespace sk::merge_attn_states::cuda
