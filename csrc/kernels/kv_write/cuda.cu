// A warp writes a record, unless a later token writes the same one.
#include "kernels/kv_write/op.h"
#include "kv/records.cuh"

namespace sk::kv_write::cuda {
namespace {
using namespace sk::kv::cuda;

constexpr int kThreads = 128;

__device__ bool is_written_later(const Args& a, int64_t token, kv::Slot slot) {
  bool later = false;
  for (int64_t t = token + 1 + threadIdx.x % kWarp; t < a.tokens; t += kWarp) later = later || a.slots[t] == slot;
  return __any_sync(0xffffffffu, later);
}

template <class T>
__global__ void __launch_bounds__(kThreads) write(const Args a, const kv::Layout f) {
  const int64_t token = thread_number() / kWarp;
  if (token >= a.tokens) return;
  const kv::Slot slot = a.slots[token];
  if (slot < 0 || slot >= a.records || is_written_later(a, token, slot)) return;
  const T* const x = static_cast<const T*>(a.values.data) + token * a.values.stride;
  const kv::Target& to = a.target;
  if (to.format != kv::Format::bf16) {
    encode_record(f, {to.floor, to.pow2}, record_at(f, to.pool, slot), [&](int64_t i) { return convert<bf16>(x[i]); });
    return;
  }
  uint8_t* const row = to.pool.data + slot * to.pool.page_stride;
  for (int64_t i = threadIdx.x % kWarp; i < a.dim; i += kWarp)
    if (to.plain_dtype == Dtype::f32)
      reinterpret_cast<float*>(row)[i] = convert<float>(x[i]);
    else
      reinterpret_cast<bf16*>(row)[i] = convert<bf16>(x[i]);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    launch(write<decltype(type)>, ceil_div(a.tokens, kThreads / kWarp), kThreads, 0, stream, a,
           layout_or_none(a.target.format));
  });
}

}  // namespace sk::kv_write::cuda
