// Weights from logits, and sums weighted by them. Included by attend.h.

constexpr float kInfinity = __builtin_inff();

SK_INLINE float first_lane(F32 x) {
  float lanes[kLanes];
  store(lanes, x);
  return lanes[0];
}
SK_INLINE float exp_of(float x) { return first_lane(exp(splat(x))); }
SK_INLINE Mask lanes_below(int64_t n) {
  return gt(splat_i(static_cast<int32_t>(max(0, min(n, kLanes)))), lane_numbers());
}

// For each row of queries, over some keys: the largest logit, the sum of the weights e^(logit - top), and the sum of
// the values times these. No key, or none but with logit -infinity: -infinity, 0, and values that mean nothing.
struct Partial {
  float *top, *sum, *values;
  int64_t stride;  // of the rows of values
};

SK_INLINE void store_weights(float* p, F32 x, bool rounded) { store(p, rounded ? even(narrow_pairs(x, x)) : x); }
SK_INLINE void store_weights(bf16* p, F32 x, bool) { store(p, x); }

// The weights of the first `seen` keys; those of the others, up to a multiple of 16, are 0. `to` may be `logits`.
template <class P>
static void weigh(const float* logits, int64_t seen, int64_t keys, F32 scale, P* to, bool rounded, float* top,
                  float* sum_of_weights) {
  F32 most = splat(-kInfinity);
  for (int64_t i = 0; i < seen; i += kLanes) {
    const F32 x = mul(load(logits + i), scale);
    most = max(i + kLanes <= seen ? x : select(lanes_below(seen - i), x, most), most);  // a NaN is passed over
  }
  *top = largest(most);
  const F32 zero = splat(*top == -kInfinity ? 0.0f : *top);
  F32 total = splat(0.0f);
  for (int64_t i = 0; i < keys; i += kLanes) {
    F32 p = exp(sub(mul(load(logits + i), scale), zero));
    if (i + kLanes > seen) p = select(lanes_below(seen - i), p, splat(0.0f));
    total = add(total, p);
    store_weights(to + i, p, rounded);
  }
  *sum_of_weights = sum(total);
}

// Adds one row of `b` to that of `a`.
static void fold(const Partial& a, const Partial& b, int64_t row, int64_t columns) {
  if (b.sum[row] == 0.0f) return;
  const float top = a.top[row] > b.top[row] ? a.top[row] : b.top[row];
  const float keep = a.sum[row] == 0.0f ? 0.0f : exp_of(a.top[row] - top), gain = exp_of(b.top[row] - top);
  a.top[row] = top;
  a.sum[row] = __builtin_fmaf(b.sum[row], gain, a.sum[row] * keep);
  float* const x = a.values + row * a.stride;
  const float* const y = b.values + row * b.stride;
  for (int64_t i = 0; i < columns; i += kLanes)
    store(x + i, fma(load(y + i), splat(gain), mul(load(x + i), splat(keep))));
}

// A row's sums divided, in the order of its columns.
template <class T>
static void store_values(const Columns& c, const float* values, F32 factor, T* out) {
  if (!c.pairs) {
    map_row(values, out, c.count, [&](int64_t i, auto n) { return mul(load(values + i, n), factor); });
    return;
  }
  for (int64_t i = 0; i < c.padded; i += 2 * kLanes) {
    const F32 evens = one_nan(mul(load(values + i), factor)), odds = one_nan(mul(load(values + i + kLanes), factor));
    T block[2 * kLanes];
    T* const to = i + 2 * kLanes <= c.count ? out + i : block;
    store_even_odd(to, evens, odds);
    for (int64_t j = 0; to == block && j < c.count - i; ++j) out[i + j] = block[j];
  }
}

// What is made of one row of a query's sums.
struct Result {
  float factor, max_logit, lse;  // factor: of the values; 0 and the infinities where there was no key
};
static Result finish(float top, float sum, const float* sink) {
  if (sum == 0.0f) return {0.0f, -kInfinity, kInfinity};
  if (sum != sum) return {sum, sum, sum};
  Result r = {1.0f / sum, top, top + first_lane(log(splat(sum)))};
  if (sink == nullptr) return r;
  if (*sink > top) {
    const float share = exp_of(top - *sink);
    r.factor = share / (sum * share + 1.0f);
  } else {
    r.factor = 1.0f / (sum + exp_of(*sink - top));
  }
  return r;
}
