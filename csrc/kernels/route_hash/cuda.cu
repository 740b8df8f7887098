// A warp weighs a token's experts, lane j the j-th.
#include "kernels/route_hash/op.h"
#include "moe/scores.cuh"

namespace sk::route_hash::cuda {
namespace {
using namespace sk::moe::cuda;

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) weigh(const Args a) {
  const int64_t token = thread_number() / kWarp;
  if (token >= a.tokens) return;
  const int lane = threadIdx.x % kWarp, k = static_cast<int>(a.top_k);
  const T* z = static_cast<const T*>(a.logits.rows.data) + token * a.logits.rows.stride;
  const moe::Scoring how = a.weighing.scoring;
  const LookUp& look = a.on_device;
  float top = 0.0f, total = 1.0f;
  if (how == moe::Scoring::softmax) {
    top = top_of(z, a.logits.experts);
    total = sum_of_sixteens(ceil_div(a.logits.experts, kWarp),
                            [&](int64_t e) { return e < a.logits.experts ? score(how, widen(z[e]), top) : 0.0f; });
  }
  int32_t id = -1;
  const int64_t row = look.token_ids[token];
  if (lane < k && static_cast<uint64_t>(row) < static_cast<uint64_t>(look.table_rows))
    id = look.table[row * k + lane];
  if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(a.logits.experts)) id = -1;
  const float w = weight_of(id < 0 ? 0.0f : score(how, widen(z[id]), top), k, total, a.weighing);
  if (lane >= k) return;
  look.ids[token * k + lane] = id;
  a.weights[token * k + lane] = w;
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.logits.dtype, [&](auto type) {
    launch(weigh<decltype(type)>, ceil_div(a.tokens, kThreads / kWarp), kThreads, 0, stream, a);
  });
}

}  // namespace sk::route_hash::cuda
