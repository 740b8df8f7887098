// A warp decodes a record.
#include "kernels/kv_read/op.h"
#include "kv/records.cuh"

namespace sk::kv_read::cuda {
namespace {
using namespace sk::kv::cuda;

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) read(const Args a, const kv::Layout f) {
  const int64_t row = thread_number() / kWarp;
  if (row >= a.rows) return;
  const int lane = threadIdx.x % kWarp;
  const kv::Slot slot = a.slots[row];
  T* const out = static_cast<T*>(a.out) + row * a.dim;
  if (slot < 0 || slot >= a.records) {
    for (int64_t i = lane; i < a.dim; i += kWarp) out[i] = T{};
  } else if (a.format != kv::Format::bf16) {
    const auto record = record_at(f, a.pool, slot);
    for (int64_t i = lane; i < a.dim; i += kWarp) out[i] = value_of<T>(f, record, i);
  } else {
    const uint8_t* const from = a.pool.data + slot * a.pool.page_stride;
    for (int64_t i = lane; i < a.dim; i += kWarp)
      out[i] = a.plain_dtype == Dtype::f32 ? convert<T>(reinterpret_cast<const float*>(from)[i])
                                           : convert<T>(reinterpret_cast<const bf16*>(from)[i]);
  }
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    launch(read<decltype(type)>, ceil_div(a.rows, kThreads / kWarp), kThreads, 0, stream, a,
           layout_or_none(a.format));
  });
}

}  // namespace sk::kv_read::cuda
