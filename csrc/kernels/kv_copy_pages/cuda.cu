// Nobody on the host knows in which order pages must be copied: within a pool they all are read before the first of
// them is overwritten.
#include "cuda/launch.cuh"
#include "kernels/kv_copy_pages/op.h"

namespace sk::kv_copy_pages::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

// Row i of all pages that are copied: where it is, and where its copy waits.
struct Step { bool read, write; };

template <class Chunk>
__global__ void __launch_bounds__(kThreads) copy(const Args a, Step step) {
  const DevicePairs& p = a.on_device;
  const int64_t chunks = a.row_bytes / static_cast<int64_t>(sizeof(Chunk)), row = blockIdx.x;
  const int64_t pair = row / a.rows, line = row % a.rows;
  const int64_t from = p.pairs[2 * pair], to = p.pairs[2 * pair + 1];
  if (from < 0 || from >= p.src_pages || to < 0 || to >= p.dst_pages) return;
  const auto* source = reinterpret_cast<const Chunk*>(
      step.read ? a.src.data + from * a.src.page_stride + line * a.src.row_stride : a.spare + row * a.row_bytes);
  auto* target = reinterpret_cast<Chunk*>(step.write ? a.dst.data + to * a.dst.page_stride + line * a.dst.row_stride
                                                     : a.spare + row * a.row_bytes);
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) target[i] = source[i];
}

template <class Chunk>
void start(const Args& a, void* stream) {
  const int64_t rows = a.on_device.count * a.rows;
  if (a.spare == nullptr) return launch(copy<Chunk>, rows, kThreads, 0, stream, a, Step{true, true});
  launch(copy<Chunk>, rows, kThreads, 0, stream, a, Step{true, false});
  launch(copy<Chunk>, rows, kThreads, 0, stream, a, Step{false, true});
}

}  // namespace

void run(const Args& a, void* stream) {
  bool aligned = a.row_bytes % 16 == 0;
  for (const int64_t n : {a.src.page_stride, a.src.row_stride, a.dst.page_stride, a.dst.row_stride})
    aligned = aligned && n % 16 == 0;
  for (const void* p : {static_cast<const void*>(a.src.data), static_cast<const void*>(a.dst.data)})
    aligned = aligned && is_aligned(p, 16);
  aligned ? start<uint4>(a, stream) : start<uint8_t>(a, stream);
}

}  // namespace sk::kv_copy_pages::cuda
