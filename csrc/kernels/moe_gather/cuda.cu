// A block copies a piece of a row, as wide words as all addresses allow.
#include "cuda/launch.cuh"
#include "kernels/moe_gather/op.h"

namespace sk::moe_gather::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128, kWordsAThread = 4;

// tokens: what is not below it counts as -1.
template <class Word>
__global__ void __launch_bounds__(kThreads) copy_rows(const Args a, int64_t pieces) {
  const int64_t row = blockIdx.x / pieces, words = a.bytes / sizeof(Word);
  const int32_t token = a.row_token[row];
  const bool copies = static_cast<uint32_t>(token) < static_cast<uint64_t>(a.tokens);
  const Word* from = reinterpret_cast<const Word*>(a.x.data + (copies ? token * a.x.stride : 0));
  Word* to = reinterpret_cast<Word*>(a.out + row * a.bytes);
  const int64_t first = blockIdx.x % pieces * kThreads * kWordsAThread + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kWordsAThread; ++i) {
    const int64_t at = first + i * kThreads;
    if (at < words) to[at] = copies ? from[at] : Word{};
  }
}

template <class Word>
void start(const Args& a, void* stream) {
  const int64_t pieces = ceil_div(a.bytes / static_cast<int64_t>(sizeof(Word)), kThreads * kWordsAThread);
  launch(copy_rows<Word>, a.rows * pieces, kThreads, 0, stream, a, pieces);
}

}  // namespace

void run(const Args& a, void* stream) {
  const auto fits = [&](int64_t size) {
    return is_aligned(a.x.data, size) && is_aligned(a.out, size) && a.x.stride % size == 0 && a.bytes % size == 0;
  };
  if (fits(16))
    start<uint4>(a, stream);
  else if (fits(4))
    start<uint32_t>(a, stream);
  else
    start<uint8_t>(a, stream);
}

}  // namespace sk::moe_gather::cuda
