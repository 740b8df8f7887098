#include "core/arena.h"
#include "core/parallel.h"
#include "indexer/best.h"
#include "kernels/topk_per_row/op.h"

namespace sk::topk_per_row::SK_ISA {
using namespace sk::indexer::SK_ISA;
using indexer::Best;
using indexer::Memory;
using indexer::Range;
using indexer::take_best;

constexpr int64_t kSample = 256;              // vectors
constexpr int64_t kNumbersAPart = 256 << 10;  // worth a thread

// What probably more than the k best of n numbers are above, by a sample spread over them; -inf where these are too
// few, or k too many, for that to save anything. A guess that is too high is found out and costs another try.
template <class T>
static float guess(const T* x, int64_t n, int64_t k) {
  const int64_t vectors = n / kLanes, taken = min(kSample, vectors / 8);
  const float expected = static_cast<float>(taken * kLanes) * static_cast<float>(k) / static_cast<float>(n);
  const int64_t rank = static_cast<int64_t>(expected + 3 * __builtin_sqrtf(expected)) + 4;
  if (rank > taken * kLanes / 2) return -kInfinity;
  alignas(64) float sample[kSample * kLanes];
  F32 most_below_0 = splat(-kInfinity);
  for (int64_t i = 0; i < taken; ++i) {
    const F32 v = max(load(x + vectors * i / taken * kLanes), splat(-kInfinity));  // NaN as -inf
    store(sample + i * kLanes, v);
    most_below_0 = max(most_below_0, neg(v));
  }
  const float at = find_cut(sample, taken * kLanes, rank, -largest(most_below_0)).at;
  return at == -kInfinity ? at : just_below(at);
}

// The best of some columns of a row.
template <class T>
static void choose(Best& b, const T* row, int64_t first, int64_t last) {
  offer(b, row + first, last - first, from(first));
}

template <class T>
static void choose_again_if_short(Best& b, const T* row, Range range) {
  if (b.count >= b.k || b.above == -kInfinity) return;
  b.count = 0;
  b.above = -kInfinity;
  choose(b, row, range.first, range.last);
}

template <class T>
static void run_as(const Args& a) {
  const int64_t k = min(a.k, a.cols);
  const auto row_at = [&](int64_t r) { return static_cast<const T*>(a.scores.data) + r * a.scores.stride; };
  const auto guess_of = [&](int64_t r) { return guess(row_at(r) + a.ranges[r].first, a.ranges[r].size(), k); };
  Memory need{};
  take_best(need, k, 0);
  Scratch scratch;
  const auto best_at = [&](uint8_t* memory, int64_t i, int64_t row) {
    Memory own{memory + i * need.used, 0};
    return take_best(own, k, guess_of(row));
  };
  const int64_t parts = max(1, min(threads() / max(a.rows, 1), a.cols / kNumbersAPart));
  if (parts == 1) {
    uint8_t* const memory = scratch.take<uint8_t>(threads() * need.used);
    parallel_rows(a.rows, 4 * a.cols * size_of(a.dtype), [&](int64_t first_row, int64_t last_row, int worker) {
      for (int64_t r = first_row; r < last_row; ++r) {
        Best b = best_at(memory, worker, r);
        choose(b, row_at(r), a.ranges[r].first, a.ranges[r].last);
        choose_again_if_short(b, row_at(r), a.ranges[r]);
        write_best(b, a.out + r * a.k, a.k);
      }
    });
    return;
  }
  // Rows in parts, whose best are then offered to each other.
  Best* const best = scratch.take<Best>(a.rows * parts);
  uint8_t* const memory = scratch.take<uint8_t>(a.rows * parts * need.used);
  parallel_for(a.rows * parts, [&](int64_t i, int) {
    const int64_t r = i / parts, part = i % parts, first = a.ranges[r].first, size = a.ranges[r].size();
    Best b = best_at(memory, i, r);
    choose(b, row_at(r), first + size * part / parts, first + size * (part + 1) / parts);
    keep_best(b);
    best[i] = b;
  });
  for (int64_t r = 0; r < a.rows; ++r) {
    Best& b = best[r * parts];
    for (int64_t part = 1; part < parts; ++part) offer_best(b, best[r * parts + part]);
    choose_again_if_short(b, row_at(r), a.ranges[r]);
    write_best(b, a.out + r * a.k, a.k);
  }
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) { run_as<decltype(type)>(a); });
}

}  // namespace sk::topk_per_row::SK_ISA
