// The rows of each sequence are numbered by one block; then a warp does a row.
#include "kernels/kv_gather/op.h"
#include "kv/records.cuh"

namespace sk::kv_gather::cuda {
namespace {
using namespace sk::kv::cuda;

constexpr int kThreads = 128;

// How many tokens of a sequence there are to gather, none where the block table does not hold them.
__device__ int64_t length_of(const Args& a, int64_t b) {
  const int64_t first = a.starts == nullptr ? 0 : a.starts[b], n = a.on_device.lens[b];
  return first < 0 || n < 0 || first + n > a.max_pages * a.pool.page_size ? 0 : n;
}

__global__ void __launch_bounds__(kWarp) number_rows(const Args a) {
  int64_t before = 0;
  for (int64_t base = 0; base < a.sequences; base += kWarp) {
    const int64_t b = base + threadIdx.x;
    int64_t upto = b < a.sequences ? length_of(a, b) : 0;
#pragma unroll
    for (int by = 1; by < kWarp; by *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, upto, by);
      if (threadIdx.x >= by) upto += other;
    }
    if (b < a.sequences) a.on_device.offsets[b + 1] = before + upto;
    before += __shfl_sync(0xffffffffu, upto, kWarp - 1);
  }
  if (threadIdx.x == 0) a.on_device.offsets[0] = 0;
}

__device__ int64_t sequence_of(const Args& a, int64_t row) {  // the last that begins at the row or before, and has it
  const int64_t* const offsets = a.on_device.offsets;
  int64_t low = 0, high = a.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads) gather(const Args a, const kv::Layout f) {
  const int64_t row = thread_number() / kWarp;
  if (row >= a.rows) return;
  const int lane = threadIdx.x % kWarp;
  uint8_t* const to = a.out + row * a.row_bytes;
  uint8_t* const scale = a.scale == nullptr ? nullptr : a.scale + row * a.scale_bytes;
  int64_t page = -1, place = 0;
  if (a.sequences > 0 && row < a.on_device.offsets[a.sequences]) {
    const int64_t b = sequence_of(a, row);
    const int64_t token = (a.starts == nullptr ? 0 : a.starts[b]) + row - a.on_device.offsets[b];
    page = a.block_table[b * a.max_pages + token / a.pool.page_size];
    place = token % a.pool.page_size;
  }
  if (page < 0 || page >= a.on_device.pages) {
    for (int64_t i = lane; i < a.row_bytes; i += kWarp) to[i] = 0;
    for (int64_t i = lane; scale != nullptr && i < a.scale_bytes; i += kWarp) scale[i] = 0;
  } else if (a.format == kv::Format::bf16) {
    copy_bytes(a.pool.data + page * a.pool.page_stride + place * a.row_stride, to, a.row_bytes);
  } else {
    const auto record = record_at(f, a.pool, page, place);
    if (scale == nullptr) {
      for (int64_t i = lane; i < f.dim; i += kWarp) reinterpret_cast<bf16*>(to)[i] = value_of<bf16>(f, record, i);
    } else {
      copy_bytes(record.data, to, a.row_bytes);
      copy_bytes(record.scales, scale, a.scale_bytes);
    }
  }
}

}  // namespace

void run(const Args& a, void* stream) {
  launch(number_rows, 1, kWarp, 0, stream, a);
  launch(gather, ceil_div(a.rows, kThreads / kWarp), kThreads, 0, stream, a, layout_or_none(a.format));
}

}  // namespace sk::kv_gather::cuda
