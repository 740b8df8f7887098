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

SK_INLINE F32 multiply_add(F32 acc, const bf16* a, const Bf16x2& b) { return dot(acc, splat_pair(a), b); }
template <class Pair>
SK_INLINE F32 multiply_add(F32 acc, const float* a, const Pair& b) {
  return fma(splat(a[0]), even(b), fma(splat(a[1]), odd(b), acc));
}

// What a piece's sum is multiplied with before it is added to c; none: c continues the chain.
struct Fold {
  const float* b_scale;  // [vectors][16]
  const float* a_scale;  // of the tile's first row, or null
  int64_t a_stride;
};

// c[MR rows, 16 * NV columns] += a * b over one piece.
template <class A, Format F, int MR, int NV>
static void tile(const A* const* a_rows, const uint8_t* b, int64_t stride, int64_t steps, int64_t prefetch, float* c,
                 int64_t ldc, const Fold* fold) {
  using W = Stream<F>;
  const A* a[MR];
  F32 acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    a[i] = a_rows[i];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = fold != nullptr ? splat(0.0f) : load(c + i * ldc + v * kLane);
  }

  for (int64_t s = 0; s < steps; ++s, b += W::kChunks * stride) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      typename W::Pair w[W::kPairs];
      __builtin_prefetch(b + v * chunk_bytes(F) + prefetch);
      W::load(b + v * chunk_bytes(F), stride, w);
#pragma GCC unroll 4
      for (int p = 0; p < W::kPairs; ++p)
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) acc[i][v] = multiply_add(acc[i][v], a[i] + 2 * p, w[p]);
      // Broadcasts of a are cheap loads: kept over all vectors they would push accumulators onto the stack.
      if (W::kPairs * MR > 8) asm volatile("" ::: "memory");
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) a[i] += 2 * W::kPairs;
  }

#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* at = c + i * ldc + v * kLane;
      if (fold == nullptr) {
        store(at, acc[i][v]);
      } else {
        F32 scale = load(fold->b_scale + v * kLane);
        if (fold->a_scale != nullptr) scale = mul(scale, splat(fold->a_scale[i * fold->a_stride]));
        store(at, fma(acc[i][v], scale, load(at)));
      }
    }
}

template <class A>
using TileFn = void (*)(const A* const*, const uint8_t*, int64_t, int64_t, int64_t, float*, int64_t, const Fold*);

// Tiles are as tall as the accumulators allow. Where weights are decoded on the way, twice as tall and half as wide:
// each decoded vector then meets more rows, and decoding hides behind the products.
template <class A, Format F, int NV>
constexpr int kTallest = kDotsBf16 && sizeof(A) == 2 && Stream<F>::kPairs > 1 && NV <= 2 ? 2 * kTileRows : kTileRows;

template <class A, Format F, int NV, int MR = kTallest<A, F, NV>>
static TileFn<A> tile_of(int64_t rows) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_of<A, F, NV, MR - 1>(rows);
  return &tile<A, F, MR, NV>;
}
