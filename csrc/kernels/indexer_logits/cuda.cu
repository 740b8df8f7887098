#include "indexer/score.cuh"
#include "kernels/indexer_logits/op.h"

namespace sk::indexer_logits::cuda {

void run(const Args& a, void* stream) {
  indexer::cuda::score_rows(a.problem, 0, a.problem.queries.rows, a.cols, a.out, stream);
}

}  // namespace sk::indexer_logits::cuda
