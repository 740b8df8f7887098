#include "attention/attend.cuh"
#include "kernels/sparse_attention/op.h"

namespace sk::sparse_attention::cuda {
namespace {
using namespace sk::attention::cuda;

struct KeysInRows {
  Args a;

  // Which keys the query may see: those of its sequence, if there are several, up to itself if that counts.
  struct Seen { int64_t first, last; };
  __device__ Seen seen(int64_t query) const {
    const DeviceRanges& r = a.on_device;
    int64_t s = 0, from = 0, to = a.keys, q_end = a.queries.queries;
    if (r.cu_q != nullptr) {
      while (s < r.sequences && r.cu_q[s + 1] <= query) ++s;
      if (s == r.sequences) return {0, 0};  // behind the last sequence
      q_end = r.cu_q[s + 1];
      from = min(max(r.cu_k[s], 0), a.keys);
      to = min(max(r.cu_k[s + 1], 0), a.keys);
    }
    if (r.causal) to -= q_end - 1 - query;
    if (a.lengths != nullptr && a.topk < 0) to = min(to, from + max(a.lengths[query], 0));
    return {from, max(to, from)};
  }
  __device__ int64_t count(int64_t query) const {
    if (a.topk >= 0) return a.lengths != nullptr ? min(max(a.lengths[query], 0), a.topk) : a.topk;
    const Seen s = seen(query);
    return s.last - s.first;
  }
  __device__ int32_t find(int64_t query, int64_t position) const {
    const Seen s = seen(query);
    if (a.topk < 0) return static_cast<int32_t>(s.first + position);
    const int32_t key = a.indices[query * a.topk + position];
    return key >= s.first && key < s.last ? key : kNobody;
  }
  __device__ float k(int32_t key, int64_t kv_head, int64_t i) const {
    return value_at(a.rows.k.data, a.rows.k_dtype, (key * a.queries.kv_heads + kv_head) * a.rows.k.stride + i);
  }
  __device__ float v(int32_t key, int64_t kv_head, int64_t i) const {
    return value_at(a.rows.v.data, a.rows.v_dtype, (key * a.queries.kv_heads + kv_head) * a.rows.v.stride + i);
  }
};

}  // namespace

void run(const Args& a, void* stream) { attend(a.queries, KeysInRows{a}, a.topk >= 0 ? a.topk : a.keys, stream); }

}  // namespace sk::sparse_attention::cuda
