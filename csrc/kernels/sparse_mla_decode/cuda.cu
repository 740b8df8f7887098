#include "attention/attend.cuh"
#include "kernels/sparse_mla_decode/op.h"
#include "kv/records.cuh"

namespace sk::sparse_mla_decode::cuda {
namespace {
using namespace sk::attention::cuda;

// Slots of the first pool, then, inverted, those of the second.
struct Named {
  Args a;
  kv::Layout format;

  __device__ int64_t count_of(int part, int64_t query) const {
    const Selection& s = a.parts[part];
    return s.lengths != nullptr ? min(max(s.lengths[query / a.queries.steps], 0), s.topk) : s.topk;
  }
  __device__ int64_t count(int64_t query) const { return count_of(0, query) + count_of(1, query); }
  __device__ int32_t find(int64_t query, int64_t position) const {
    const int64_t firsts = count_of(0, query);
    const int part = position >= firsts;
    const Selection& s = a.parts[part];
    const int32_t slot = s.indices[query * s.topk + position - (part == 0 ? 0 : firsts)];
    if (slot < 0 || slot >= s.records) return kNobody;
    return part == 0 ? slot : ~slot;
  }
  // Records are decoded to the dtype of the queries.
  __device__ float k(int32_t found, int64_t, int64_t i) const {
    const kv::Pool<const uint8_t>& pool = a.parts[found < 0].pool;
    const int64_t slot = found < 0 ? ~found : found;
    if (a.format == kv::Format::bf16) return value_at(pool.data + slot * pool.page_stride, a.plain_dtype, i);
    const auto record = record_at(format, pool, slot);
    return a.queries.dtype == Dtype::f32 ? kv::cuda::value_of<float>(format, record, i)
                                         : widen(kv::cuda::value_of<bf16>(format, record, i));
  }
  __device__ float v(int32_t found, int64_t kv_head, int64_t i) const { return k(found, kv_head, i); }
};

}  // namespace

void run(const Args& a, void* stream) {
  attend(a.queries, Named{a, kv::cuda::layout_or_none(a.format)}, a.parts[0].topk + a.parts[1].topk, stream);
}

}  // namespace sk::sparse_mla_decode::cuda
