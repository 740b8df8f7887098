// A warp routes a token. Its scores and keys lie in shared memory; lane l looks after experts l, l + 32, ... and
// knows the best of them, so that the best of all is one reduction away. Every step is the CPU's: the same bits.
#include "kernels/route_topk/op.h"
#include "moe/scores.cuh"

namespace sk::route_topk::cuda {
namespace {
using namespace sk::moe::cuda;

struct Groups { int size, count, kept; };

// What a token has in shared memory: scores, keys, and for groups their keys and ranks.
__host__ __device__ constexpr int64_t words_a_token(int64_t experts, int64_t groups) {
  return 2 * experts + 2 * groups;
}

// The group's key: its two best experts added. A second of -inf counts as the lowest number.
__device__ int32_t group_key(const int32_t* keys, int size, int rotation) {
  int32_t best = kNone, second = kNone;
  for (int i = 0; i < size; ++i) {
    const int32_t key = keys[(i + rotation) % size];  // neighbouring lanes start apart: other banks
    second = max(second, min(best, key));
    best = max(best, key);
  }
  const float a = number_of(best), b = greater(number_of(second), -kLargestFloat);
  return key_of(size == 1 ? a : a + b);
}

// Takes the experts of all but the best groups out.
__device__ void drop_groups(const Groups& g, int32_t* keys, int32_t* group_keys, int32_t* ranks, int lane) {
  for (int i = lane; i < g.count; i += kWarp) group_keys[i] = group_key(keys + i * g.size, g.size, lane);
  __syncwarp();
  for (int i = lane; i < g.count; i += kWarp) {
    int rank = 0;
    for (int o = 0; o < g.count; ++o)
      rank += group_keys[o] > group_keys[i] || (group_keys[o] == group_keys[i] && o < i);
    ranks[i] = rank;
  }
  __syncwarp();
  for (int e = lane; e < g.count * g.size; e += kWarp)
    if (ranks[e / g.size] >= g.kept) keys[e] = kNone;
  __syncwarp();
}

struct Best {
  int32_t key;
  int expert;
};
// The best of the lane's own experts; equal ones: the smaller index.
__device__ Best best_of_lane(const int32_t* keys, int experts, int lane) {
  Best best = {kNone, lane};
  for (int e = lane; e < experts; e += kWarp)
    if (keys[e] > best.key) best = {keys[e], e};
  return best;
}

template <class T>
__global__ void __launch_bounds__(4 * kWarp) route(const Args a) {
  extern __shared__ __align__(16) int32_t words[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t token = int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (token >= a.tokens) return;
  const int experts = static_cast<int>(a.logits.experts), k = static_cast<int>(a.selection.top_k);
  const Groups groups = {experts / static_cast<int>(a.selection.n_group), static_cast<int>(a.selection.n_group),
                         static_cast<int>(a.selection.topk_group)};
  int32_t* const mine = words + warp * words_a_token(experts, groups.count);
  float* const scores = reinterpret_cast<float*>(mine);
  int32_t *const keys = mine + experts, *const group_keys = keys + experts;

  const T* z = static_cast<const T*>(a.logits.rows.data) + token * a.logits.rows.stride;
  const moe::Scoring how = a.weighing.scoring;
  const float top = how == moe::Scoring::softmax ? top_of(z, experts) : 0.0f;
  for (int e = lane; e < experts; e += kWarp) {
    const float logit = widen(z[e]);
    scores[e] = score(how, logit, top);
    keys[e] = selection_key(how, logit, scores[e], a.selection.bias == nullptr ? 0.0f : a.selection.bias[e]);
  }
  __syncwarp();
  float total = 1.0f;
  if (how == moe::Scoring::softmax)
    total = sum_of_sixteens(ceil_div(experts, kWarp), [&](int64_t e) { return e < experts ? scores[e] : 0.0f; });
  if (groups.kept < groups.count) drop_groups(groups, keys, group_keys, group_keys + groups.count, lane);

  Best best = best_of_lane(keys, experts, lane);
  int chosen = 0;
  for (int i = 0; i < k; ++i) {
    const int32_t key = __reduce_max_sync(0xffffffffu, best.key);
    const int expert =
        static_cast<int>(__reduce_min_sync(0xffffffffu, best.key == key ? unsigned(best.expert) : ~0u));
    if (lane == i) chosen = expert;
    if (lane == expert % kWarp) {
      keys[expert] = kNone;
      best = best_of_lane(keys, experts, lane);
    }
  }
  const float w = weight_of(lane < k ? scores[chosen] : 0.0f, k, total, a.weighing);
  if (lane >= k) return;
  a.ids[token * k + lane] = chosen;
  a.weights[token * k + lane] = w;
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t shared = words_a_token(a.logits.experts, a.selection.n_group) * 4;
  const int64_t warps = 4 * shared <= kDefaultShared ? 4 : min(4, max(1, kDefaultShared / shared));
  with_float_type(a.logits.dtype, [&](auto type) {
    launch(route<decltype(type)>, ceil_div(a.tokens, warps), static_cast<int>(warps * kWarp), warps * shared, stream,
           a);
  });
}

}  // namespace sk::route_topk::cuda
