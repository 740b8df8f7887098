#include "core/parallel.h"
#include "kernels/merge_attn_states/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::merge_attn_states::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr float kInfinity = __builtin_inff();

static bool is_empty(float lse) { return __builtin_fabsf(lse) == kInfinity; }

// The weight of the side with the larger sum, and ln of both sums together.
struct Balance { float larger, smaller, lse; };
static Balance balance(float larger, float smaller) {
  const F32 ratio = exp(splat(smaller - larger));  // at most 1; NaN where a sum is
  const F32 weight = div(splat(1.0f), add(splat(1.0f), ratio));
  float lanes[3][kLanes];
  store(lanes[0], weight);
  store(lanes[1], mul(weight, ratio));
  store(lanes[2], add(splat(larger), select(ne(ratio, ratio), ratio, log1p(ratio))));
  return {lanes[0][0], lanes[1][0], lanes[2][0]};
}

template <class A, class B>
static float merge(const A* a, float lse_a, const B* b, float lse_b, A* out, int64_t dim) {
  const bool no_a = is_empty(lse_a), no_b = is_empty(lse_b);
  if (no_a || no_b) {  // what an empty side holds is not read
    if (!no_a) map_row(a, out, dim, [&](int64_t i, auto n) { return load(a + i, n); });
    if (!no_b) map_row(b, out, dim, [&](int64_t i, auto n) { return load(b + i, n); });
    if (no_a && no_b) map_row(out, out, dim, [&](int64_t, auto) { return splat(0.0f); });
    return no_a && no_b ? kInfinity : no_a ? lse_b : lse_a;
  }
  const bool swapped = lse_a < lse_b;
  const Balance w = swapped ? balance(lse_b, lse_a) : balance(lse_a, lse_b);
  const F32 weight_a = splat(swapped ? w.smaller : w.larger), weight_b = splat(swapped ? w.larger : w.smaller);
  map_row(a, out, dim,
          [&](int64_t i, auto n) { return fma(load(a + i, n), weight_a, mul(load(b + i, n), weight_b)); });
  return w.lse;
}

void run(const Args& args) {
  with_float_type(args.a_dtype, [&](auto a_type) {
    with_float_type(args.b_dtype, [&](auto b_type) {
      using A = decltype(a_type);
      using B = decltype(b_type);
      parallel_rows(args.rows, 3 * args.dim * size_of(args.a_dtype), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r)
          args.lse[r] = merge(static_cast<const A*>(args.a.data) + r * args.a.stride, args.lse_a[r],
                              static_cast<const B*>(args.b.data) + r * args.b.stride, args.lse_b[r],
                              static_cast<A*>(args.out) + r * args.dim, args.dim);
      });
    });
  });
}

}  // namespace sk::merge_attn_states::SK_ISA
