// What the routers read alike, on CPUs and devices.
#pragma once
#include <cmath>

#include "bindings/call.h"
#include "moe/routing.h"

namespace sk {

inline moe::Weighing weighing(const Call& c, moe::Scoring scoring, int renormalize, int scale) {
  if (!std::isfinite(c.real(scale))) fail("scale is ", c.real(scale), ", expected a finite number");
  return {scoring, c.flag(renormalize), c.real(scale)};
}

// `experts_of` has them as columns; options come in the order top_k, (scoring), n_group, topk_group.
inline moe::Selection selection(const Call& c, const char* experts_of, int64_t experts, int bias, int top_k,
                                int n_group) {
  const int64_t k = c.integer(top_k), groups = c.integer(n_group), kept = c.integer(n_group + 1);
  if (experts > moe::kMaxExperts) fail(experts_of, " has ", experts, " experts, expected at most ", moe::kMaxExperts);
  if (groups < 1 || experts % groups != 0)
    fail("n_group is ", groups, ", expected a divisor of the ", experts, " experts");
  if (kept < 1 || kept > groups) fail("topk_group is ", kept, ", expected 1 to n_group = ", groups);
  const int64_t eligible = experts / groups * kept;
  if (k < 1 || k > min(eligible, moe::kMaxTopK))
    fail("top_k is ", k, ", expected 1 to ", min(eligible, moe::kMaxTopK),
         eligible < moe::kMaxTopK && kept < groups ? ", the experts in topk_group groups" : "");
  return {.bias = c.arg(bias).as<const float>(), .top_k = k, .n_group = groups, .topk_group = kept};
}

inline moe::Logits logits_of(const TensorView& t) { return {t.as_rows<const void>(), t.dtype, t.last()}; }

// Of router_gather: its arguments, options and results.
namespace router {
enum { kX, kRouter, kLogits, kBias, kTokenIds, kTable };
enum { kTopK, kScoring, kNGroup, kTopkGroup, kRenormalize, kScale };
enum { kQuantize = kScale + 1, kAlignment, kGroupSize, kScaleFormat, kNumRows };
enum { kRows, kScales, kWeights, kIds, kPermutation };
}  // namespace router

struct Routing {
  bool looks_up;  // experts in a table
  moe::Weighing weighing;
  moe::Selection selection;
};
inline Routing routing_of(const Call& c) {
  using namespace router;
  const bool looks_up = c.arg(kTable).present(), multiplies = c.arg(kRouter).present();
  if (multiplies == c.arg(kLogits).present())
    fail("router and logits are both ", multiplies ? "given" : "None", ", expected one of them");
  if (looks_up != c.arg(kTokenIds).present())
    fail(looks_up ? "token_ids is None, expected a tensor with table"
                  : "table is None, expected a tensor with token_ids");
  if (looks_up && (c.arg(kBias).present() || c.integer(kNGroup) != 1 || c.integer(kTopkGroup) != 1))
    fail("bias, n_group or topk_group is given, expected none with a table: it says which experts");
  const auto scoring = c.option(kScoring).present ? static_cast<moe::Scoring>(c.integer(kScoring))
                       : looks_up                 ? moe::Scoring::sqrtsoftplus
                                                  : moe::Scoring::sigmoid;
  const moe::Weighing weighs = weighing(c, scoring, kRenormalize, kScale);
  if (looks_up) return {true, weighs, {.bias = nullptr, .top_k = c.integer(kTopK), .n_group = 1, .topk_group = 1}};
  return {false, weighs, selection(c, multiplies ? "router" : "logits", c.size("E"), kBias, kTopK, kNGroup)};
}

}  // namespace sk
