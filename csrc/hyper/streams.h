// Hyper-connections: a token has n residual streams instead of one. What their ops take.
#pragma once
#include "core/types.h"

namespace sk::hyper {

inline constexpr int64_t kMaxStreams = 16;

// Streams of tokens: row token * n + i is stream i, `dim` values long.
struct Streams {
  Rows<const void> x;
  Dtype dtype;
  int64_t tokens, n, dim;
};

// From a token's streams to numbers: mix[j] = x . fn[j] / rms(x), over all its streams as one row.
struct Mixer {
  Rows<const float> fn;  // [outputs, n * dim]
  int64_t outputs;
  const float *scale, *base;  // of the mixes; base: [outputs]
  float rms_eps, eps;
  float* sums;    // scratch, threads() * sums_floats(outputs)
  float* packed;  // scratch, packed_floats(...), or null: fn is read where it is
};

// Tokens worked on together, and values of a stream that are summed from zero.
inline constexpr int64_t kTile = 16, kPiece = 256;

// For a tile of tokens: sixteen lanes of every output's sum, and of the squares'.
constexpr int64_t sums_floats(int64_t outputs) { return kTile * (outputs + 1) * 16; }

// fn piece by piece: [pieces of dim][n][outputs][kPiece]. Its own rows often lie a power of two apart, where a cache
// keeps eight of them at best.
constexpr int64_t packed_floats(int64_t n, int64_t dim, int64_t outputs) {
  return ceil_div(dim, kPiece) * n * outputs * kPiece;
}

// What mhc_pre makes of streams.
struct Pre {
  Streams in;
  Mixer mixer;    // outputs: n of `pre`, n of `post`, n * n of `comb`, each kind with a scale
  void* layer_in;  // [tokens, dim] of in.dtype
  float* post;     // [tokens, n]
  float* comb;     // [tokens, n, n]
  int64_t iters;
  float post_mult;
};

// What mhc_post makes of a layer's result and the streams before it.
struct Post {
  Rows<const void> y;  // [tokens, dim]
  Dtype y_dtype;
  Streams in;
  const float *post, *comb;  // [tokens, n], [tokens, n, n]
  void* out;                 // [tokens, n, dim] of in.dtype
};

}  // namespace sk::hyper
