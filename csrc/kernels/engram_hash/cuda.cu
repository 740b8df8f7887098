// A thread finds a row. Where primes and offsets number none: -1.
#include "cuda/launch.cuh"
#include "kernels/engram_hash/op.h"

namespace sk::engram_hash::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) hash(const Args a) {
  const int64_t columns = (a.longest - 1) * a.heads, i = thread_number();
  if (i >= a.layers * a.tokens * columns) return;
  const int64_t column = i % columns, token = i / columns % a.tokens, layer = i / columns / a.tokens;
  const int32_t* const ids = a.ids + token * a.longest;
  const int64_t* const multipliers = a.multipliers + layer * a.longest;
  uint64_t h = 0;
  for (int64_t k = 0; k <= column / a.heads + 1; ++k)  // products wrap around
    h ^= static_cast<uint64_t>(static_cast<int64_t>(ids[k])) * static_cast<uint64_t>(multipliers[k]);
  const int64_t prime = a.primes[layer * columns + column], offset = a.offsets[layer * columns + column];
  int64_t row = -1;
  if (prime > 0 && offset >= 0) {
    const int64_t remainder = static_cast<int64_t>(h) % prime;
    row = remainder + (remainder < 0 ? prime : 0) + offset;
  }
  a.rows[i] = row > INT32_MAX ? -1 : static_cast<int32_t>(row);
}

}  // namespace

void run(const Args& a, void* stream) {
  launch(hash, ceil_div(a.layers * a.tokens * (a.longest - 1) * a.heads, kThreads), kThreads, 0, stream, a);
}

}  // namespace sk::engram_hash::cuda
