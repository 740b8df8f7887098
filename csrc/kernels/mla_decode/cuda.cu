#include "attention/attend.cuh"
#include "kernels/mla_decode/op.h"

namespace sk::mla_decode::cuda {
namespace {
using namespace sk::attention::cuda;

struct InPages {
  Args a;

  __device__ int64_t count(int64_t query) const {
    const int64_t steps = a.queries.steps, later = a.causal ? steps - 1 - query % steps : 0;
    return max(0, min(max(a.seq_lens[query / steps], 0), a.max_pages * a.page_size) - later);
  }
  __device__ int32_t find(int64_t query, int64_t position) const {
    const int32_t page = a.block_table[query / a.queries.steps * a.max_pages + position / a.page_size];
    return page < 0 || page >= a.pages ? kNobody : static_cast<int32_t>(page * a.page_size + position % a.page_size);
  }
  __device__ float k(int32_t slot, int64_t kv_head, int64_t i) const {
    return value_at(a.cache.data, a.dtype, (slot * a.queries.kv_heads + kv_head) * a.cache.stride + i);
  }
  __device__ float v(int32_t slot, int64_t kv_head, int64_t i) const { return k(slot, kv_head, i); }
};

}  // namespace

void run(const Args& a, void* stream) { attend(a.queries, InPages{a}, a.max_pages * a.page_size, stream); }

}  // namespace sk::mla_decode::cuda
