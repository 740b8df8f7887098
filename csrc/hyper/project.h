// x . fn over all streams of tokens, and their squares.
//
// Sixteen lanes along the row, a piece of a stream at a time, each piece from zero: what the pieces and then the
// lanes add up to depends on the token alone. A piece of fn stays in L1 while the tile's tokens pass by.
#pragma once
#include "core/parallel.h"
#include "core/variant.h"
#include "hyper/lanes.h"

namespace sk::hyper::SK_ISA {

// Accumulators that fit the registers. AVX2 has 16 of them, two to a vector.
constexpr int kTogether = Isa::SK_ISA >= Isa::avx512 ? 2 : 1, kGroup = 6;

// sums[t][j] += x[t] . fn[j], lane by lane, over one piece of n values; x is padded with zeros to whole vectors.
template <int kTokens, int kOutputs>
static void multiply_piece(const float* x, int64_t n, Rows<const float> fn, float* sums, int64_t sums_stride) {
  F32 acc[kTokens][kOutputs];
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 6
    for (int j = 0; j < kOutputs; ++j) acc[t][j] = splat(0.0f);
  const auto step = [&](int64_t i, auto lanes) {
    F32 v[kTokens];
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) v[t] = load(x + t * kPiece + i);
#pragma GCC unroll 6
    for (int j = 0; j < kOutputs; ++j) {
      const F32 w = load(fn.data + j * fn.stride + i, lanes);
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; ++t) acc[t][j] = fma(v[t], w, acc[t][j]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(i, All{});
  if (i < n) step(i, n - i);
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 6
    for (int j = 0; j < kOutputs; ++j) {
      float* s = sums + t * sums_stride + j * kLanes;
      store(s, add(load(s), acc[t][j]));
    }
}

// A piece of x as floats, padded with zeros; adds its squares to `squares` if there is such a place.
template <class T>
static void widen_piece(const T* x, int64_t n, float* wide, float* squares) {
  F32 acc = splat(0.0f);
  const auto step = [&](int64_t i, auto lanes) {
    const F32 v = load(x + i, lanes);
    store(wide + i, v);
    acc = fma(v, v, acc);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(i, All{});
  if (i < n) step(i, n - i);
  if (squares != nullptr) store(squares, add(load(squares), acc));
}

template <class T, int kTokens>
static void project_tokens(const T* x, int64_t stride, int64_t n, Rows<const float> fn, int64_t first, int64_t last,
                           float* sums, int64_t outputs) {
  const int64_t sums_stride = (outputs + 1) * kLanes;
  alignas(64) float wide[kTokens * kPiece];
  for (int t = 0; t < kTokens; ++t)  // whoever has the first output adds the squares
    widen_piece(x + t * stride, n, wide + t * kPiece,
                first == 0 ? sums + t * sums_stride + outputs * kLanes : nullptr);
  const auto fn_at = [&](int64_t j) { return Rows<const float>{fn.data + j * fn.stride, fn.stride}; };
  const auto outputs_at = [&](int64_t j) { return sums + j * kLanes; };
  int64_t j = first;
  for (; j + kGroup <= last; j += kGroup)
    multiply_piece<kTokens, kGroup>(wide, n, fn_at(j), outputs_at(j), sums_stride);
  for (; j + 2 <= last; j += 2) multiply_piece<kTokens, 2>(wide, n, fn_at(j), outputs_at(j), sums_stride);
  for (; j < last; ++j) multiply_piece<kTokens, 1>(wide, n, fn_at(j), outputs_at(j), sums_stride);
}

// A tile's tokens: x is the first one's first stream.
template <class T>
struct Tile {
  const T* x;
  int64_t stride, tokens, n, dim;  // stride: from stream to stream
};

// Where a piece of fn lies for one stream: the first output's, and from one output to the next.
static Rows<const float> piece_of_fn(const Mixer& m, int64_t n, int64_t dim, int64_t stream, int64_t at) {
  if (m.packed != nullptr) return {m.packed + (at * n + stream * kPiece) * m.outputs, kPiece};
  return {m.fn.data + stream * dim + at, m.fn.stride};
}

static void pack(const Mixer& m, int64_t n, int64_t dim) {
  parallel_for(ceil_div(dim, kPiece) * n, [&](int64_t item, int) {
    const int64_t at = item / n * kPiece, stream = item % n;
    const float* from = m.fn.data + stream * dim + at;
    float* to = m.packed + item * m.outputs * kPiece;
    for (int64_t j = 0; j < m.outputs; ++j)
      __builtin_memcpy(to + j * kPiece, from + j * m.fn.stride,
                       static_cast<__SIZE_TYPE__>(min(kPiece, dim - at)) * sizeof(float));
  });
}

// The part of outputs first .. last that values [at, at + size) of every stream contribute.
template <class T>
static void project_piece(const Tile<T>& tile, int64_t at, int64_t size, const Mixer& m, int64_t first, int64_t last,
                          float* sums) {
  // The next token's values come from far away, and from where no prefetcher looks.
  constexpr int64_t kAhead = 2, kLine = 64 / sizeof(T);
  const int64_t token = tile.n * tile.stride, one = (m.outputs + 1) * kLanes;
  for (int64_t stream = 0; stream < tile.n; ++stream) {
    const T* x = tile.x + stream * tile.stride + at;
    const Rows<const float> fn = piece_of_fn(m, tile.n, tile.dim, stream, at);
    for (int64_t t = 0; t < tile.tokens; t += kTogether) {
      const T* later = x + (t + kAhead) * token;
      if (t + kAhead >= tile.tokens) later += tile.stride - tile.tokens * token;
      for (int64_t i = 0; i < kTogether * kPiece; i += kLine) __builtin_prefetch(later + i);
      if (t + kTogether <= tile.tokens)
        project_tokens<T, kTogether>(x + t * token, token, size, fn, first, last, sums + t * one, m.outputs);
      else
        project_tokens<T, 1>(x + t * token, token, size, fn, first, last, sums + t * one, m.outputs);
    }
  }
}

// The mixes of a tile's tokens, a token a lane.
static void finish_mixes(const float* sums, int64_t tokens, const Mixer& m, int64_t size, F32* mix) {
  const int64_t all = m.outputs + 1;
  float totals[kTile] = {};
  const auto total_of = [&](int64_t j) {
    for (int64_t t = 0; t < tokens; ++t) totals[t] = sum(load(sums + (t * all + j) * kLanes));
    return load(totals);
  };
  const F32 mean = div(total_of(m.outputs), splat(static_cast<float>(size)));
  const F32 inverse = div(splat(1.0f), sqrt(add(mean, splat(m.rms_eps))));
  for (int64_t j = 0; j < m.outputs; ++j) mix[j] = mul(total_of(j), inverse);
}

// What makes the streams, piece by piece, before they are read: nothing, where they are there already.
struct Ready {
  template <class T>
  void operator()(const Tile<T>&, int64_t, int64_t, int64_t) const {}
  static constexpr bool kReady = true;
};

// For every tile of tokens: before(tile, first token, at, size) for each piece of the streams, then
// finish(tile, first token, mix) with its tokens' mixes. Few tokens do not fill the threads: these share the outputs.
template <class T, class Before, class Finish>
static void mix_tokens(const Streams& s, const Mixer& m, const Before& before, const Finish& finish) {
  const int64_t tiles = ceil_div(s.tokens, kTile), size = s.n * s.dim, pieces = ceil_div(s.dim, kPiece);
  const auto tile_of = [&](int64_t i) {
    const T* x = static_cast<const T*>(s.x.data) + i * kTile * s.n * s.x.stride;
    return Tile<T>{x, s.x.stride, min(kTile, s.tokens - i * kTile), s.n, s.dim};
  };
  const auto sums_of = [&](int64_t i) { return m.sums + i * sums_floats(m.outputs); };
  const auto clear = [&](float* sums) {
    for (int64_t i = 0; i < sums_floats(m.outputs); i += kLanes) store(sums + i, splat(0.0f));
  };
  const auto done = [&](int64_t i, const float* sums) {
    F32 mix[kMaxStreams * (kMaxStreams + 2)];
    const Tile<T> tile = tile_of(i);
    finish_mixes(sums, tile.tokens, m, size, mix);
    finish(tile, i * kTile, mix);
  };
  const bool worth_threads = s.tokens * size * (m.outputs + 4) > 1 << 18;
  if (m.packed != nullptr) pack(m, s.n, s.dim);
  if (tiles >= threads() || !worth_threads) {
    parallel_for(
        tiles,
        [&](int64_t i, int worker) {
          const Tile<T> tile = tile_of(i);
          float* sums = sums_of(worker);
          clear(sums);
          for (int64_t p = 0; p < pieces; ++p) {
            const int64_t at = p * kPiece, length = min(kPiece, s.dim - at);
            before(tile, i * kTile, at, length);
            project_piece(tile, at, length, m, 0, m.outputs, sums);
          }
          done(i, sums);
        },
        worth_threads);
    return;
  }
  for (int64_t i = 0; i < tiles; ++i) clear(sums_of(i));
  if constexpr (!Before::kReady)
    parallel_for(tiles * pieces, [&](int64_t item, int) {
      const int64_t i = item / pieces, at = item % pieces * kPiece;
      before(tile_of(i), i * kTile, at, min(kPiece, s.dim - at));
    });
  const int64_t groups = ceil_div(m.outputs, kGroup);
  parallel_for(tiles * groups, [&](int64_t item, int) {
    const int64_t i = item / groups, first = item % groups * kGroup;
    for (int64_t p = 0; p < pieces; ++p)
      project_piece(tile_of(i), p * kPiece, min(kPiece, s.dim - p * kPiece), m, first, min(first + kGroup, m.outputs),
                    sums_of(i));
  });
  parallel_for(tiles, [&](int64_t i, int) { done(i, sums_of(i)); });
}

}  // namespace sk::hyper::SK_ISA
