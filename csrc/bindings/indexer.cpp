// The lightning indexer: scores of keys, and the best of them.
#include "bindings/families.h"
#include "indexer/problem.h"
#include "kernels/indexer_logits/op.h"
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

void check_columns(const char* name, int64_t cols) {
  if (cols > INT32_MAX)
    fail(name, " has ", cols, " of them, expected at most ", INT32_MAX, ", for int32 to number them");
}
void check_count(const char* name, int64_t k) {
  if (k < 1 || k > INT32_MAX) fail(name, " is ", k, ", expected 1 to ", INT32_MAX);
}

constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "FP4 (uint8)"};

// The arguments that scoring begins with: q, its scale and the heads' weights.
indexer::Queries read_queries(const Call& c, int q_arg, int scale_arg, int weights_arg) {
  const TensorView &q = c.arg(q_arg), &scale = c.arg(scale_arg), &weights = c.arg(weights_arg);
  const bool fp4 = q.dtype == Dtype::u8;
  const int64_t heads = c.size("H"), dim = c.size("D");
  if (heads < 1 || dim < 1) fail("q has ", heads, " heads of ", dim, " values, expected at least 1 of each");
  if (fp4 != scale.present())
    fail("q_scale is ", fp4 ? "None, expected the scales of FP4 queries" : "given, expected None: only FP4 has it");
  return {.data = q.as<const uint8_t>(),
          .dtype = q.dtype,
          .stride = q.row_stride() * size_of(q.dtype),
          .scale = fp4 ? scale.as_rows<const uint8_t>() : Rows<const uint8_t>{},
          .weights = weights.as_rows<const float>(),
          .rows = q.rows() / heads,
          .heads = heads,
          .dim = dim};
}

// Keys one after the other, with their scales.
indexer::Keys read_keys(const Call& c, const indexer::Queries& q, int k_arg, int scale_arg) {
  const TensorView &k = c.arg(k_arg), &scale = c.arg(scale_arg);
  if (k.dtype != q.dtype)
    fail("k is ", kDtypeNames[static_cast<int>(k.dtype)], ", expected ", kDtypeNames[static_cast<int>(q.dtype)],
         " like q");
  const bool fp4 = q.dtype == Dtype::u8, quantised = fp4 || q.dtype == Dtype::e4m3;
  if (quantised != scale.present())
    fail("k_scale is ", quantised ? "None, expected the scales of quantised keys" : "given, expected None",
         quantised ? "" : ": these keys are not quantised");
  if (quantised && (scale.rank != (fp4 ? 2 : 1) || (scale.dtype == Dtype::f32) == fp4))
    fail("k_scale has ", scale.rank, scale.rank == 1 ? " dimension of " : " dimensions of ",
         kDtypeNames[static_cast<int>(scale.dtype == Dtype::u8 ? Dtype::e8m0 : scale.dtype)], ", expected ",
         fp4 ? "[N, D/32] of float8_e8m0fnu" : "[N] of float32");
  return {.data = k.as<const uint8_t>(),
          .stride = k.row_stride() * size_of(k.dtype),
          .scale = scale.as<const uint8_t>(),
          .scale_bytes = !quantised ? 0
                         : fp4      ? scale.last()
                                    : 4,
          .table = nullptr,
          .table_stride = 0,
          .page_size = 0,
          .page_bytes = 0,
          .page_scale_bytes = 0};
}

void indexer_logits(Call& c) {
  enum { kQ, kK, kKScale, kWeights, kStarts, kEnds, kQScale };
  const indexer::Queries q = read_queries(c, kQ, kQScale, kWeights);
  const indexer::Keys keys = read_keys(c, q, kK, kKScale);
  const int64_t cols = c.size("N");
  check_columns("k", cols);
  c.make_outputs();
  c.run(indexer_logits::kVariants, {.problem = {.queries = q,
                                                .keys = keys,
                                                .ranges = read_ranges(c, kStarts, kEnds, q.rows, cols),
                                                .rows_a_sequence = max(q.rows, 1)},
                                    .out = c.out(0).as<float>(),
                                    .cols = cols});
}

void topk_per_row(Call& c) {
  enum { kScores, kStarts, kEnds };
  enum { kK };
  const TensorView& scores = c.arg(kScores);
  const int64_t rows = scores.rows(), cols = scores.last(), k = c.integer(kK);
  check_count("k", k);
  check_columns("scores", cols);
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
    {"indexer_logits", "q k k_scale weights starts ends q_scale", &indexer_logits},
    {"topk_per_row", "scores starts ends k", &topk_per_row},
};

}  // namespace

Family indexer_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
