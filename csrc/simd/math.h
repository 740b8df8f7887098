// Functions made of the vocabulary, hence the same bits everywhere. No vector library: theirs differ between ISAs.
#pragma once

namespace sk::simd::SK_ISA {

SK_INLINE I32 lane_numbers() { return load(kLaneNumbers.at); }  // 0 1 2 ...

SK_INLINE F32 abs(F32 x) { return from_bits(and_(bits(x), splat_i(0x7fffffff))); }
SK_INLINE F32 neg(F32 x) { return from_bits(xor_(bits(x), splat_i(INT32_MIN))); }

// e^x = e^r 2^n with |r| <= ln 2 / 2; a polynomial for e^r. A sum with 1.5 * 2^23 is an integer, and has it in its
// lowest bits: n_bits holds n + kOffset there.
struct SplitExp {
  F32 power, n;
  I32 n_bits;
};
template <int kOffset = 0>
SK_INLINE SplitExp split_exp(F32 x) {
  const F32 integers = splat(12582912.0f + kOffset), sum = fma(x, splat(1.44269504f), integers);
  const F32 n = sub(sum, integers);
  F32 r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  F32 p = splat(1.38144335e-3f);
  p = fma(p, r, splat(8.36879667e-3f));
  p = fma(p, r, splat(4.16683964e-2f));
  p = fma(p, r, splat(1.66665196e-1f));
  p = fma(p, r, splat(0.49999994f));
  p = fma(mul(r, r), p, r);
  return {add(p, splat(1.0f)), n, bits(sum)};
}
// Within 1 ulp. NaN stays NaN: max and min return their second operand then.
SK_INLINE F32 exp(F32 x) {
  const SplitExp e = split_exp(max(splat(-104.0f), min(splat(89.0f), x)));
  return scale_by_power(e.power, e.n);
}
// e^-|x|. No n is above 0, so that n + 64 can be added to the exponent; the product rounds subnormals once.
SK_INLINE F32 exp_minus_abs(F32 x) {
  const SplitExp e = split_exp<64>(max(splat(-104.0f), from_bits(or_(bits(x), splat_i(INT32_MIN)))));
  return mul(from_bits(add(bits(e.power), shl<23>(e.n_bits))), splat(0x1p-64f));
}

// ln(2^e (1 + f)) for f in [sqrt(1/2) - 1, sqrt(2) - 1], within 2 ulp of the result or 1e-7 absolute near 0.
SK_INLINE F32 log_of(I32 e, F32 f) {
  const F32 s = div(f, add(splat(2.0f), f));
  const F32 z = mul(s, s);
  F32 p = splat(0.24279079f);
  p = fma(p, z, splat(0.28498787f));
  p = fma(p, z, splat(0.40000972f));
  p = fma(p, z, splat(0.66666663f));
  const F32 half_square = mul(splat(0.5f), mul(f, f));
  const F32 n = to_float(e);
  // ln(1 + f) = f - (f^2/2 - s (f^2/2 + z p))
  const F32 tail = fma(s, fma(z, p, half_square), mul(n, splat(9.05800061e-6f)));
  return add(fma(n, splat(0.693138123f), sub(f, half_square)), tail);
}
// The e for which 2^-e x is in [sqrt(1/2), sqrt(2)), so that ln(2^-e x) is small where x is near 1.
SK_INLINE I32 exponent(F32 x) { return sra<23>(sub(bits(x), splat_i(0x3f3504f3))); }

// ln x for x > 0 normal.
SK_INLINE F32 log(F32 x) {
  const I32 e = exponent(x);
  return log_of(e, sub(from_bits(sub(bits(x), shl<23>(e))), splat(1.0f)));
}

// ln(1 + x) for 0 <= x: what 1 + x loses in rounding is added to f.
SK_INLINE F32 log1p(F32 x) {
  const F32 u = add(splat(1.0f), x);
  const F32 lost = sub(x, sub(u, splat(1.0f)));
  const I32 e = exponent(u), shift = shl<23>(e);
  const F32 power = from_bits(sub(bits(splat(1.0f)), shift));  // 2^-e
  return log_of(e, fma(lost, power, sub(from_bits(sub(bits(u), shift)), splat(1.0f))));
}

// t is exp_minus_abs(x): so the quotient is as exact for negative x as for positive ones.
SK_INLINE F32 sigmoid_of(F32 x, F32 t) {
  const F32 one = splat(1.0f);
  return div(select(lt(x, splat(0.0f)), t, one), add(one, t));
}
SK_INLINE F32 sigmoid(F32 x) { return sigmoid_of(x, exp_minus_abs(x)); }
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
