// Functions made of the vocabulary, hence the same bits everywhere. No vector library: theirs differ between ISAs.
#pragma once

namespace sk::simd::SK_ISA {

SK_INLINE F32 abs(F32 x) { return from_bits(and_(bits(x), splat_i(0x7fffffff))); }
SK_INLINE F32 neg(F32 x) { return from_bits(xor_(bits(x), splat_i(INT32_MIN))); }

// 2^n * x for -252 <= n <= 252, in two steps so that neither factor overflows.
SK_INLINE F32 scale_by_power(F32 x, I32 n) {
  const I32 half = sra<1>(n);
  const F32 a = from_bits(shl<23>(add(half, splat_i(127))));
  const F32 b = from_bits(shl<23>(add(sub(n, half), splat_i(127))));
  return mul(mul(x, a), b);
}

// e^x within 1 ulp. x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial for e^r. NaN stays NaN.
SK_INLINE F32 exp(F32 x) {
  const F32 clamped = max(splat(-104.0f), min(splat(89.0f), x));  // NaN passes: both return their second operand
  const F32 n = round(mul(clamped, splat(1.44269504f)));
  F32 r = fma(n, splat(-0.693145752f), clamped);
  r = fma(n, splat(-1.42860677e-6f), r);
  F32 p = splat(1.98412698e-4f);
  p = fma(p, r, splat(1.38888889e-3f));
  p = fma(p, r, splat(8.33333333e-3f));
  p = fma(p, r, splat(4.16666667e-2f));
  p = fma(p, r, splat(1.66666667e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(mul(r, r), p, r);
  return scale_by_power(add(p, splat(1.0f)), to_int(n));
}

// ln x for x > 0 normal, within 2 ulp of the result or 1e-7 absolute near x = 1.
SK_INLINE F32 log(F32 x) {
  const I32 u = bits(x);
  // m in [sqrt(1/2), sqrt(2)), so that ln m is small where x is near 1.
  const I32 e = sra<23>(sub(u, splat_i(0x3f3504f3)));
  const F32 m = from_bits(sub(u, shl<23>(e)));
  const F32 f = sub(m, splat(1.0f));
  const F32 s = div(f, add(splat(2.0f), f));
  const F32 z = mul(s, s);
  F32 p = splat(0.24279079f);
  p = fma(p, z, splat(0.28498787f));
  p = fma(p, z, splat(0.40000972f));
  p = fma(p, z, splat(0.66666663f));
  const F32 half_square = mul(splat(0.5f), mul(f, f));
  const F32 n = to_float(e);
  // ln m = f - (f^2/2 - s (f^2/2 + z p))
  const F32 tail = fma(s, fma(z, p, half_square), mul(n, splat(9.05800061e-6f)));
  return add(fma(n, splat(0.693138123f), sub(f, half_square)), tail);
}

// ln(1 + x) for 0 <= x: ln(u) corrected for what 1 + x lost in rounding.
SK_INLINE F32 log1p(F32 x) {
  const F32 u = add(splat(1.0f), x);
  const F32 lost = sub(x, sub(u, splat(1.0f)));
  const F32 r = add(log(u), div(lost, u));
  return select(eq(u, splat(1.0f)), x, r);
}

SK_INLINE F32 sigmoid(F32 x) { return div(splat(1.0f), add(splat(1.0f), exp(neg(x)))); }
SK_INLINE F32 silu(F32 x) { return div(x, add(splat(1.0f), exp(neg(x)))); }

// silu(gate) * up with the gate bounded above and up on both sides; limit infinity bounds nothing. NaN passes.
SK_INLINE F32 gated_silu(F32 gate, F32 up, F32 limit) {
  return mul(silu(min(limit, gate)), max(neg(limit), min(limit, up)));
}

// Both element types of activations, chosen at run time outside the loop: body(T{}).
template <class Body>
SK_INLINE void with_float_type(Dtype t, const Body& body) {
  t == Dtype::f32 ? body(float{}) : body(bf16{});
}

}  // namespace sk::simd::SK_ISA
