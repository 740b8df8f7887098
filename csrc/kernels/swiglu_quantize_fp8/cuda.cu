// A warp does a group. What it activates stays in registers where the group has at most 128 values, and is computed
// again for the codes where it has more.
#include "cuda/codes.cuh"
#include "cuda/math.cuh"
#include "kernels/swiglu_quantize_fp8/op.h"

namespace sk::swiglu_quantize_fp8::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256, kHeld = 4;  // values a lane

template <class T>
__global__ void __launch_bounds__(kThreads) activate(const Args a, int64_t groups) {
  const int64_t i = thread_number() / kWarp;
  if (i >= a.rows * groups) return;
  const int64_t row = i / groups, start = (i - row * groups) * a.group, size = min(a.dim - start, a.group);
  const T* const gate = static_cast<const T*>(a.gate_up.data) + row * a.gate_up.stride + start;
  const float weight = a.weight == nullptr ? 1.0f : a.weight[row];
  uint8_t* const q = a.q + row * a.dim + start;
  const auto at = [&](int64_t k) { return gated_silu(widen(gate[k]), widen(gate[a.dim + k]), a.limit) * weight; };
  if (size > kHeld * kWarp) return quantize_group(E4m3{}, size, a.floor, a.scale_dtype, q, a.scale, i, at);

  const int lane = threadIdx.x % kWarp;
  float x[kHeld] = {}, most = 0.0f;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (h * kWarp + lane < size) x[h] = at(h * kWarp + lane);
    most = fmaxf(most, fabsf(x[h]));
  }
  const Scale s = scale_for(largest_of<kWarp>(most), a.floor, E4m3::kLargest, a.scale_dtype != Dtype::f32);
#pragma unroll
  for (int h = 0; h < kHeld; ++h)
    if (h * kWarp + lane < size) q[h * kWarp + lane] = static_cast<uint8_t>(code_of(E4m3{}, x[h], s.inverse));
  if (lane == 0) store_scale(a.scale, a.scale_dtype, i, s.scale);
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t groups = ceil_div(a.dim, a.group);
  with_float_type(a.dtype, [&](auto type) {
    launch(activate<decltype(type)>, ceil_div(a.rows * groups, kThreads / kWarp), kThreads, 0, stream, a, groups);
  });
}

}  // namespace sk::swiglu_quantize_fp8::cuda
