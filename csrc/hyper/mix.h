// The three steps of a hyper-connection: streams to a layer's input, its result back to streams, streams to the head.
#pragma once
#include "hyper/project.h"

namespace sk::hyper::SK_ISA {

// sigmoid(mix * scale + base): outputs first ... first + n, the scale of their kind.
static void gates(const Mixer& m, int64_t kind, int64_t first, int64_t n, F32* mix) {
  for (int64_t j = first; j < first + n; ++j)
    mix[j] = sigmoid(add(mul(mix[j], splat(m.scale[kind])), splat(m.base[j])));
}

template <class T>
SK_INLINE void weighted_sum(const T* x, int64_t stride, const float* weight, int64_t n, int64_t dim, T* y) {
  map_row(x, y, dim, [&](int64_t i, auto lanes) {
    F32 acc = mul(splat(weight[0]), load(x + i, lanes));
#pragma GCC unroll 4
    for (int64_t s = 1; s < n; ++s) acc = fma(splat(weight[s]), load(x + s * stride + i, lanes), acc);
    return acc;
  });
}

// y[t] = sum of weight[i] lane t * stream i, ascending i.
template <class T>
static void collapse(const Tile<T>& tile, const F32* weight, T* y) {
  float weights[kTile * kMaxStreams];
  store_tokens(weight, tile.n, weights, tile.tokens);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    const T* x = tile.x + t * tile.n * tile.stride;
    const float* w = weights + t * tile.n;
    T* to = y + t * tile.dim;
    tile.n == 4 ? weighted_sum(x, tile.stride, w, 4, tile.dim, to)
                : weighted_sum(x, tile.stride, w, tile.n, tile.dim, to);
  }
}

template <class T, class Before>
static void pre(const Pre& a, const Before& before) {
  const int64_t n = a.in.n;
  mix_tokens<T>(a.in, a.mixer, before, [&](const Tile<T>& tile, int64_t first, F32* mix) {
    gates(a.mixer, 0, 0, n, mix);
    gates(a.mixer, 1, n, n, mix);
    F32 *post = mix + n, *comb = mix + 2 * n;
    for (int64_t i = 0; i < n; ++i) {
      mix[i] = add(mix[i], splat(a.mixer.eps));
      post[i] = mul(post[i], splat(a.post_mult));
    }
    for (int64_t i = 0; i < n * n; ++i)
      comb[i] = add(mul(comb[i], splat(a.mixer.scale[2])), splat(a.mixer.base[2 * n + i]));
    balance(comb, n, a.iters, a.mixer.eps);
    store_tokens(post, n, a.post + first * n, tile.tokens);
    store_tokens(comb, n * n, a.comb + first * n * n, tile.tokens);
    collapse(tile, mix, static_cast<T*>(a.layer_in) + first * a.in.dim);
  });
}

// out[k] = post[k] * y + sum over i of comb[i, k] * x[i], ascending i: `size` values of one token's n streams.
template <class T, class Y>
SK_INLINE void expand_streams(const Y* y, Rows<const T> x, const float* post, const float* comb, int64_t n,
                              int64_t size, Rows<T> out) {
  constexpr int64_t kKept = 4;
  const int64_t kept = min(n, kKept);
  const auto step = [&](int64_t i, auto lanes) {
    F32 v[kKept];
    const F32 layer = load(y + i, lanes);
    const auto stream = [&](int64_t s) { return load(x.data + s * x.stride + i, lanes); };
#pragma GCC unroll 4
    for (int64_t s = 0; s < kept; ++s) v[s] = stream(s);
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) {
      F32 acc = mul(splat(post[k]), layer);
#pragma GCC unroll 4
      for (int64_t s = 0; s < n; ++s) acc = fma(splat(comb[s * n + k]), s < kKept ? v[s] : stream(s), acc);
      store_result(out.data + k * out.stride + i, acc, lanes);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) step(i, All{});
  if (i < size) step(i, size - i);
}

// Values [at, at + size) of one token.
template <class T, class Y>
static void expand(const Post& a, int64_t token, int64_t at, int64_t size) {
  const int64_t n = a.in.n, stride = a.in.x.stride;
  const Y* y = static_cast<const Y*>(a.y.data) + token * a.y.stride + at;
  const Rows<const T> x = {static_cast<const T*>(a.in.x.data) + token * n * stride + at, stride};
  const Rows<T> out = {static_cast<T*>(a.out) + token * n * a.in.dim + at, a.in.dim};
  const float *post = a.post + token * n, *comb = a.comb + token * n * n;
  n == 4 ? expand_streams(y, x, post, comb, 4, size, out) : expand_streams(y, x, post, comb, n, size, out);
}

template <class T, class Y>
struct Expanded {  // mhc_post as what comes before mhc_pre
  const Post& post;
  static constexpr bool kReady = false;
  void operator()(const Tile<T>& tile, int64_t first, int64_t at, int64_t size) const {
    for (int64_t t = 0; t < tile.tokens; ++t) expand<T, Y>(post, first + t, at, size);
  }
};

// body(T{}, Y{}) with the element types of the streams and of the layer's result.
template <class Body>
SK_INLINE void with_types(const Post& a, const Body& body) {
  with_float_type(a.in.dtype, [&](auto t) { with_float_type(a.y_dtype, [&](auto y) { body(t, y); }); });
}

}  // namespace sk::hyper::SK_ISA
