#include "gemm/gemm.h"
#include "simd/isa.h"

namespace sk::gemm::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "gemm/pack.h"
#include "gemm/tile.h"

// Some vectors (at most a panel's) of one piece of k.
struct Piece {
  const uint8_t* b;
  Format format;
  int64_t stride;  // bytes from chunk to chunk
  int64_t chunks, segments;
  const uint8_t* next;  // what is read after it, to be fetched meanwhile, or null
  int64_t next_bytes;
  int64_t rest;  // how many k follow
};

// All rows times one piece, in tiles of about equal height. Few rows take wide tiles, so that memory is read in one
// stream; many take the shape that computes fastest. A tile's rows stay in the first-level cache for all its columns.
template <class A, Format F>
void sweep(const Operand& a, int64_t rows, int64_t at, const Piece& p, int64_t vectors, float* c, int64_t ldc,
           const Fold& fold) {
  constexpr bool kDecodes = Stream<F>::kPairs > 1, kTall = kDotsBf16 && sizeof(A) == 2 && kDecodes;
  const int64_t widest = rows <= kTallest<4>   ? 4
                         : rows <= kTallest<2> ? 2
                         : kTall               ? min(kTileVectors, 2)
                                               : kTileVectors;
  const int64_t most = widest == 4 ? kTallest<4> : widest == 2 ? kTallest<2> : kTallest<1>;
  const int64_t tiles = ceil_div(rows, most);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, count = rows * (t + 1) / tiles - first;
    const A* a_rows[kTallest<1>];
    float a_scale[kTallest<1>];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = a.index != nullptr ? a.index[first + i] : first + i;
      a_rows[i] = static_cast<const A*>(a.data) + row * a.stride + at;
      if (fold.a_scale != nullptr) a_scale[i] = fold.a_scale[row * a.scale_stride];
      // What the next piece will read of this row.
      for (int64_t j = 0; j < min(p.rest, kPiece); j += kChunk / int64_t{sizeof(A)})
        __builtin_prefetch(a_rows[i] + kPiece + j);
    }
    for (int64_t v = 0, width; v < vectors; v += width) {
      const int64_t left = min(widest, vectors - v);
      width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      Run run = {p.b + v * chunk_bytes(F), p.stride, p.segments, p.chunks / Stream<F>::kChunks / p.segments, p.b, 0};
      if (p.next != nullptr && t == 0) {  // each pass over a piece fetches a part of the next one
        run.ahead = p.next + p.next_bytes / vectors * v;
        run.ahead_step = p.next_bytes / vectors * width / (run.segments * run.steps);
      }
      const Fold of_tile = {fold.b_scale != nullptr ? fold.b_scale + v * kLane : nullptr, fold.b_stride,
                            fold.a_scale != nullptr ? a_scale : nullptr};
      const auto run_tile = width == 4   ? tile_of<A, F, 4>(count)
                            : width == 2 ? tile_of<A, F, 2>(count)
                                         : tile_of<A, F, 1>(count);
      run_tile(a_rows, run, c + first * ldc + v * kLane, ldc, of_tile);
    }
  }
}

template <class A>
void sweep_format(const Operand& a, int64_t rows, int64_t at, const Piece& p, int64_t vectors, float* c, int64_t ldc,
                  const Fold& fold) {
  switch (p.format) {
    case Format::f32:
      if constexpr (sizeof(A) == 4) sweep<A, Format::f32>(a, rows, at, p, vectors, c, ldc, fold);
      return;
    case Format::bf16:
      return sweep<A, Format::bf16>(a, rows, at, p, vectors, c, ldc, fold);
    case Format::e4m3:
      return sweep<A, Format::e4m3>(a, rows, at, p, vectors, c, ldc, fold);
    case Format::e2m1:
      return sweep<A, Format::e2m1>(a, rows, at, p, vectors, c, ldc, fold);
    case Format::bf16_2to4:
      return sweep<A, Format::bf16_2to4>(a, rows, at, p, vectors, c, ldc, fold);
    case Format::e4m3_2to4:
      return sweep<A, Format::e4m3_2to4>(a, rows, at, p, vectors, c, ldc, fold);
  }
}

float scale_at(const Weights& w, int64_t i) {
  if (w.scale_dtype == Dtype::f32) return static_cast<const float*>(w.scale)[i];
  return __builtin_bit_cast(float, static_cast<uint32_t>(static_cast<const uint8_t*>(w.scale)[i]) << 23);
}

// The scales of some vectors in one segment, a lane each.
void scales_of(const Weights& w, int64_t first_vector, int64_t vectors, int64_t segment, float* out) {
  const int64_t segments = w.segments().count();
  for (int64_t v = 0; v < vectors; ++v, out += kLane) {
    const int64_t column = (first_vector + v) * kLane;
    if (!w.scale_per_lane()) {
      store(out, splat(scale_at(w, column / w.block_n * segments + segment)));
    } else if (w.packed) {
      const int64_t i = ((first_vector + v) * segments + segment) * kLane;
      if (w.scale_dtype == Dtype::f32)
        store(out, load(static_cast<const float*>(w.scale) + i));
      else
        store(out, from_bits(shl<23>(load(static_cast<const uint8_t*>(w.scale) + i))));
    } else {
      for (int64_t l = 0; l < kLane; ++l)
        out[l] = column + l < w.n ? scale_at(w, (column + l) / w.block_n * segments + segment) : 0.0f;
    }
  }
}

// Decoded to pairs of bf16, once for all the rows that follow. Decoded to float32 they would be twice as long as the
// first-level cache bears beside the rows, which costs more than two shifts and masks a step.
template <Format F>
Piece decode(const Piece& p, int64_t vectors, uint8_t* out) {
  using W = Stream<F>;
  constexpr int64_t kPair = chunk_bytes(Format::bf16);
  for (int64_t s = 0; s < p.chunks; ++s)
    for (int64_t v = 0; v < vectors; ++v) {
      Bf16x2 pairs[W::kPairs];
      W::load(p.b + s * p.stride + v * chunk_bytes(F), p.stride, pairs);
      for (int i = 0; i < W::kPairs; ++i) store_pairs(out + ((s * W::kPairs + i) * vectors + v) * kPair, pairs[i]);
    }
  return {out, Format::bf16, vectors * kPair, p.chunks * W::kPairs, p.segments, p.next, p.next_bytes, p.rest};
}
Piece decoded(const Piece& p, int64_t vectors, uint8_t* out) {
  switch (p.format) {
    case Format::e4m3:
      return decode<Format::e4m3>(p, vectors, out);
    case Format::e2m1:
      return decode<Format::e2m1>(p, vectors, out);
    case Format::bf16_2to4:
      return decode<Format::bf16_2to4>(p, vectors, out);
    case Format::e4m3_2to4:
      return decode<Format::e4m3_2to4>(p, vectors, out);
    default:
      return p;
  }
}

// How many segments from this one on make one piece: several, where they are short, whole and without gaps, and rows
// of a are scaled no more finely.
int64_t segments_together(const Segments& k, int64_t segment, int64_t a_group) {
  if (2 * k.length > kPiece || k.padded != k.length) return 1;
  const int64_t most = min(min(kPiece / k.length, kSegments), k.k / k.length - segment);
  if (a_group == 0) return max(1, most);
  const int64_t first = segment * k.length;
  return max(1, min(most, ((first / a_group + 1) * a_group - first) / k.length));
}

// Columns of one panel.
void multiply_panel(const Weights& w, const Operand& a, int64_t rows, int64_t first_vector, int64_t vectors, float* c,
                    int64_t ldc, uint8_t* scratch, const Blocking& blocking) {
  const Segments k = w.segments();
  const int64_t bytes = chunk_bytes(w.format), shift = chunk_shift(w.format);
  const int64_t in_panel = first_vector % (kPanel / kLane), panel = first_vector - in_panel;
  const int64_t width = min(kPanel / kLane, w.vectors() - panel);
  const uint8_t* const stream = w.data + (panel * w.chunks() + in_panel) * bytes;
  float* const b_scale = reinterpret_cast<float*>(scratch);
  uint8_t* const packed = scratch + kScaleBytes;
  uint8_t* const pairs = packed + kPackedBytes;
  const bool scaled = w.scale != nullptr || a.scale != nullptr;
  const int64_t b_stride = vectors * kLane;
  const int64_t decode_above = blocking.decode_rows > 0 ? blocking.decode_rows
                               : kDotsBf16 && !a.is_f32 ? 96
                               : is_2to4(w.format)      ? 0
                                                        : 4;

  for (int64_t segment = 0, together; segment < k.count(); segment += together) {
    const int64_t first = segment * k.length;
    together = segments_together(k, segment, a.scale != nullptr ? a.group : 0);
    const int64_t last = min(k.k, first + together * k.length);
    for (int64_t s = 0; s < together; ++s)
      if (w.scale != nullptr)
        scales_of(w, first_vector, vectors, segment + s, b_scale + s * b_stride);
      else
        for (int64_t i = 0; i < b_stride; ++i) b_scale[s * b_stride + i] = 1.0f;
    for (int64_t from = first, to; from < last; from = to) {
      to = min(last, from + kPiece);
      if (a.scale != nullptr) to = min(to, (from / a.group + 1) * a.group);
      const int64_t at = segment * k.padded + from - first;  // in padded k
      const int64_t chunks = ((to - from + k.unit - 1) & -k.unit) >> shift;
      const uint8_t* const b = stream + (at >> shift) * width * bytes;
      const int64_t size = chunks * width * bytes;
      Piece p = {b, w.format, width * bytes, chunks, together, nullptr, size, k.total() - at - kPiece};
      if (w.packed) {
        if (blocking.prefetch > 0) p.next = b + round_up(blocking.prefetch, size);
      } else {
        pack_piece(w, first_vector, vectors, from, to, packed);
        p.b = packed;
        p.stride = vectors * bytes;
        p.next = w.next;
        p.next_bytes = vectors * kLane * w.row_bytes;
      }
      if (rows > decode_above) p = decoded(p, vectors, pairs);
      const Fold fold = {scaled ? b_scale : nullptr, b_stride,
                         a.scale != nullptr ? a.scale + from / a.group : nullptr};
      if (a.is_f32)
        sweep_format<float>(a, rows, at, p, vectors, c, ldc, fold);
      else if constexpr (kDotsBf16)
        sweep_format<bf16>(a, rows, at, p, vectors, c, ldc, fold);
    }
  }
}

}  // namespace

bool multiplies_f32(Dtype a) { return a == Dtype::f32 || !kDotsBf16; }

void multiply(const Weights& w, const Operand& a, int64_t rows, int64_t first_vector, int64_t vectors, float* c,
              int64_t ldc, uint8_t* scratch, const Blocking& blocking) {
  const uint32_t rounding = set_gemm_rounding();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < vectors; ++v) store(c + r * ldc + v * kLane, splat(0.0f));
  for (int64_t v = 0; v < vectors;) {
    const int64_t to_panel_end = kPanel / kLane - (first_vector + v) % (kPanel / kLane);
    const int64_t count = min(vectors - v, to_panel_end);
    multiply_panel(w, a, rows, first_vector + v, count, c + v * kLane, ldc, scratch, blocking);
    v += count;
  }
  set_rounding(rounding);
}

void prepare(const void* row, Dtype dtype, const Segments& k, bool as_f32, void* out) {
  for (int64_t s = 0; s < k.count(); ++s) {
    const int64_t first = s * k.length, n = min(k.length, k.k - first), padded = round_up(n, k.unit);
    for (int64_t i = 0; i < padded; i += kLane) {
      const int64_t have = max(0, min(kLane, n - i)), room = min(kLane, padded - i), to = s * k.padded + i;
      const F32 x = dtype == Dtype::f32    ? load(static_cast<const float*>(row) + first + i, have)
                    : dtype == Dtype::bf16 ? load(static_cast<const bf16*>(row) + first + i, have)
                                           : widen_e4m3(static_cast<const uint8_t*>(row) + first + i, have);
      if (as_f32)
        store(static_cast<float*>(out) + to, x, room);
      else
        store(static_cast<bf16*>(out) + to, x, room);
    }
  }
}

void pack(const Weights& from, int64_t first_vector, int64_t vectors, uint8_t* to) {
  const Segments k = from.segments();
  const int64_t per_chunk = elements_per_chunk(from.format), bytes = chunk_bytes(from.format);
  for (int64_t v = 0; v < vectors;) {
    const int64_t panel = (first_vector + v) / (kPanel / kLane), start = panel * (kPanel / kLane);
    const int64_t width = min(kPanel / kLane, from.vectors() - start);
    for (int64_t s = 0; s < k.count(); ++s)
      for (int64_t at = 0; at < min(k.length, k.k - s * k.length); at += kPiece) {
        const int64_t begin = s * k.length + at, end = min(min(k.k, (s + 1) * k.length), begin + kPiece);
        pack_piece(from, start, width, begin, end,
                   to + (start * from.chunks() + (s * k.padded + at) / per_chunk * width) * bytes);
      }
    v = start + width - first_vector;
  }
}

void unpack(const Weights& from, int64_t first_vector, int64_t vectors, uint8_t* to, int64_t row_bytes,
            uint8_t* masks) {
  const Segments k = from.segments();
  const int64_t per_chunk = elements_per_chunk(from.format), bytes = chunk_bytes(from.format);
  for (int64_t v = first_vector; v < first_vector + vectors; ++v) {
    const int64_t start = v / (kPanel / kLane) * (kPanel / kLane),
                  width = min(kPanel / kLane, from.vectors() - start);
    for (int64_t s = 0; s < k.count(); ++s) {
      const int64_t begin = s * k.length, n = min(k.length, k.k - begin);
      const uint8_t* const chunks =
          from.data + (start * from.chunks() + s * k.padded / per_chunk * width + v - start) * bytes;
      unpack_segment(from, v, begin, n, chunks, width * bytes, to, row_bytes);
      if (masks != nullptr) unpack_masks(from, v, begin, n, chunks, width * bytes, masks);
    }
  }
}

}  // namespace sk::gemm::SK_ISA
