// Routing, permutation and combination.
#include <cmath>

#include "bindings/families.h"
#include "bindings/indices.h"
#include "kernels/moe_combine/op.h"
#include "kernels/moe_gather/op.h"
#include "kernels/moe_permutation/op.h"
#include "kernels/route_hash/op.h"
#include "kernels/route_topk/op.h"

namespace sk {
namespace {

namespace py = pybind11;

moe::Weighing weighing(const Call& c, int scoring, int renormalize, int scale) {
  if (!std::isfinite(c.real(scale))) fail("scale is ", c.real(scale), ", expected a finite number");
  return {static_cast<moe::Scoring>(c.integer(scoring)), c.flag(renormalize), c.real(scale)};
}

void route_topk(Call& c) {
  enum { kLogits, kBias };
  enum { kTopK, kScoring, kNGroup, kTopkGroup, kRenormalize, kScale };
  const TensorView& logits = c.arg(kLogits);
  const int64_t experts = logits.last(), k = c.integer(kTopK), groups = c.integer(kNGroup),
                kept = c.integer(kTopkGroup);
  if (experts > moe::kMaxExperts) fail("logits has ", experts, " experts, expected at most ", moe::kMaxExperts);
  if (groups < 1 || experts % groups != 0)
    fail("n_group is ", groups, ", expected a divisor of the ", experts, " experts");
  if (kept < 1 || kept > groups) fail("topk_group is ", kept, ", expected 1 to n_group = ", groups);
  const int64_t eligible = experts / groups * kept;
  if (k < 1 || k > min(eligible, moe::kMaxTopK))
    fail("top_k is ", k, ", expected 1 to ", min(eligible, moe::kMaxTopK),
         eligible < moe::kMaxTopK && kept < groups ? ", the experts in topk_group groups" : "");
  const moe::Weighing how = weighing(c, kScoring, kRenormalize, kScale);
  c.make_outputs();
  c.run(route_topk::kVariants,
        {.logits = logits.as_rows<const void>(),
         .dtype = logits.dtype,
         .weights = c.out(0).as<float>(),
         .ids = c.out(1).as<int32_t>(),
         .tokens = logits.rows(),
         .experts = experts,
         .selection = {.bias = c.arg(kBias).as<const float>(), .top_k = k, .n_group = groups, .topk_group = kept},
         .weighing = how});
}

void route_hash(Call& c) {
  enum { kLogits, kTokenIds, kTable };
  enum { kScoring, kRenormalize, kScale };
  const TensorView &logits = c.arg(kLogits), &table = c.arg(kTable);
  const int64_t tokens = logits.rows(), experts = logits.last(), k = table.last();
  if (k > moe::kMaxTopK) fail("table has ", k, " experts a token, expected at most ", moe::kMaxTopK);
  const moe::Weighing how = weighing(c, kScoring, kRenormalize, kScale);
  const int32_t* token_ids = c.indices(kTokenIds);
  check_range(c, kTokenIds, "token_ids", token_ids, 0, table.rows());
  int32_t* chosen = c.scratch().take<int32_t>(tokens * k);  // the table is large: only its rows in use are read
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < k; ++j) {
      const int64_t id = given(table, token_ids[t], j);
      if (id < 0 || id >= experts)
        fail("table[", token_ids[t], ", ", j, "] is ", id, ", expected 0 to ", experts - 1);
      chosen[t * k + j] = static_cast<int32_t>(id);
    }
  c.make_outputs();
  int32_t* ids = c.out(1).as<int32_t>();
  for (int64_t i = 0; i < tokens * k; ++i) ids[i] = chosen[i];
  c.run(route_hash::kVariants, {.logits = logits.as_rows<const void>(),
                                .dtype = logits.dtype,
                                .ids = ids,
                                .weights = c.out(0).as<float>(),
                                .tokens = tokens,
                                .experts = experts,
                                .top_k = k,
                                .weighing = how});
}

void moe_permutation(Call& c) {
  enum { kIds };
  enum { kNumExperts, kAlignment, kNumRows };
  const int64_t experts = c.integer(kNumExperts), alignment = c.integer(kAlignment);
  if (experts < 1 || experts >= INT32_MAX) fail("num_experts is ", experts, ", expected 1 to ", INT32_MAX - 1);
  if (alignment < 1 || alignment > INT32_MAX) fail("alignment is ", alignment, ", expected 1 to ", INT32_MAX);
  const moe::Slots slots{c.indices(kIds), c.arg(kIds).rows(), c.arg(kIds).last(), experts};
  if (slots.tokens * slots.top_k > INT32_MAX)
    fail("ids has ", slots.tokens * slots.top_k, " slots, expected at most ", INT32_MAX,
         ", for int32 to number them");
  int32_t* counts = c.scratch().take<int32_t>(slots.blocks() * experts);
  int64_t rows = 0;
  {
    const py::gil_scoped_release unlocked;
    moe::count_slots(slots, counts);
    for (int64_t e = 0; e < experts; ++e) rows += moe::rows_of(slots, counts, e, alignment);
  }
  if (rows > INT32_MAX) fail("ids need ", rows, " rows at this alignment, expected at most ", INT32_MAX);
  if (c.option(kNumRows).present) {
    const int64_t given_rows = c.integer(kNumRows);
    if (given_rows < rows) fail("num_rows is ", given_rows, ", expected at least the ", rows, " rows that ids need");
    if (given_rows > INT32_MAX) fail("num_rows is ", given_rows, ", expected at most ", INT32_MAX);
    rows = given_rows;
  }
  c.set_size("P", rows);
  c.make_outputs();
  c.run(moe_permutation::kVariants, {.slots = slots,
                                     .counts = counts,
                                     .alignment = alignment,
                                     .result = {.expert_offsets = c.out(0).as<int32_t>(),
                                                .row_token = c.out(1).as<int32_t>(),
                                                .row_slot = c.out(2).as<int32_t>(),
                                                .slot_row = c.out(3).as<int32_t>(),
                                                .rows = rows}});
}

void moe_gather(Call& c) {
  enum { kX, kRowToken };
  const TensorView& x = c.arg(kX);
  const int32_t* row_token = c.indices(kRowToken);
  check_range(c, kRowToken, "row_token", row_token, -1, x.rows());
  c.make_outputs();
  c.run(moe_gather::kVariants, {.x = {x.as<const uint8_t>(), x.row_stride() * size_of(x.dtype)},
                                .row_token = row_token,
                                .out = c.out(0).as<uint8_t>(),
                                .rows = c.arg(kRowToken).last(),
                                .bytes = x.last() * size_of(x.dtype),
                                .tokens = x.rows()});
}

void moe_combine(Call& c) {
  enum { kY, kSlotRow, kWeights };
  enum { kOutDtype };
  const TensorView &y = c.arg(kY), &slot_row = c.arg(kSlotRow), &weights = c.arg(kWeights);
  if (const OptionValue& o = c.option(kOutDtype); o.present) {
    constexpr const char* kNames[] = {"float32", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "uint8", "int32",
                                      "int64",   "float16",  "float64",       "int8",           "bool"};
    const auto wanted = static_cast<Dtype>(o.integer);
    if (wanted != Dtype::f32 && wanted != Dtype::bf16)
      fail("out_dtype is ", kNames[o.integer], ", expected float32 or bfloat16");
  }
  const int32_t* rows = c.indices(kSlotRow);
  check_range(c, kSlotRow, "slot_row", rows, -1, y.rows());
  c.make_outputs();
  c.run(moe_combine::kVariants, {.y = y.as_rows<const void>(),
                                 .dtype = y.dtype,
                                 .slot_row = rows,
                                 .weights = weights.present() ? weights.as_rows<const float>() : Rows<const float>{},
                                 .out = c.out(0).data,
                                 .out_dtype = c.out(0).dtype,
                                 .tokens = slot_row.rows(),
                                 .top_k = slot_row.last(),
                                 .dim = y.last(),
                                 .rows = y.rows()});
}

constexpr Binding kBindings[] = {
    {"route_topk", "logits bias top_k scoring n_group topk_group renormalize scale", &route_topk},
    {"route_hash", "logits token_ids table scoring renormalize scale", &route_hash},
    {"moe_permutation", "ids num_experts alignment num_rows", &moe_permutation},
    {"moe_gather", "x row_token", &moe_gather},
    {"moe_combine", "y slot_row weights out_dtype", &moe_combine},
};

}  // namespace

Family moe_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
