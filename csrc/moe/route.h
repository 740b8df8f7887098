// Chooses the experts of tokens by their logits, and weighs them.
#pragma once
#include "moe/best.h"
#include "moe/scores.h"

namespace sk::moe::SK_ISA {

struct Scored {
  F32 score;
  I32 key;
};
// A softmax selects by the logit itself.
template <Scoring kScoring>
SK_INLINE Scored score_and_key(F32 z, F32 top, F32 bias) {
  const F32 s = score<kScoring>(z, top);
  F32 by = s;
  if constexpr (kScoring == Scoring::softmax) by = add(z, splat(0.0f));  // no -0
  return {s, key_of(add(by, bias))};
}

// All is read before anything is written, so that the chunks' chains of operations can overlap.
template <Scoring kScoring, int kChunks, class T>
SK_INLINE void score_chunks(const T* z, const float* bias, F32 top, float* scores, int32_t* keys, F32* total) {
  Scored x[kChunks];
#pragma GCC unroll 4
  for (int c = 0; c < kChunks; ++c)
    x[c] =
        score_and_key<kScoring>(load(z + c * kLanes), top, bias == nullptr ? splat(0.0f) : load(bias + c * kLanes));
#pragma GCC unroll 4
  for (int c = 0; c < kChunks; ++c) {
    store(scores + c * kLanes, x[c].score);
    store(keys + c * kLanes, x[c].key);
    *total = add(*total, x[c].score);
  }
}

// Returns what the scores are to be divided by.
template <Scoring kScoring, class T>
static float score_row(const T* z, const float* bias, int64_t experts, float* scores, int32_t* keys) {
  F32 top = splat(0.0f), total = splat(0.0f);
  if constexpr (kScoring == Scoring::softmax) top = top_of(z, experts);
  const auto bias_at = [&](int64_t i) { return bias == nullptr ? nullptr : bias + i; };
  int64_t i = 0;
  for (; i + 4 * kLanes <= experts; i += 4 * kLanes)
    score_chunks<kScoring, 4>(z + i, bias_at(i), top, scores + i, keys + i, &total);
  for (; i + kLanes <= experts; i += kLanes)
    score_chunks<kScoring, 1>(z + i, bias_at(i), top, scores + i, keys + i, &total);
  if (const int64_t n = experts - i; n > 0) {
    const Scored x = score_and_key<kScoring>(load(z + i, n), top, bias == nullptr ? splat(0.0f) : load(bias + i, n));
    store(scores + i, x.score);
    store(keys + i, select(first_lanes(n), x.key, splat_i(kNone)));
    total = add(total, select(first_lanes(n), x.score, splat(0.0f)));
  }
  return kScoring == Scoring::softmax ? sum(total) : 1.0f;
}

struct Groups {
  int64_t size, count, kept;

  // Groups of 1, 2, 4, ... whole chunks are the common case: 2^chunks_log2() of them. -1: others.
  int chunks_log2() const {
    const int64_t chunks = size / kLanes;
    return size % kLanes != 0 || (chunks & (chunks - 1)) != 0 ? -1 : __builtin_ctzll(static_cast<uint64_t>(chunks));
  }
};

// The two best keys of every group.
static void best_two(const int32_t* keys, const Groups& groups, int32_t* best, int32_t* second) {
  for (int64_t g = 0; g < groups.count; ++g) {
    int64_t a = kNone, b = kNone;
    for (int64_t i = g * groups.size; i < (g + 1) * groups.size; ++i) {
      b = max(b, min(a, keys[i]));
      a = max(a, keys[i]);
    }
    best[g] = static_cast<int32_t>(a);
    second[g] = static_cast<int32_t>(b);
  }
}
// The same by chunks, whose maxima come out on the way.
static void best_two_of_chunks(const int32_t* keys, int64_t vectors, int chunks_log2, int32_t* maxima, int32_t* best,
                               int32_t* second) {
  Top2 top[kMaxExperts / kKeysAVector + 1];
  for (int64_t v = 0; v < vectors; ++v) {
    top[v] = fold_all_to_two([&](int i) { return load(keys + v * kKeysAVector + i * kLanes); });
    store(maxima + v * kLanes, top[v].best);
  }
  for (; chunks_log2 > 0; --chunks_log2) {
    top[vectors] = {splat_i(kNone), splat_i(kNone)};
    vectors = ceil_div(vectors, 2);
    for (int64_t v = 0; v < vectors; ++v) top[v] = fold<1>(top[2 * v], top[2 * v + 1]);
  }
  for (int64_t v = 0; v < vectors; ++v) {
    store(best + v * kLanes, top[v].best);
    store(second + v * kLanes, top[v].second);
  }
}

// A group is as good as the sum of its two best experts. A second of -inf counts as the lowest number, so that the
// group still beats one without any.
static void score_groups(const Groups& groups, int32_t* best, const int32_t* second) {
  for (int64_t i = 0; i < groups.count; i += kLanes) {
    const F32 a = number_of(load(best + i)), b = max(number_of(load(second + i)), splat(-kLargest));
    store(best + i, key_of(groups.size == 1 ? a : add(a, b)));
  }
}

constexpr auto kMinusOnesAtTheEnd = simd::tabulate<int32_t, 2 * kLanes>([](int i) { return i < kLanes ? 0 : -1; });

// ranks[g]: how many groups are better than g.
static void rank_groups(const int32_t* group_keys, int64_t groups, int32_t* ranks) {
  for (int64_t i = 0; i < groups; i += kLanes) {
    const I32 own = load(group_keys + i);
    I32 rank = splat_i(0);
    for (int64_t g = 0; g < groups; ++g) {
      // Of equals, those with smaller index are better: lanes after g compare less by one.
      const int64_t lanes_after_g = min(kLanes, max(0, i + kLanes - 1 - g));
      const I32 less = add(own, load(kMinusOnesAtTheEnd.at + lanes_after_g));
      rank = add(rank, select(gt(splat_i(group_keys[g]), less), splat_i(1), splat_i(0)));
    }
    store(ranks + i, rank);
  }
}

// Takes the experts of all but the best groups out.
static void drop_groups(const int32_t* ranks, const Groups& groups, int32_t* keys, int32_t* maxima, int64_t vectors) {
  const I32 kept = splat_i(static_cast<int32_t>(groups.kept)), none = splat_i(kNone);
  if (const int log2 = groups.chunks_log2(); log2 >= 0) {  // a chunk whose largest is none is never looked into
    I32 group = lane_numbers();
    for (int i = 0; i < log2; ++i) group = shr<1>(group);
    for (int64_t chunk = 0; chunk < vectors * kLanes; chunk += kLanes) {
      const I32 rank = permute(load(ranks + (chunk >> log2)), group);
      store(maxima + chunk, select(gt(kept, rank), load(maxima + chunk), none));
    }
    return;
  }
  for (int64_t g = 0; g < groups.count; ++g)
    for (int64_t i = g * groups.size; i < (g + 1) * groups.size; ++i)
      keys[i] = ranks[g] < groups.kept ? keys[i] : kNone;
  find_maxima(keys, maxima, vectors);
}

// Several rows go through every step together: steps are chains of dependent operations, and other rows fill the
// waits.
template <Scoring kScoring, class T>
static void select_rows(Rows<const T> logits, int64_t experts, int64_t count, const Selection& selection,
                        const Weighing& how, float* weights, int32_t* ids) {
  constexpr int64_t kRows = 8, kWordsARow = 3 * kMaxExperts + kMaxExperts / kLanes;
  alignas(64) int32_t words[kRows * kWordsARow];
  alignas(64) float all_scores[kRows * kMaxExperts];
  alignas(64) float chosen_scores[kRows][kMaxTopK];
  float totals[kRows];

  const Groups groups = {experts / selection.n_group, selection.n_group, selection.topk_group};
  const int64_t k = selection.top_k, vectors = ceil_div(experts, kKeysAVector);
  // What a row has in `words`, as close together as the sizes allow.
  const int64_t maxima = vectors * kKeysAVector, group_keys = maxima + vectors * kLanes,
                ranks = group_keys + round_up(groups.count, kLanes), stride = ranks + round_up(groups.count, kLanes);
  const auto row = [&](int64_t r) { return words + r * stride; };
  const auto scores = [&](int64_t r) { return all_scores + r * round_up(experts, kLanes); };

  for (int64_t r = 0; r < min(kRows, count); ++r)  // whole vectors of chunks are searched
    for (int64_t i = round_up(experts, kLanes); i < maxima; i += kLanes) store(row(r) + i, splat_i(kNone));
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t rows = min(kRows, count - first);
    for (int64_t r = 0; r < rows; ++r)
      totals[r] =
          score_row<kScoring>(logits.data + (first + r) * logits.stride, selection.bias, experts, scores(r), row(r));
    if (groups.kept == groups.count) {
      for (int64_t r = 0; r < rows; ++r) find_maxima(row(r), row(r) + maxima, vectors);
    } else {
      const int log2 = groups.chunks_log2();
      for (int64_t r = 0; r < rows; ++r) {
        int32_t *best = row(r) + group_keys, *second = row(r) + ranks;  // there is no rank yet
        log2 >= 0 ? best_two_of_chunks(row(r), vectors, log2, row(r) + maxima, best, second)
                  : best_two(row(r), groups, best, second);
      }
      for (int64_t r = 0; r < rows; ++r) score_groups(groups, row(r) + group_keys, row(r) + ranks);
      for (int64_t r = 0; r < rows; ++r) rank_groups(row(r) + group_keys, groups.count, row(r) + ranks);
      for (int64_t r = 0; r < rows; ++r) drop_groups(row(r) + ranks, groups, row(r), row(r) + maxima, vectors);
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t r = 0; r < rows; ++r) ids[(first + r) * k + i] = pop_best(row(r), row(r) + maxima, vectors);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i) chosen_scores[r][i] = scores(r)[ids[(first + r) * k + i]];
    for (int64_t r = 0; r < rows; ++r) weigh_chosen(chosen_scores[r], k, totals[r], how, weights + (first + r) * k);
  }
}

}  // namespace sk::moe::SK_ISA
