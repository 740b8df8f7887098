// The lightning indexer: scores of keys, and the best of them.
#include "bindings/families.h"
#include "indexer/problem.h"
#include "kernels/indexer_logits/op.h"
#include "kernels/indexer_topk/op.h"
#include "kernels/topk_per_row/op.h"

namespace sk {
namespace {

// An element of an index tensor of one dimension, wherever int32 or int64 put it.
int64_t index_at(const TensorView& t, int64_t i) {
  return t.dtype == Dtype::i64 ? t.as<const int64_t>()[i] : t.as<const int32_t>()[i];
}

// [starts, ends) of every row, cut to the columns that there are. None: from the first, to the last.
const indexer::Range* read_ranges(Call& c, int starts_arg, int ends_arg, int64_t rows, int64_t cols) {
  if constexpr (!Call::kReadsValues) return nullptr;
  const TensorView &starts = c.arg(starts_arg), &ends = c.arg(ends_arg);
  indexer::Range* const ranges = c.scratch().take<indexer::Range>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = starts.present() ? min(max(index_at(starts, r), 0), cols) : 0;
    const int64_t last = ends.present() ? min(index_at(ends, r), cols) : cols;
    ranges[r] = {static_cast<int32_t>(first), static_cast<int32_t>(max(first, last))};
  }
  return ranges;
}

// On a device each row finds its own.
indexer::Bounds read_bounds(Call& c, int starts_arg, int ends_arg) {
  if constexpr (Call::kReadsValues) return {};
  const auto read = [&](int arg) { return c.arg(arg).present() ? c.indices(arg) : nullptr; };
  return {read(starts_arg), read(ends_arg)};
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
          .page_scale_bytes = 0,
          .pages = 0};
}

void indexer_logits(Call& c) {
  enum { kQ, kK, kKScale, kWeights, kStarts, kEnds, kQScale };
  const indexer::Queries q = read_queries(c, kQ, kQScale, kWeights);
  const indexer::Keys keys = read_keys(c, q, kK, kKScale);
  const int64_t cols = c.size("N");
  check_columns("k", cols);
  c.make_outputs();
  c.run(indexer_logits::kVariants,
        {.problem =
             {.queries = q,
              .keys = keys,
              .ranges = read_ranges(c, kStarts, kEnds, q.rows, cols),
              .rows_a_sequence = max(q.rows, 1),
              .on_device = {.bounds = read_bounds(c, kStarts, kEnds), .lens = nullptr, .each = false, .cols = cols}},
         .out = c.out(0).as<float>(),
         .cols = cols});
}

constexpr int64_t kWorkspace = 32 << 20;  // bytes, where max_workspace_bytes is None

// Keys in pages, of which every query of a sequence sees the first; at most `limit` where that is not negative.
indexer::Problem read_pages(Call& c, int64_t limit) {
  enum { kQ, kCache, kWeights, kLens, kTable, kQScale };
  const indexer::Queries q = read_queries(c, kQ, kQScale, kWeights);
  const TensorView &cache = c.arg(kCache), &lens = c.arg(kLens);
  const int64_t pages = cache.shape[0], page_size = cache.shape[1], entry = cache.last();
  const bool fp4 = q.dtype == Dtype::u8, quantised = fp4 || q.dtype == Dtype::e4m3;
  if ((quantised ? Dtype::u8 : q.dtype) != cache.dtype)
    fail("cache is ", cache.dtype == Dtype::u8 ? "uint8" : kDtypeNames[static_cast<int>(cache.dtype)], ", expected ",
         quantised ? "uint8" : kDtypeNames[static_cast<int>(q.dtype)], " for q of ",
         kDtypeNames[static_cast<int>(q.dtype)]);
  const int64_t key_bytes = fp4 ? q.dim / 2 : q.dim * size_of(q.dtype);
  const int64_t expected = quantised ? key_bytes + 4 : q.dim;
  if (entry != expected)
    fail("cache has entries of ", entry, ", expected ", expected, " for keys of ", q.dim, fp4 ? " FP4" : "",
         " values", quantised ? " with their scales" : "");
  if (fp4 && q.dim > 4 * indexer::kFp4Group)
    fail("q has heads of ", q.dim, " values, expected at most ", 4 * indexer::kFp4Group, ": a key has four scales");
  if (page_size < 1) fail("cache has pages of 0 keys, expected at least 1");

  const int64_t batch = c.size("B"), n = c.size("n"), table_size = c.size("max_pages"),
                reach = table_size * page_size;
  check_columns("block_table", reach);
  const int32_t* const table = c.indices(kTable);
  const indexer::RangesOnDevice on_device = {.bounds = {},
                                             .lens = Call::kReadsValues ? nullptr : c.indices(kLens),
                                             .each = lens.rank == 2,
                                             .cols = limit >= 0 ? min(limit, reach) : reach};
  indexer::Range* const ranges = c.scratch().take<indexer::Range>(batch * n);
  for (int64_t b = 0; Call::kReadsValues && b < batch; ++b) {
    int64_t most = 0;
    for (int64_t t = 0; t < n; ++t) {
      const int64_t at = lens.rank == 1 ? b : b * lens.row_stride() + t, len = index_at(lens, at);
      if (len > reach)
        fail("context_lens[", b, lens.rank == 1 ? "" : ", " + std::to_string(t), "] is ", len, ", expected at most ",
             reach, ": ", table_size, " pages of ", page_size, " keys");
      int64_t seen = max(0, lens.rank == 1 ? max(len, 0) - n + t + 1 : len);
      if (limit >= 0) seen = min(seen, limit);
      ranges[b * n + t] = {0, static_cast<int32_t>(seen)};
      most = max(most, seen);
    }
    for (int64_t i = 0; i < ceil_div(most, page_size); ++i)
      if (const int32_t page = table[b * table_size + i]; page < 0 || page >= pages)
        fail("block_table[", b, ", ", i, "] is ", index_at(c.arg(kTable), b * c.arg(kTable).row_stride() + i),
             ", expected 0 to ", pages - 1);
  }
  const int64_t scale_bytes = !quantised ? 0 : fp4 ? ceil_div(q.dim, indexer::kFp4Group) : 4;
  return {.queries = q,
          .keys = {.data = cache.as<const uint8_t>(),
                   .stride = key_bytes,
                   .scale = nullptr,
                   .scale_bytes = scale_bytes,
                   .table = table,
                   .table_stride = table_size,
                   .page_size = page_size,
                   .page_bytes = page_size * entry * size_of(cache.dtype),
                   .page_scale_bytes = 4,
                   .pages = pages},
          .ranges = ranges,
          .rows_a_sequence = max(n, 1),
          .on_device = on_device};
}

void indexer_logits_paged(Call& c) {
  enum { kMaxContextLen };
  if (!c.option(kMaxContextLen).present) c.set_size("max_context_len", c.size("max_pages") * c.size("page_size"));
  const int64_t cols = c.size("max_context_len");
  if (cols < 0) fail("max_context_len is ", cols, ", expected at least 0");
  check_columns("max_context_len", cols);
  const indexer::Problem problem = read_pages(c, cols);
  c.make_outputs();
  c.run(indexer_logits::kVariants, {.problem = problem, .out = c.out(0).as<float>(), .cols = cols});
}

// Runs indexer_topk: option k_option is k_top, then come max_workspace_bytes and candidates.
void choose_keys(Call& c, const indexer::Problem& problem, int64_t cols, int k_option, bool physical) {
  const int64_t k = c.integer(k_option);
  const OptionValue &limit = c.option(k_option + 1), &candidates = c.option(k_option + 2);
  check_count("k_top", k);
  int64_t most_keys = Call::kReadsValues ? 0 : cols;
  for (int64_t r = 0; Call::kReadsValues && r < problem.queries.rows; ++r)
    most_keys = max(most_keys, problem.ranges[r].size());
  indexer::Choice choice = {.k = max(1, min(k, most_keys)), .block = 0, .blocks = 0};
  if (candidates.present) {
    choice.block = candidates.integers[0];
    choice.blocks = max(1, min(candidates.integers[1], ceil_div(cols, choice.block)));
  }
  const int64_t bytes = limit.present ? limit.integer : kWorkspace;
  const int64_t blocks = choice.block > 0 ? ceil_div(cols, choice.block) : 0, row_bytes = 4 * (cols + 2 * blocks);
  const int64_t least =
      Call::kReadsValues ? indexer::plan_workspace(problem, choice, most_keys, true, 1, 0).bytes : row_bytes;
  if (bytes < least)
    fail("max_workspace_bytes is ", bytes, limit.present ? "" : " by default", ", expected at least ", least,
         " at these sizes");
  c.make_outputs();
  const int64_t rows = max(1, min(problem.queries.rows, bytes / max(row_bytes, 1)));
  float* const scratch = c.floats(0, rows * row_bytes / 4);
  c.run(indexer_topk::kVariants, {.problem = problem,
                                  .choice = choice,
                                  .out = c.out(0).as<int32_t>(),
                                  .columns = k,
                                  .most_keys = most_keys,
                                  .limit = bytes,
                                  .physical = physical,
                                  .on_device = {.rows = rows,
                                                .blocks = blocks,
                                                .scores = scratch,
                                                .marks = reinterpret_cast<uint32_t*>(scratch + rows * cols)}});
}

void indexer_topk(Call& c) {
  enum { kQ, kK, kKScale, kWeights, kStarts, kEnds, kQScale };
  enum { kKTop };
  const indexer::Queries q = read_queries(c, kQ, kQScale, kWeights);
  const indexer::Keys keys = read_keys(c, q, kK, kKScale);
  const int64_t cols = c.size("N");
  check_columns("k", cols);
  const indexer::Problem problem = {
      .queries = q,
      .keys = keys,
      .ranges = read_ranges(c, kStarts, kEnds, q.rows, cols),
      .rows_a_sequence = max(q.rows, 1),
      .on_device = {.bounds = read_bounds(c, kStarts, kEnds), .lens = nullptr, .each = false, .cols = cols}};
  choose_keys(c, problem, cols, kKTop, false);
}

void indexer_topk_paged(Call& c) {
  enum { kKTop, kMaxWorkspace, kCandidates, kPhysical };
  const indexer::Problem problem = read_pages(c, -1);
  const int64_t slots = c.size("pages") * c.size("page_size");
  if (c.flag(kPhysical)) check_columns("cache", slots);
  choose_keys(c, problem, c.size("max_pages") * c.size("page_size"), kKTop, c.flag(kPhysical));
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
                                  .k = k,
                                  .bounds = read_bounds(c, kStarts, kEnds)});
}

constexpr Binding kBindings[] = {
    {"indexer_logits", "q k k_scale weights starts ends q_scale", &indexer_logits},
    {"indexer_topk", "q k k_scale weights starts ends q_scale k_top max_workspace_bytes candidates", &indexer_topk},
    {"indexer_logits_paged", "q cache weights context_lens block_table q_scale max_context_len",
     &indexer_logits_paged},
    {"indexer_topk_paged",
     "q cache weights context_lens block_table q_scale k_top max_workspace_bytes candidates physical",
     &indexer_topk_paged},
    {"topk_per_row", "scores starts ends k", &topk_per_row},
};

}  // namespace

Family indexer_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
