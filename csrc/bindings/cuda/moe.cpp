// Ops whose sizes or checks depend on what tensors hold: on a device nobody looks.
#include <iterator>

#include "bindings/families.h"
#include "bindings/moe_args.h"
#include "kernels/moe_permutation/op.h"
#include "kernels/route_hash/op.h"
#include "kernels/route_topk/op.h"
#include "kernels/router_gather/op.h"
#include "moe/device.h"

namespace sk {
namespace {

// Room for the rows of the slots, as many as the caller says, from result number `first` on; then they are filled.
moe::Permutation permute(Call& c, const moe::Slots& slots, int alignment_option, int num_rows, int first) {
  const int64_t alignment = c.integer(alignment_option), rows = c.integer(num_rows);
  const moe::Permutation result = {.expert_offsets = c.out(first).as<int32_t>(),
                                   .row_token = c.out(first + 1).as<int32_t>(),
                                   .row_slot = c.out(first + 2).as<int32_t>(),
                                   .slot_row = c.out(first + 3).as<int32_t>(),
                                   .rows = rows};
  const int64_t counts = moe::chunks_on_device(slots.tokens * slots.top_k) * slots.experts;
  c.run(moe_permutation::kVariants, {.slots = slots,
                                     .counts = static_cast<int32_t*>(c.device_scratch(counts * size_of(Dtype::i32))),
                                     .alignment = alignment,
                                     .result = result});
  return result;
}
void check_rows(Call& c, int64_t slots, int alignment_option, int num_rows) {
  const int64_t alignment = c.integer(alignment_option);
  if (alignment < 1 || alignment > INT32_MAX) fail("alignment is ", alignment, ", expected 1 to ", INT32_MAX);
  if (!c.option(num_rows).present) fail("num_rows is None, expected a number of rows: on CUDA nothing waits for it");
  const int64_t rows = c.integer(num_rows);
  if (rows < 0 || rows > INT32_MAX) fail("num_rows is ", rows, ", expected 0 to ", INT32_MAX);
  if (slots > INT32_MAX)
    fail("ids has ", slots, " slots, expected at most ", INT32_MAX, ", for int32 to number them");
  c.set_size("P", rows);
}

void moe_permutation(Call& c) {
  enum { kIds };
  enum { kNumExperts, kAlignment, kNumRows };
  const int64_t experts = c.integer(kNumExperts);
  if (experts < 1 || experts >= INT32_MAX) fail("num_experts is ", experts, ", expected 1 to ", INT32_MAX - 1);
  check_rows(c, c.arg(kIds).size(), kAlignment, kNumRows);
  c.make_outputs();
  permute(c, {c.indices(kIds), c.arg(kIds).rows(), c.arg(kIds).last(), experts}, kAlignment, kNumRows, 0);
}

struct Table { int ids, table; };  // arguments
void weigh_table(Call& c, const moe::Logits& logits, int64_t tokens, Table from, const moe::Weighing& how,
                 float* weights, int32_t* ids) {
  const TensorView& table = c.arg(from.table);
  c.run(route_hash::kVariants, {.logits = logits,
                                .tokens = tokens,
                                .top_k = table.last(),
                                .weighing = how,
                                .ids = nullptr,
                                .weights = weights,
                                .on_device = {.token_ids = c.indices(from.ids),
                                              .table = c.indices(from.table),
                                              .table_rows = table.rows(),
                                              .ids = ids}});
}
void check_table(const Call& c, int table) {
  const int64_t k = c.arg(table).last();
  if (k > moe::kMaxTopK) fail("table has ", k, " experts a token, expected at most ", moe::kMaxTopK);
}

void route_hash(Call& c) {
  enum { kLogits, kTokenIds, kTable };
  enum { kScoring, kRenormalize, kScale };
  const TensorView& logits = c.arg(kLogits);
  check_table(c, kTable);
  const moe::Weighing how = weighing(c, static_cast<moe::Scoring>(c.integer(kScoring)), kRenormalize, kScale);
  c.make_outputs();
  weigh_table(c, logits_of(logits), logits.rows(), {kTokenIds, kTable}, how, c.out(0).as<float>(),
              c.out(1).as<int32_t>());
}

// Logits, routes, rows for the experts, and what comes into them, one launch after the other.
void router_gather(Call& c) {
  using namespace router;
  const TensorView &x = c.arg(kX), &router = c.arg(kRouter);
  const int64_t tokens = x.rows(), experts = c.size("E"), k = c.integer(kTopK);
  const Routing how = routing_of(c);
  if (how.looks_up) check_table(c, kTable);
  check_rows(c, tokens * k, kAlignment, kNumRows);
  c.make_outputs();
  auto* const weights = c.out(kWeights).as<float>();
  auto* const ids = c.out(kIds).as<int32_t>();
  moe::Logits logits{};
  if (router.present()) {
    float* const made = c.floats(0, tokens * experts);
    c.run(router_gather::gate::kVariants, {.x = x.as_rows<const void>(),
                                           .dtype = x.dtype,
                                           .router = router.as_rows<const void>(),
                                           .router_dtype = router.dtype,
                                           .tokens = tokens,
                                           .experts = experts,
                                           .dim = x.last(),
                                           .selection = how.selection,
                                           .weighing = how.weighing,
                                           .chosen = nullptr,
                                           .weights = nullptr,
                                           .ids = nullptr,
                                           .logits = made});
    logits = {{made, experts}, Dtype::f32, experts};
  } else {
    logits = logits_of(c.arg(kLogits));
  }
  if (how.looks_up)
    weigh_table(c, logits, tokens, {kTokenIds, kTable}, how.weighing, weights, ids);
  else
    c.run(route_topk::kVariants, {.logits = logits,
                                  .tokens = tokens,
                                  .selection = how.selection,
                                  .weighing = how.weighing,
                                  .weights = weights,
                                  .ids = ids});
  const moe::Permutation p = permute(c, {ids, tokens, k, experts}, kAlignment, kNumRows, kPermutation);
  c.run(router_gather::place::kVariants, {.x = x.as_rows<const void>(),
                                          .dtype = x.dtype,
                                          .tokens = tokens,
                                          .dim = x.last(),
                                          .top_k = k,
                                          .slot_row = p.slot_row,
                                          .row_token = p.row_token,
                                          .row_count = p.rows,
                                          .quantize = c.out(kScales).present(),
                                          .group = c.integer(kGroupSize),
                                          .scale_dtype = c.out(kScales).dtype,
                                          .rows = c.out(kRows).as<uint8_t>(),
                                          .scales = c.out(kScales).as<uint8_t>()});
}

constexpr Binding kBindings[] = {
    {"route_hash", "logits token_ids table scoring renormalize scale", &route_hash},
    {"moe_permutation", "ids num_experts alignment num_rows", &moe_permutation},
    {"router_gather",
     "x router logits bias token_ids table top_k scoring n_group topk_group renormalize scale quantize alignment "
     "group_size scale_format num_rows",
     &router_gather},
};

}  // namespace

Family cuda_moe_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
