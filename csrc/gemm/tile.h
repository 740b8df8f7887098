// The innermost loop of every GEMM. Included by csrc/gemm/cpu.cpp only, inside the namespace of an instruction set.

struct F32Pair { F32 e, o; };
SK_INLINE F32 even(const F32Pair& p) { return p.e; }
SK_INLINE F32 odd(const F32Pair& p) { return p.o; }

// One step of a weight stream: kPairs pairs of k for 16 columns, kChunks chunks that lie `stride` bytes apart.
template <Format F>
struct Stream;
template <>
struct Stream<Format::f32> {
  static constexpr int kPairs = 1, kChunks = 2;
  using Pair = F32Pair;
  SK_INLINE void load(const uint8_t* p, int64_t stride, Pair* out) {
    out[0] = {from_bits(sk::simd::SK_ISA::load(reinterpret_cast<const int32_t*>(p))),
              from_bits(sk::simd::SK_ISA::load(reinterpret_cast<const int32_t*>(p + stride)))};
  }
};
template <>
struct Stream<Format::bf16> {
  static constexpr int kPairs = 1, kChunks = 1;
  using Pair = Bf16x2;
  SK_INLINE void load(const uint8_t* p, int64_t, Pair* out) { out[0] = load_pairs(p); }
};
template <>
struct Stream<Format::e4m3> {
  static constexpr int kPairs = 2, kChunks = 1;
  using Pair = Bf16x2;
  SK_INLINE void load(const uint8_t* p, int64_t, Pair* out) { decode_e4m3(p, out); }
};
template <>
struct Stream<Format::e2m1> {
  static constexpr int kPairs = 4, kChunks = 1;
  using Pair = Bf16x2;
  SK_INLINE void load(const uint8_t* p, int64_t, Pair* out) { decode_e2m1(p, out); }
};
template <>
struct Stream<Format::bf16_2to4> {
  static constexpr int kPairs = 2, kChunks = 1;
  using Pair = Bf16x2;
  SK_INLINE void load(const uint8_t* p, int64_t, Pair* out) { expand_2to4(load_pairs(p), p + 64, out); }
};
template <>
struct Stream<Format::e4m3_2to4> {
  static constexpr int kPairs = 2, kChunks = 1;
  using Pair = Bf16x2;
  SK_INLINE void load(const uint8_t* p, int64_t, Pair* out) { decode_e4m3_2to4(p, out); }
};

// acc[i] += a[i][k] * b.even + a[i][k + 1] * b.odd, the odd products first. In float32 all rows take the odd ones
// before any takes the even ones: half as many registers for b, and nobody waits for its own sum.
template <int MR, int NV>
SK_INLINE void multiply_add(F32 (&acc)[MR][NV], int v, const bf16* const* a, int64_t k, const Bf16x2& b) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) acc[i][v] = dot(acc[i][v], splat_pair(a[i] + k), b);
}
template <int MR, int NV, class Pair>
SK_INLINE void multiply_add(F32 (&acc)[MR][NV], int v, const float* const* a, int64_t k, const Pair& b) {
  const F32 first = odd(b);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) acc[i][v] = fma(splat(a[i][k + 1]), first, acc[i][v]);
  const F32 second = even(b);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) acc[i][v] = fma(splat(a[i][k]), second, acc[i][v]);
}

// Some chunks of some vectors, `steps` of the stream for every segment that has scales of its own.
struct Run {
  const uint8_t* b;
  int64_t stride;  // bytes from chunk to chunk
  int64_t segments, steps;
  const uint8_t* ahead;  // what to fetch meanwhile, `ahead_step` bytes a step
  int64_t ahead_step;
};

// What a segment's sum is multiplied with before it is added to c; without scales c continues the chain.
struct Fold {
  const float* b_scale;  // [segments][b_stride], a lane each, or null: no scales
  int64_t b_stride;
  const float* a_scale;  // of the tile's rows, or null
};

// c[MR rows, 16 * NV columns] += a * b over one piece.
template <class A, Format F, int MR, int NV>
static void tile(const A* const* a_rows, const Run& run, float* c, int64_t ldc, const Fold& fold) {
  using W = Stream<F>;
  const A* a[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) a[i] = a_rows[i];
  const uint8_t *b = run.b, *ahead = run.ahead;
  const float* b_scale = fold.b_scale;
  int64_t k = 0;

  for (int64_t segment = 0; segment < run.segments; ++segment, b_scale += fold.b_stride) {
    F32 acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = b_scale != nullptr ? splat(0.0f) : load(c + i * ldc + v * kLane);

    for (int64_t s = 0; s < run.steps; ++s) {
      if constexpr (MR <= 2) {
        // Few sums, which would wait for their own last products: all of them take one pair, then the next.
        typename W::Pair w[NV][W::kPairs];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          __builtin_prefetch(ahead + v * kChunk);
          W::load(b + v * chunk_bytes(F), run.stride, w[v]);
        }
#pragma GCC unroll 4
        for (int p = 0; p < W::kPairs; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) multiply_add(acc, v, a, k + 2 * p, w[v][p]);
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          typename W::Pair w[W::kPairs];
          __builtin_prefetch(ahead + v * kChunk);
          W::load(b + v * chunk_bytes(F), run.stride, w);
#pragma GCC unroll 4
          for (int p = 0; p < W::kPairs; ++p) multiply_add(acc, v, a, k + 2 * p, w[p]);
          // Broadcasts of a are cheap loads: kept over all vectors they would push accumulators onto the stack.
          if (W::kPairs * MR > 8) asm volatile("" ::: "memory");
        }
      }
      k += 2 * W::kPairs;
      b += W::kChunks * run.stride;
      ahead += run.ahead_step;
    }

#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* at = c + i * ldc + v * kLane;
        if (b_scale == nullptr) {
          store(at, acc[i][v]);
        } else {
          F32 scale = load(b_scale + v * kLane);
          if (fold.a_scale != nullptr) scale = mul(scale, splat(fold.a_scale[i]));
          store(at, fma(acc[i][v], scale, load(at)));
        }
      }
  }
}

template <class A>
using TileFn = void (*)(const A* const*, const Run&, float*, int64_t, const Fold&);

// Tiles are as tall as the accumulators allow. Narrow ones are taller: each vector of weights meets more rows, and
// decoding it hides behind the products.
template <int NV>
constexpr int kTallest = static_cast<int>(min(kAccumulators / NV, 12));

template <class A, Format F, int NV, int MR = kTallest<NV>>
static TileFn<A> tile_of(int64_t rows) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_of<A, F, NV, MR - 1>(rows);
  return &tile<A, F, MR, NV>;
}
