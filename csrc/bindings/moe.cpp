// Routing, permutation and combination.
#include <algorithm>

#include "bindings/families.h"
#include "bindings/indices.h"
#include "bindings/moe_args.h"
#include "kernels/moe_combine/op.h"
#include "kernels/moe_gather/op.h"
#include "kernels/moe_permutation/op.h"
#include "kernels/route_hash/op.h"
#include "kernels/route_topk/op.h"
#include "kernels/router_gather/op.h"

namespace sk {
namespace {

// The experts of each token as the table has them: [tokens, k] of scratch. The table is large: only its rows in use
// are looked at.
const int32_t* look_up(Call& c, int token_ids_arg, int table_arg, int64_t experts) {
  const TensorView& table = c.arg(table_arg);
  const int64_t tokens = c.arg(token_ids_arg).last(), k = table.last();
  if (k > moe::kMaxTopK) fail("table has ", k, " experts a token, expected at most ", moe::kMaxTopK);
  const int32_t* token_ids = c.indices(token_ids_arg);
  check_range(c, token_ids_arg, "token_ids", token_ids, 0, table.rows());
  int32_t* chosen = c.scratch().take<int32_t>(tokens * k);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < k; ++j) {
      const int64_t id = given(table, token_ids[t], j);
      if (id < 0 || id >= experts)
        fail("table[", token_ids[t], ", ", j, "] is ", id, ", expected 0 to ", experts - 1);
      chosen[t * k + j] = static_cast<int32_t>(id);
    }
  return chosen;
}

void route_topk(Call& c) {
  enum { kLogits, kBias };
  enum { kTopK, kScoring, kNGroup, kTopkGroup, kRenormalize, kScale };
  const TensorView& logits = c.arg(kLogits);
  const moe::Selection how = selection(c, "logits", logits.last(), kBias, kTopK, kNGroup);
  const moe::Weighing weigh = weighing(c, static_cast<moe::Scoring>(c.integer(kScoring)), kRenormalize, kScale);
  c.make_outputs();
  c.run(route_topk::kVariants, {.logits = logits_of(logits),
                                .tokens = logits.rows(),
                                .selection = how,
                                .weighing = weigh,
                                .weights = c.out(0).as<float>(),
                                .ids = c.out(1).as<int32_t>()});
}

void route_hash(Call& c) {
  enum { kLogits, kTokenIds, kTable };
  enum { kScoring, kRenormalize, kScale };
  const TensorView& logits = c.arg(kLogits);
  const int64_t tokens = logits.rows(), k = c.arg(kTable).last();
  const moe::Weighing weigh = weighing(c, static_cast<moe::Scoring>(c.integer(kScoring)), kRenormalize, kScale);
  const int32_t* chosen = look_up(c, kTokenIds, kTable, logits.last());
  c.make_outputs();
  int32_t* ids = c.out(1).as<int32_t>();
  for (int64_t i = 0; i < tokens * k; ++i) ids[i] = chosen[i];
  c.run(route_hash::kVariants, {.logits = logits_of(logits),
                                .tokens = tokens,
                                .top_k = k,
                                .weighing = weigh,
                                .ids = ids,
                                .weights = c.out(0).as<float>()});
}

// Slots whose rows are counted: the results' size "P" is known.
struct Counted {
  moe::Slots slots;
  int32_t* counts;
  int64_t alignment, rows;
};
Counted count_rows(Call& c, const moe::Slots& slots, int alignment_option, int num_rows) {
  const int64_t alignment = c.integer(alignment_option);
  if (alignment < 1 || alignment > INT32_MAX) fail("alignment is ", alignment, ", expected 1 to ", INT32_MAX);
  if (slots.tokens * slots.top_k > INT32_MAX)
    fail("ids has ", slots.tokens * slots.top_k, " slots, expected at most ", INT32_MAX,
         ", for int32 to number them");
  int32_t* counts = c.scratch().take<int32_t>(slots.blocks() * slots.experts);
  int64_t rows = 0;
  {
    const Unlocked unlocked;
    moe::count_slots(slots, counts);
    for (int64_t e = 0; e < slots.experts; ++e) rows += moe::rows_of(slots, counts, e, alignment);
  }
  if (rows > INT32_MAX) fail("ids need ", rows, " rows at this alignment, expected at most ", INT32_MAX);
  if (c.option(num_rows).present) {
    const int64_t wanted = c.integer(num_rows);
    if (wanted < rows) fail("num_rows is ", wanted, ", expected at least the ", rows, " rows that ids need");
    if (wanted > INT32_MAX) fail("num_rows is ", wanted, ", expected at most ", INT32_MAX);
    rows = wanted;
  }
  c.set_size("P", rows);
  return {slots, counts, alignment, rows};
}

// Results from number `first` on are those of a permutation.
moe::Permutation permutation(const Call& c, int first, int64_t rows) {
  return {.expert_offsets = c.out(first).as<int32_t>(),
          .row_token = c.out(first + 1).as<int32_t>(),
          .row_slot = c.out(first + 2).as<int32_t>(),
          .slot_row = c.out(first + 3).as<int32_t>(),
          .rows = rows};
}

void moe_permutation(Call& c) {
  enum { kIds };
  enum { kNumExperts, kAlignment, kNumRows };
  const int64_t experts = c.integer(kNumExperts);
  if (experts < 1 || experts >= INT32_MAX) fail("num_experts is ", experts, ", expected 1 to ", INT32_MAX - 1);
  const TensorView& ids = c.arg(kIds);
  const moe::Slots slots{c.indices(kIds), is_empty(ids) ? 0 : ids.rows(), ids.last(), experts};
  const Counted counted = count_rows(c, slots, kAlignment, kNumRows);
  c.make_outputs();
  c.run(moe_permutation::kVariants, {.slots = slots,
                                     .counts = counted.counts,
                                     .alignment = counted.alignment,
                                     .result = permutation(c, 0, counted.rows)});
}

// Routes, counts rows, makes the results and fills the rows. Ids and weights are scratch until nothing can fail.
void router_gather(Call& c) {
  using namespace router;
  const TensorView &x = c.arg(kX), &router = c.arg(kRouter), &logits = c.arg(kLogits);
  const int64_t tokens = x.rows(), experts = c.size("E"), k = c.integer(kTopK);
  const Routing how = routing_of(c);
  const int32_t* chosen = how.looks_up ? look_up(c, kTokenIds, kTable, experts) : nullptr;

  float* weights = c.scratch().take<float>(tokens * k);
  int32_t* selected = how.looks_up ? nullptr : c.scratch().take<int32_t>(tokens * k);
  const int32_t* ids = how.looks_up ? chosen : selected;
  if (router.present())
    c.run(router_gather::gate::kVariants, {.x = x.as_rows<const void>(),
                                           .dtype = x.dtype,
                                           .router = router.as_rows<const void>(),
                                           .router_dtype = router.dtype,
                                           .tokens = tokens,
                                           .experts = experts,
                                           .dim = x.last(),
                                           .selection = how.selection,
                                           .weighing = how.weighing,
                                           .chosen = chosen,
                                           .weights = weights,
                                           .ids = selected});
  else if (how.looks_up)
    c.run(route_hash::kVariants, {.logits = logits_of(logits),
                                  .tokens = tokens,
                                  .top_k = k,
                                  .weighing = how.weighing,
                                  .ids = chosen,
                                  .weights = weights});
  else
    c.run(route_topk::kVariants, {.logits = logits_of(logits),
                                  .tokens = tokens,
                                  .selection = how.selection,
                                  .weighing = how.weighing,
                                  .weights = weights,
                                  .ids = selected});

  const Counted counted = count_rows(c, {ids, tokens, k, experts}, kAlignment, kNumRows);
  c.make_outputs();
  const moe::Permutation p = permutation(c, kPermutation, counted.rows);
  {
    const Unlocked unlocked;
    std::copy_n(weights, tokens * k, c.out(kWeights).as<float>());
    std::copy_n(ids, tokens * k, c.out(kIds).as<int32_t>());
    moe::permute(counted.slots, counted.counts, counted.alignment, p);
  }
  const bool quantize = c.out(kScales).present();
  c.run(router_gather::place::kVariants, {.x = x.as_rows<const void>(),
                                          .dtype = x.dtype,
                                          .tokens = tokens,
                                          .dim = x.last(),
                                          .top_k = k,
                                          .slot_row = p.slot_row,
                                          .row_token = p.row_token,
                                          .row_count = p.rows,
                                          .quantize = quantize,
                                          .group = c.integer(kGroupSize),
                                          .scale_dtype = c.out(kScales).dtype,
                                          .rows = c.out(kRows).as<uint8_t>(),
                                          .scales = c.out(kScales).as<uint8_t>()});
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
    {"router_gather",
     "x router logits bias token_ids table top_k scoring n_group topk_group renormalize scale quantize alignment "
     "group_size scale_format num_rows",
     &router_gather},
    {"moe_combine", "y slot_row weights out_dtype", &moe_combine},
};

}  // namespace

Family moe_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
