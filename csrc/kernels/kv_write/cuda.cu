// A warp writes a record, unless a later token writes the same one.
#include "kernels/kv_write/op.h"
#include "kv/records.cuh"

namespace sk::kv_write::cuda {
namespace {
using namespace sk::kv::cuda;

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) write(const Args a, const kv::Layout f) {
  const int64_t token = thread_number() / kWarp;
  if (token >= a.tokens || !stays(a.slots, a.tokens, token, a.records)) return;
  insert(a.target, f, a.slots[token], static_cast<const T*>(a.values.data) + token * a.values.stride, a.dim);
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    launch(write<decltype(type)>, ceil_div(a.tokens, kThreads / kWarp), kThreads, 0, stream, a,
           layout_or_none(a.target.format));
  });
}

}  // namespace sk::kv_write::cuda
