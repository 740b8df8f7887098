// The lightning indexer: scores of keys, and the best of them.
#include "bindings/families.h"
#include "indexer/range.h"
#include "kernels/topk_per_row/op.h"

namespace sk {
namespace {

// An element of an index tensor of one dimension, wherever int32 or int64 put it.
int64_t index_at(const TensorView& t, int64_t i) {
  return t.dtype == Dtype::i64 ? t.as<const int64_t>()[i] : t.as<const int32_t>()[i];
}

// [starts, ends) of every row, cut to the columns that there are. None: from the first, to the last.
const indexer::Range* read_ranges(Call& c, int starts_arg, int ends_arg, int64_t rows, int64_t cols) {
  const TensorView &starts = c.arg(starts_arg), &ends = c.arg(ends_arg);
  indexer::Range* const ranges = c.scratch().take<indexer::Range>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = starts.present() ? min(max(index_at(starts, r), 0), cols) : 0;
    const int64_t last = ends.present() ? min(index_at(ends, r), cols) : cols;
    ranges[r] = {static_cast<int32_t>(first), static_cast<int32_t>(max(first, last))};
  }
  return ranges;
}

// Result columns are int32.
void check_count(const char* name, int64_t k, const char* of, int64_t cols) {
  if (k < 1 || k > INT32_MAX) fail(name, " is ", k, ", expected 1 to ", INT32_MAX);
  if (cols > INT32_MAX)
    fail(of, " has ", cols, " columns, expected at most ", INT32_MAX, ", for int32 to number them");
}

void topk_per_row(Call& c) {
  enum { kScores, kStarts, kEnds };
  enum { kK };
  const TensorView& scores = c.arg(kScores);
  const int64_t rows = scores.rows(), cols = scores.last(), k = c.integer(kK);
  check_count("k", k, "scores", cols);
  c.make_outputs();
  c.run(topk_per_row::kVariants, {.scores = scores.as_rows<const void>(),
                                  .dtype = scores.dtype,
                                  .ranges = read_ranges(c, kStarts, kEnds, rows, cols),
                                  .out = c.out(0).as<int32_t>(),
                                  .rows = rows,
                                  .cols = cols,
                                  .k = k});
}

constexpr Binding kBindings[] = {
    {"topk_per_row", "scores starts ends k", &topk_per_row},
};

}  // namespace

Family indexer_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
