// A warp makes a record, unless a later token writes the same one: the row lies in shared memory from step to step.
#include "cuda/sums.cuh"
#include "kernels/norm_rope_kv_write/op.h"
#include "kv/records.cuh"
#include "rope/turn.cuh"

namespace sk::norm_rope_kv_write::cuda {
namespace {
using namespace sk::kv::cuda;
using namespace sk::rope::cuda;

__global__ void __launch_bounds__(kPairs)
    keep(const Frequencies frequencies, int64_t first, int64_t count, float* to) {
  if (threadIdx.x < count) to[first + threadIdx.x] = frequencies.at[threadIdx.x];
}

template <class T>
__global__ void __launch_bounds__(kWarp) write(const Args a, const kv::Layout f, const float* frequencies) {
  extern __shared__ __align__(16) uint8_t memory[];
  T* const row = reinterpret_cast<T*>(memory);
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x;
  if (!stays(a.slots, a.tokens, token, a.records)) return;
  const T* const x = static_cast<const T*>(a.values.data) + token * a.values.stride;
  if (a.width > 0) {
    const float squares = sum_over(a.width, [&](float total, int64_t i) {
      const float v = widen(x[i]);
      return fmaf(v, v, total);
    });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(a.width) + a.eps);
    for (int64_t i = lane; i < a.width; i += kWarp)
      row[i] = narrow<T>(widen(x[i]) * scale * value_at(a.weight, a.weight_dtype, i));
  }
  for (int64_t i = a.width + lane; i < a.dim; i += kWarp) row[i] = x[i];
  __syncwarp();
  const rope::Rotation& how = a.rotation;
  for (int64_t pair = lane; pair < how.pairs; pair += kWarp) {
    const Turn t = turn_by(static_cast<float>(a.positions[token]) * frequencies[pair]);
    const int64_t at = how.offset + (how.half ? pair : 2 * pair), other = at + (how.half ? how.pairs : 1);
    const float u = widen(row[at]), v = widen(row[other]);
    row[at] = narrow<T>(u * t.cosine - v * t.sine);
    row[other] = narrow<T>(v * t.cosine + u * t.sine);
  }
  __syncwarp();
  insert(a.target, f, a.slots[token], row, a.dim);
}

}  // namespace

void run(const Args& a, void* stream) {
  for_frequencies(a.rotation, [&](const Frequencies& frequencies, int64_t first, int64_t count) {
    launch(keep, 1, kPairs, 0, stream, frequencies, first, count, a.scratch);
  });
  with_float_type(a.dtype, [&](auto type) {
    launch(write<decltype(type)>, a.tokens, kWarp, a.dim * size_of(a.dtype), stream, a,
           layout_or_none(a.target.format), a.scratch);
  });
}

}  // namespace sk::norm_rope_kv_write::cuda
