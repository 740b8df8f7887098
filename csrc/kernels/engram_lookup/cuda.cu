// Rows are copied as they are, or a thread decodes a value.
#include "cuda/codes.cuh"
#include "cuda/rows.cuh"
#include "kernels/engram_lookup/op.h"

namespace sk::engram_lookup::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) decode(const Args a) {
  const int64_t i = thread_number();
  if (i >= a.count * a.dim) return;
  const int64_t row = i / a.dim, k = i - row * a.dim, entry = a.rows[row];
  float value = 0.0f;
  if (entry >= 0 && entry < a.entries) {
    const float scale = scale_at(a.scale.data, Dtype::e8m0, entry * a.scale.stride + k / kGroup);
    value = e4m3_value(a.table.data[entry * a.table.stride + k]) * scale;
  }
  reinterpret_cast<bf16*>(a.out)[i] = narrow<bf16>(value);
}

}  // namespace

void run(const Args& a, void* stream) {
  if (a.scale.data == nullptr) return copy_rows({a.table, a.entries, a.rows, a.out, a.count, a.bytes}, stream);
  launch(decode, ceil_div(a.count * a.dim, kThreads), kThreads, 0, stream, a);
}

}  // namespace sk::engram_lookup::cuda
