// Ops whose sizes or checks depend on what tensors hold: on a device nobody looks.
#include <iterator>

#include "bindings/families.h"
#include "bindings/moe_args.h"
#include "kernels/moe_permutation/op.h"
#include "kernels/route_hash/op.h"
#include "moe/device.h"

namespace sk {
namespace {

void moe_permutation(Call& c) {
  enum { kIds };
  enum { kNumExperts, kAlignment, kNumRows };
  const int64_t experts = c.integer(kNumExperts), alignment = c.integer(kAlignment);
  if (experts < 1 || experts >= INT32_MAX) fail("num_experts is ", experts, ", expected 1 to ", INT32_MAX - 1);
  if (alignment < 1 || alignment > INT32_MAX) fail("alignment is ", alignment, ", expected 1 to ", INT32_MAX);
  if (!c.option(kNumRows).present) fail("num_rows is None, expected a number of rows: on CUDA nothing waits for it");
  const int64_t rows = c.integer(kNumRows);
  if (rows < 0 || rows > INT32_MAX) fail("num_rows is ", rows, ", expected 0 to ", INT32_MAX);
  const moe::Slots slots{c.indices(kIds), c.arg(kIds).rows(), c.arg(kIds).last(), experts};
  if (slots.tokens * slots.top_k > INT32_MAX)
    fail("ids has ", slots.tokens * slots.top_k, " slots, expected at most ", INT32_MAX,
         ", for int32 to number them");
  c.set_size("P", rows);
  c.make_outputs();
  const int64_t counts = moe::chunks_on_device(slots.tokens * slots.top_k) * experts;
  c.run(moe_permutation::kVariants, {.slots = slots,
                                     .counts = static_cast<int32_t*>(c.device_scratch(counts * size_of(Dtype::i32))),
                                     .alignment = alignment,
                                     .result = {.expert_offsets = c.out(0).as<int32_t>(),
                                                .row_token = c.out(1).as<int32_t>(),
                                                .row_slot = c.out(2).as<int32_t>(),
                                                .slot_row = c.out(3).as<int32_t>(),
                                                .rows = rows}});
}

void route_hash(Call& c) {
  enum { kLogits, kTokenIds, kTable };
  enum { kScoring, kRenormalize, kScale };
  const TensorView &logits = c.arg(kLogits), &table = c.arg(kTable);
  const int64_t k = table.last();
  if (k > moe::kMaxTopK) fail("table has ", k, " experts a token, expected at most ", moe::kMaxTopK);
  const moe::Weighing how = weighing(c, static_cast<moe::Scoring>(c.integer(kScoring)), kRenormalize, kScale);
  c.make_outputs();
  c.run(route_hash::kVariants, {.logits = logits_of(logits),
                                .tokens = logits.rows(),
                                .top_k = k,
                                .weighing = how,
                                .ids = nullptr,
                                .weights = c.out(0).as<float>(),
                                .on_device = {.token_ids = c.indices(kTokenIds),
                                              .table = c.indices(kTable),
                                              .table_rows = table.rows(),
                                              .ids = c.out(1).as<int32_t>()}});
}

constexpr Binding kBindings[] = {
    {"route_hash", "logits token_ids table scoring renormalize scale", &route_hash},
    {"moe_permutation", "ids num_experts alignment num_rows", &moe_permutation},
};

}  // namespace

Family cuda_moe_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
