// Rows that are named, copied: a block does a piece of one, in words as wide as all addresses allow.
#pragma once
#include "cuda/launch.cuh"

namespace sk::cuda {

struct NamedRows {
  Rows<const uint8_t> from;  // [count, bytes]; the stride in bytes
  int64_t count;
  const int32_t* names;      // [rows]; what is not below count names nothing: zeros
  uint8_t* out;              // [rows, bytes]
  int64_t rows, bytes;
};

constexpr int kCopyThreads = 128, kWordsAThread = 4;

template <class Word>
__global__ void __launch_bounds__(kCopyThreads) copy_words(const NamedRows a, int64_t pieces) {
  const int64_t row = blockIdx.x / pieces, words = a.bytes / sizeof(Word);
  const int32_t name = a.names[row];
  const bool copies = static_cast<uint32_t>(name) < static_cast<uint64_t>(a.count);
  const Word* from = reinterpret_cast<const Word*>(a.from.data + (copies ? name * a.from.stride : 0));
  Word* to = reinterpret_cast<Word*>(a.out + row * a.bytes);
  const int64_t first = blockIdx.x % pieces * kCopyThreads * kWordsAThread + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kWordsAThread; ++i) {
    const int64_t at = first + i * kCopyThreads;
    if (at < words) to[at] = copies ? from[at] : Word{};
  }
}

inline void copy_rows(const NamedRows& a, void* stream) {
  const auto start = [&](auto word) {
    const int64_t words = a.bytes / static_cast<int64_t>(sizeof word);
    const int64_t pieces = ceil_div(words, kCopyThreads * kWordsAThread);
    launch(copy_words<decltype(word)>, a.rows * pieces, kCopyThreads, 0, stream, a, pieces);
  };
  const auto fits = [&](int64_t size) {
    return is_aligned(a.from.data, size) && is_aligned(a.out, size) && a.from.stride % size == 0 &&
           a.bytes % size == 0;
  };
  if (fits(16))
    start(uint4{});
  else if (fits(4))
    start(uint32_t{});
  else
    start(uint8_t{});
}

}  // namespace sk::cuda
