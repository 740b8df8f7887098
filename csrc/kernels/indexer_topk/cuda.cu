// Scores of some queries at a time, as the scratch has room for; then a block chooses for a query.
#include "indexer/score.cuh"
#include "indexer/select.cuh"
#include "kernels/indexer_topk/op.h"

namespace sk::indexer_topk::cuda {
namespace {
using namespace sk::indexer::cuda;

// scores [rows, cols], ranks and marks of blocks [rows, 2, blocks].
__global__ void __launch_bounds__(kSelectThreads)
    choose(const Args a, int64_t first_row, const float* all_scores, uint32_t* all_blocks, int64_t blocks) {
  __shared__ SelectMemory memory;
  const int64_t row = first_row + blockIdx.x, size = a.choice.block;
  const indexer::Problem& p = a.problem;
  const indexer::Range seen = p.on_device.range_of(row, p.rows_a_sequence);
  const float* const scores = all_scores + blockIdx.x * p.on_device.cols;
  uint32_t *const ranks = all_blocks + 2 * blockIdx.x * blocks, *const marks = ranks + blocks;
  if (size > 0) {
    for (int64_t b = threadIdx.x; b < blocks; b += kSelectThreads) {
      uint32_t best = 0;
      for (int64_t i = max(b * size, seen.first); i < min((b + 1) * size, seen.last); ++i)
        best = max(best, rank_of(scores[i]));
      ranks[b] = best;
      marks[b] = 0;
    }
    __syncthreads();
    take_best(
        memory, blocks, a.choice.blocks, [&](int64_t b) { return ranks[b]; },
        [&](int64_t, int64_t b) { marks[b] = 1; });
    __syncthreads();
  }
  const auto name_of = [&](int64_t key) {
    if (!a.physical) return static_cast<int32_t>(key);
    const indexer::Keys& k = p.keys;
    const int32_t page = k.table[row / p.rows_a_sequence * k.table_stride + key / k.page_size];
    return static_cast<int32_t>(page * k.page_size + key % k.page_size);
  };
  int32_t* const out = a.out + row * a.columns;
  const int64_t taken = take_best(
      memory, seen.size(), a.choice.k,
      [&](int64_t i) {
        const int64_t key = seen.first + i;
        return size > 0 && marks[key / size] == 0 ? 0u : rank_of(scores[key]);
      },
      [&](int64_t place, int64_t i) { out[place] = name_of(seen.first + i); });
  for (int64_t i = taken + threadIdx.x; i < a.columns; i += kSelectThreads) out[i] = -1;
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t rows = a.problem.queries.rows, cols = a.problem.on_device.cols, blocks = a.on_device.blocks;
  for (int64_t first = 0; first < rows; first += a.on_device.rows) {
    const int64_t n = min(a.on_device.rows, rows - first);
    score_rows(a.problem, first, n, cols, a.on_device.scores, stream);
    launch(choose, n, kSelectThreads, 0, stream, a, first, a.on_device.scores, a.on_device.marks, blocks);
  }
}

}  // namespace sk::indexer_topk::cuda
