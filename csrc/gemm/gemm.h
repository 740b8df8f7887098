// The GEMM core's contract: c[i, j] = sum_k a[i, k] * w[j, k], for weights of any format, packed or not.
//
// Order of the sum, the same for every instruction set, tile, thread count and batch (docs/numerics.md):
//   within a piece, k ascends in pairs; of a pair the odd product is added before the even one (as VDPBF16PS does);
//   without scales one chain runs over all pieces;
//   with scales each piece is summed from zero and then c = fma(piece, a_scale * b_scale, c).
// A piece is at most kPiece long and ends where a scale changes.
#pragma once
#include "core/types.h"
#include "gemm/blocking.h"

namespace sk::gemm {

// 2:4: of every four k's of a column two have a value, and a mask of four bits says which.
enum class Format : int { f32, bf16, e4m3, e2m1, bf16_2to4, e4m3_2to4 };
constexpr int kFormats = 6;
constexpr bool is_2to4(Format f) { return f >= Format::bf16_2to4; }

// A chunk is some consecutive k's of 16 columns. Panels are 64 columns wide (the last one may be narrower, in steps
// of 16) and hold, chunk after chunk, the chunks of their columns:
//   [expert][panel][chunk of k][16 columns][chunk]
// so that a tile of up to 64 columns reads one stream. A chunk is kChunk bytes, 4 of each column, and within it bytes
// lie as the decoders of simd/ want them. A 2:4 chunk is four k's: the two values of each column, then the masks, two
// columns a byte.
constexpr int kLane = 16, kChunk = 64, kPanel = 64, kPiece = 128;

constexpr int chunk_shift(Format f) { return is_2to4(f) ? 2 : static_cast<int>(f); }
constexpr int elements_per_chunk(Format f) { return 1 << chunk_shift(f); }  // of one column
constexpr int64_t chunk_bytes(Format f) { return f == Format::bf16_2to4 ? 72 : f == Format::e4m3_2to4 ? 40 : kChunk; }
// Of a row, without masks.
constexpr int64_t bytes_of(Format f, int64_t elements) {
  switch (f) {
    case Format::f32:
      return 4 * elements;
    case Format::bf16:
      return 2 * elements;
    case Format::e2m1:
    case Format::e4m3_2to4:
      return elements / 2;
    default:
      return elements;
  }
}

// How k is laid out: segments (the blocks of k that share a scale), each padded with zeros to whole chunks and pairs.
struct Segments {
  int64_t k, length, unit, padded;

  Segments(Format f, int64_t k_, int64_t block)
      : k(k_),
        length(block > 0 && block < k_ ? block : max(k_, 1)),
        unit(max(elements_per_chunk(f), 2)),
        padded(round_up(length, unit)) {}
  int64_t count() const { return ceil_div(k, length); }
  int64_t total() const {  // padded k
    return k == 0 ? 0 : (count() - 1) * padded + round_up(k - (count() - 1) * length, unit);
  }
  bool gapless() const { return total() == k; }
  // Whether groups of k that long end where chunks do.
  bool cuts_at(int64_t group) const {
    return group >= k || (group % unit == 0 && (count() < 2 || length % unit == 0));
  }
};

// The weights [n, k] of one expert.
struct Weights {
  Format format;
  bool packed;           // panels; else rows of `row_bytes`
  const uint8_t* data;
  int64_t row_bytes;
  const uint8_t* next;   // rows that will be wanted after these, to be fetched meanwhile, or null; not of panels
  const uint8_t* masks;  // of 2:4 rows, [n, ceil(k / 8)]; null for panels, which hold them
  const void* scale;     // null: none. Packed weights with a scale per row hold it as [n / 16][segment][16].
  Dtype scale_dtype;     // f32 or e8m0
  int64_t n, k;
  int64_t block_n, block_k;  // what one scale covers
  int64_t expert_bytes, expert_scales;

  Segments segments() const { return {format, k, scale != nullptr ? block_k : 0}; }
  bool scale_per_lane() const { return scale != nullptr && block_n % kLane != 0; }
  int64_t vectors() const { return ceil_div(n, kLane); }
  int64_t chunks() const { return segments().total() / elements_per_chunk(format); }
  int64_t packed_bytes() const { return vectors() * chunks() * chunk_bytes(format); }
  int64_t mask_bytes() const { return ceil_div(k, 8); }  // of a row
  int64_t packed_scales() const {
    return (scale_per_lane() ? vectors() * kLane : ceil_div(n, block_n)) * segments().count();
  }
  Weights expert(int64_t e) const {
    Weights w = *this;
    w.data += e * expert_bytes;
    if (masks != nullptr) w.masks += e * n * mask_bytes();
    if (scale != nullptr) w.scale = static_cast<const uint8_t*>(scale) + e * expert_scales * size_of(scale_dtype);
    return w;
  }
};

// Rows ready for the tiles: bf16 (only where the instruction set multiplies pairs of bf16) or f32, laid out in k as
// the weights are.
struct Operand {
  const void* data;
  bool is_f32;
  int64_t stride;           // elements
  const float* scale;       // per row and group of k, or null
  int64_t scale_stride, group;
  const int32_t* index;     // row i is at index[i]; null: at i
};

}  // namespace sk::gemm

// What every instruction set offers (csrc/gemm/cpu.cpp).
#define SK_GEMM_DECLARE(isa)                                                                                       \
  namespace sk::gemm::isa {                                                                                        \
  /* Whether rows of that dtype multiply as bf16 pairs here; if not, as f32. */                                    \
  bool multiplies_f32(Dtype a);                                                                                    \
  /* c[rows, 16 * vectors] = a * w[columns from 16 * first_vector]; scratch of scratch_bytes(). */                 \
  void multiply(const Weights& w, const Operand& a, int64_t rows, int64_t first_vector, int64_t vectors, float* c, \
                int64_t ldc, uint8_t* scratch, const Blocking& blocking = {});                                     \
  /* A row of segments.k elements (f32, bf16 or e4m3) as a row of an operand. */                                   \
  void prepare(const void* row, Dtype dtype, const Segments& segments, bool as_f32, void* out);                    \
  void pack(const Weights& from, int64_t first_vector, int64_t vectors, uint8_t* to);                              \
  void unpack(const Weights& from, int64_t first_vector, int64_t vectors, uint8_t* to, int64_t row_bytes,          \
              uint8_t* masks);                                                                                     \
  }

namespace sk::gemm {
// Scratch of multiply(): scales of the segments in a piece, a packed piece, a decoded one.
constexpr int64_t kSegments = 8, kScaleBytes = kSegments * kPanel * 4;
constexpr int64_t kPackedBytes = kPiece * kPanel * 4, kPairBytes = kPiece * kPanel * 2;
constexpr int64_t kScratchBytes = kScaleBytes + kPackedBytes + kPairBytes;
}  // namespace sk::gemm

SK_GEMM_DECLARE(scalar)
#if defined(__x86_64__)
SK_GEMM_DECLARE(avx2)
SK_GEMM_DECLARE(avx512)
SK_GEMM_DECLARE(avx512bf16)
#endif
