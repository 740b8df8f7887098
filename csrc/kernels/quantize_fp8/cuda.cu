// Some lanes of a warp share a group: they find its largest magnitude together, then each writes the codes of what it
// has read. Groups of 128 whose rows are aligned are held in registers, 8 values a lane.
#include "cuda/codes.cuh"
#include "kernels/quantize_fp8/op.h"

namespace sk::quantize_fp8::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

struct Place { int64_t row, start, size; };
__device__ Place place_of(const Args& a, int64_t groups, int64_t i) {
  const int64_t row = i / groups, start = (i - row * groups) * a.group;
  return {row, start, min(a.dim - start, a.group)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) groups_of_128(const Args a, int64_t groups) {
  constexpr int kValues = 8, kLanes = 16;
  const int64_t i = thread_number() / kLanes;
  const int first = threadIdx.x % kLanes * kValues;
  const Place p = place_of(a, groups, i);
  const bool has = i < a.rows * groups && first < p.size;
  float x[kValues] = {};
  if (has) load(static_cast<const T*>(a.x.data) + p.row * a.x.stride + p.start + first, x);
  float most = 0.0f;
#pragma unroll
  for (const float v : x) most = fmaxf(most, fabsf(v));
  const Scale s = scale_for(largest_of<kLanes>(most), a.floor, 448.0f, a.scale_dtype != Dtype::f32);
  if (!has) return;
  uint32_t codes[2] = {};
#pragma unroll
  for (int k = 0; k < kValues; ++k) codes[k / 4] |= code_of(E4m3{}, x[k], s.inverse) << 8 * (k % 4);
  *reinterpret_cast<uint2*>(a.q + p.row * a.dim + p.start + first) = make_uint2(codes[0], codes[1]);
  if (first == 0) store_scale(a.scale, a.scale_dtype, i, s.scale);
}

template <class T>
__global__ void __launch_bounds__(kThreads) any_groups(const Args a, int64_t groups) {
  const int64_t i = thread_number() / kWarp;
  if (i >= a.rows * groups) return;
  const Place p = place_of(a, groups, i);
  const T* x = static_cast<const T*>(a.x.data) + p.row * a.x.stride + p.start;
  quantize_group(E4m3{}, p.size, a.floor, a.scale_dtype, a.q + p.row * a.dim + p.start, a.scale, i,
                 [&](int64_t k) { return widen(x[k]); });
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t groups = ceil_div(a.dim, a.group), all = a.rows * groups;
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const bool aligned = a.group == 128 && a.dim % 8 == 0 && is_aligned(a.x.data, 16) && is_aligned(a.q, 8) &&
                         (a.x.stride * static_cast<int64_t>(sizeof(T))) % 16 == 0;
    if (aligned)
      launch(groups_of_128<T>, ceil_div(all, kThreads / 16), kThreads, 0, stream, a, groups);
    else
      launch(any_groups<T>, ceil_div(all, kThreads / kWarp), kThreads, 0, stream, a, groups);
  });
}

}  // namespace sk::quantize_fp8::cuda
