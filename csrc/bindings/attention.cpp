// Attention over selected, paged and dense keys.
#include <iterator>

#include "bindings/families.h"
#include "kernels/merge_attn_states/op.h"

namespace sk {
namespace {

void merge_attn_states(Call& c) {
  enum { kOutA, kLseA, kOutB, kLseB };
  const TensorView &a = c.arg(kOutA), &b = c.arg(kOutB);
  c.make_outputs();
  c.run(merge_attn_states::kVariants, {.a = a.as_rows<const void>(),
                                       .b = b.as_rows<const void>(),
                                       .a_dtype = a.dtype,
                                       .b_dtype = b.dtype,
                                       .lse_a = c.arg(kLseA).as<const float>(),
                                       .lse_b = c.arg(kLseB).as<const float>(),
                                       .out = c.out(0).data,
                                       .lse = c.out(1).as<float>(),
                                       .rows = a.rows(),
                                       .dim = a.last()});
}

constexpr Binding kBindings[] = {
    {"merge_attn_states", "out_a lse_a out_b lse_b", &merge_attn_states},
};

}  // namespace

Family attention_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
