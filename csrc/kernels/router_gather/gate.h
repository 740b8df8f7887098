// Products of tokens with the rows of a router, both as they lie in memory. Included by cpu.cpp only.
//
// Order of a sum, whatever the tile: lane i of sixteen takes every sixteenth product, k ascending, one chain a lane,
// then the lanes are added up by halves. Pairs of bf16 take every sixteenth pair, as dot() does. That reads weights
// at the speed of memory without packing them, and errs less than a single chain.
#pragma once
#include "moe/routing.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::router_gather::SK_ISA {
using namespace sk::simd::SK_ISA;

// Accumulators that fit the registers: of a lane's sixteen floats AVX2 needs two.
constexpr int kTileTokens = kTileVectors > 1 ? 4 : 2, kTileExperts = kTileVectors > 1 ? 5 : 2;
constexpr int64_t kPiece = 2048;                      // of k: the experts of a tile stay in the first-level cache
constexpr int64_t kBlockTokens = 32, kBlockExperts = 64;  // their sums, and the tokens, in the second-level cache
constexpr int64_t kBlockSums = kBlockTokens * kBlockExperts * kLanes;

template <class X, class W>
constexpr bool kPairs = sizeof(X) == sizeof(bf16) && sizeof(W) == sizeof(bf16);
template <class X, class W>
constexpr int64_t kStep = kPairs<X, W> ? 2 * kLanes : kLanes;

template <int kTokens, int kExperts>
struct Sums {
  F32 of[kTokens][kExperts];
};

// Adds the products of `part` of a step's values.
template <int kTokens, int kExperts, class X, class W, class Part>
SK_INLINE void add_products(Sums<kTokens, kExperts>* sums, const X* const* x, const W* const* w, int64_t k,
                            Part part) {
  F32 a[kTokens];
#pragma GCC unroll 8
  for (int i = 0; i < kTokens; ++i) a[i] = load(x[i] + k, part);
#pragma GCC unroll 8
  for (int j = 0; j < kExperts; ++j) {
    const F32 b = load(w[j] + k, part);
#pragma GCC unroll 8
    for (int i = 0; i < kTokens; ++i) sums->of[i][j] = fma(a[i], b, sums->of[i][j]);
  }
}
template <int kTokens, int kExperts, class X, class W>
SK_INLINE void step(Sums<kTokens, kExperts>* sums, const X* const* x, const W* const* w, int64_t k) {
  if constexpr (!kPairs<X, W>) {
    add_products(sums, x, w, k, All{});
  } else if constexpr (kDotsBf16) {
    Bf16x2 a[kTokens];
#pragma GCC unroll 8
    for (int i = 0; i < kTokens; ++i) a[i] = load_pairs(x[i] + k);
#pragma GCC unroll 8
    for (int j = 0; j < kExperts; ++j) {
      const Bf16x2 b = load_pairs(w[j] + k);
#pragma GCC unroll 8
      for (int i = 0; i < kTokens; ++i) sums->of[i][j] = dot(sums->of[i][j], a[i], b);
    }
  } else {  // the same, half by half: fewer registers
    add_products(sums, x, w, k, Odd{});
    add_products(sums, x, w, k, Even{});
  }
}

// Rows of which only n values are there, as rows of a whole step; zeros add nothing.
template <int kRows, class T>
struct Tail {
  alignas(64) T values[kRows][2 * kLanes] = {};
  const T* rows[kRows];

  Tail(const T* const* from, int64_t k, int64_t n) {
    for (int i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < n; ++j) values[i][j] = from[i][k + j];
      rows[i] = values[i];
    }
  }
};

// sums[i][j] += x[i] * w[j] over `size` values; sums lie as [tokens][kBlockExperts][16].
template <int kTokens, int kExperts, class X, class W>
static void tile(const X* const* x, const W* const* w, int64_t size, float* sums) {
  constexpr int64_t kStride = kBlockExperts * kLanes;
  Sums<kTokens, kExperts> acc;
#pragma GCC unroll 8
  for (int i = 0; i < kTokens; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kExperts; ++j) acc.of[i][j] = load(sums + i * kStride + j * kLanes);
  int64_t k = 0;
  for (; k + kStep<X, W> <= size; k += kStep<X, W>) step(&acc, x, w, k);
  if (k < size) {
    const Tail<kTokens, X> a(x, k, size - k);
    const Tail<kExperts, W> b(w, k, size - k);
    step(&acc, a.rows, b.rows, 0);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTokens; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kExperts; ++j) store(sums + i * kStride + j * kLanes, acc.of[i][j]);
}
// Fewer tokens or experts than a tile holds.
template <int kTokens, int kExperts, class X, class W>
static void tile_of(int64_t tokens, int64_t experts, const X* const* x, const W* const* w, int64_t size,
                    float* sums) {
  if constexpr (kTokens > 1)
    if (tokens < kTokens) return tile_of<kTokens - 1, kExperts>(tokens, experts, x, w, size, sums);
  if constexpr (kExperts > 1)
    if (experts < kExperts) return tile_of<kTokens, kExperts - 1>(tokens, experts, x, w, size, sums);
  tile<kTokens, kExperts>(x, w, size, sums);
}

// logits[i * stride + j] = x[i] * w[j], at most kBlockTokens times kBlockExperts of them; kBlockSums of scratch.
template <class X, class W>
static void multiply_block(Rows<const X> x, int64_t tokens, Rows<const W> w, int64_t experts, int64_t dim,
                           float* sums, float* logits, int64_t stride) {
  const auto sums_of = [&](int64_t i, int64_t j) { return sums + (i * kBlockExperts + j) * kLanes; };
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < experts; ++j) store(sums_of(i, j), splat(0.0f));
  const int64_t piece = tokens <= kTileTokens ? dim : kPiece;  // nothing is read twice
  for (int64_t k = 0; k < dim; k += piece)
    for (int64_t j = 0; j < experts; j += kTileExperts)
      for (int64_t i = 0; i < tokens; i += kTileTokens) {
        const X* a[kTileTokens];
        const W* b[kTileExperts];
        for (int t = 0; t < kTileTokens; ++t) a[t] = x.data + min(i + t, tokens - 1) * x.stride + k;
        for (int e = 0; e < kTileExperts; ++e) b[e] = w.data + min(j + e, experts - 1) * w.stride + k;
        tile_of<kTileTokens, kTileExperts>(tokens - i, experts - j, a, b, min(piece, dim - k), sums_of(i, j));
      }
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < experts; ++j) logits[i * stride + j] = sum(load(sums_of(i, j)));
}

}  // namespace sk::router_gather::SK_ISA
