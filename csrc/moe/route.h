// Chooses the experts of tokens by their logits, and weighs them.
#pragma once
#include "moe/best.h"
#include "moe/scores.h"

namespace sk::moe::SK_ISA {

// Scores of a row, and keys that put them, with the bias, in order. Both end with a whole vector. Returns what the
// scores are to be divided by.
template <Scoring kScoring, class T>
static float score_row(const T* z, const float* bias, int64_t experts, float* scores, int32_t* keys) {
  F32 top = splat(0.0f), total = splat(0.0f);
  if constexpr (kScoring == Scoring::softmax) top = top_of(z, experts);
  const auto each = [&](const auto& body) {
    int64_t i = 0;
    for (; i + kLanes <= experts; i += kLanes) body(i, All{});
    if (i < experts) body(i, experts - i);
  };
  each([&](int64_t i, auto lanes) { store(scores + i, begin_score<kScoring>(load(z + i, lanes), top)); });
  each([&](int64_t i, auto lanes) {
    const F32 logit = load(z + i, lanes), s = finish_score<kScoring>(logit, load(scores + i));
    // A softmax selects by the logit itself.
    const F32 by = kScoring == Scoring::softmax ? logit : s;
    const I32 key = key_of(add(by, bias == nullptr ? splat(0.0f) : load(bias + i, lanes)));
    store(scores + i, s);
    store(keys + i, only(lanes, key, splat_i(kNone)));
    total = add(total, only(lanes, s, splat(0.0f)));
  });
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

// ranks[g]: how many groups are better than g. Of equals those with smaller index are: lanes after g compare less by
// one.
static void rank_groups(const int32_t* group_keys, int64_t groups, int32_t* ranks) {
  for (int64_t i = 0; i < groups; i += kLanes) {
    const I32 own = load(group_keys + i), own_less_one = sub(own, splat_i(1));
    I32 rank = splat_i(0);
    const auto count = [&](int64_t g, I32 own) {
      rank = add(rank, select(gt(splat_i(group_keys[g]), own), splat_i(1), splat_i(0)));
    };
    for (int64_t g = 0; g < i; ++g) count(g, own_less_one);
    for (int64_t g = i; g < min(groups, i + kLanes); ++g)
      count(g, add(own, load(kMinusOnesAtTheEnd.at + kLanes - 1 - (g - i))));
    for (int64_t g = i + kLanes; g < groups; ++g) count(g, own);
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

struct One {
  constexpr operator int64_t() const { return 1; }
};

// Several rows go through every step together: steps are chains of dependent operations, and other rows fill the
// waits.
template <Scoring kScoring, class T>
static void select_rows(Rows<const T> logits, int64_t experts, int64_t count, const Selection& selection,
                        const Weighing& how, float* weights, int32_t* ids) {
  constexpr int64_t kRows = kRoutedRows, kWordsARow = 3 * kMaxExperts + kMaxExperts / kLanes;
  alignas(64) int32_t words[kRows * kWordsARow];
  alignas(64) float all_scores[kRows * kMaxExperts];
  alignas(64) float chosen[kRows * kMaxTopK];
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
    int32_t* const chosen_ids = ids + first * k;
    const auto pop_all = [&](auto count) {
      for (int64_t i = 0; i < k; ++i)
        for (int64_t r = 0; r < rows; ++r) chosen_ids[r * k + i] = pop_best(row(r), row(r) + maxima, count);
    };
    vectors == 1 ? pop_all(One{}) : pop_all(vectors);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i) chosen[r * k + i] = scores(r)[chosen_ids[r * k + i]];
    weigh_chosen(chosen, rows, k, totals, how, weights + first * k);
  }
}

}  // namespace sk::moe::SK_ISA
