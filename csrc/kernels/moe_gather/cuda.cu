#include "cuda/rows.cuh"
#include "kernels/moe_gather/op.h"

namespace sk::moe_gather::cuda {

void run(const Args& a, void* stream) {
  sk::cuda::copy_rows({a.x, a.tokens, a.row_token, a.out, a.rows, a.bytes}, stream);
}

}  // namespace sk::moe_gather::cuda
