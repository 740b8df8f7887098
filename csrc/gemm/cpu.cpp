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
  int64_t chunks;
  int64_t prefetch;  // bytes ahead
};

// All rows times one piece of NV vectors, in tiles of about equal height.
template <class A, Format F, int NV>
void sweep_rows(const Operand& a, int64_t rows, int64_t at, const Piece& p, float* c, int64_t ldc, Fold* fold) {
  constexpr int kMost = kTallest<A, F, NV>;
  const int64_t tiles = ceil_div(rows, kMost);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, count = rows * (t + 1) / tiles - first;
    const A* a_rows[kMost];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = a.index != nullptr ? a.index[first + i] : first + i;
      a_rows[i] = static_cast<const A*>(a.data) + row * a.stride + at;
    }
    Fold scaled = fold != nullptr ? *fold : Fold{};
    float sa[kMost];
    if (fold != nullptr && fold->a_scale != nullptr) {
      for (int64_t i = 0; i < count; ++i)
        sa[i] = fold->a_scale[(a.index != nullptr ? a.index[first + i] : first + i) * a.scale_stride];
      scaled.a_scale = sa;
      scaled.a_stride = 1;
    }
    tile_of<A, F, NV>(count)(a_rows, p.b, p.stride, p.chunks / Stream<F>::kChunks, p.prefetch, c + first * ldc, ldc,
                             fold != nullptr ? &scaled : nullptr);
  }
}

// The widest tiles that the registers hold, then narrower ones; taller ones where each decoded vector should meet
// more rows.
template <class A, Format F>
void sweep(const Operand& a, int64_t rows, int64_t at, Piece p, int64_t vectors, float* c, int64_t ldc, Fold* fold) {
  for (int64_t v = 0; v < vectors;) {
    Fold part = fold != nullptr ? Fold{fold->b_scale + v * kLane, fold->a_scale, 0} : Fold{};
    Fold* const f = fold != nullptr ? &part : nullptr;
    const Piece q = {p.b + v * chunk_bytes(F), p.format, p.stride, p.chunks, p.prefetch};
    float* const to = c + v * kLane;
    const bool tall = kTallest<A, F, 2> > kTileRows && rows > kTileRows;
    if (kTileVectors >= 4 && vectors - v >= 4 && !tall) {
      sweep_rows<A, F, 4>(a, rows, at, q, to, ldc, f);
      v += 4;
    } else if (kTileVectors >= 2 && vectors - v >= 2) {
      sweep_rows<A, F, 2>(a, rows, at, q, to, ldc, f);
      v += 2;
    } else {
      sweep_rows<A, F, 1>(a, rows, at, q, to, ldc, f);
      v += 1;
    }
  }
}

template <class A>
void sweep_format(const Operand& a, int64_t rows, int64_t at, const Piece& p, int64_t vectors, float* c, int64_t ldc,
                  Fold* fold) {
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

// Decoded to pairs of bf16, once for all the rows that follow.
template <Format F>
Piece decode(const Piece& p, int64_t vectors, uint8_t* out) {
  using W = Stream<F>;
  constexpr int64_t kPair = chunk_bytes(Format::bf16);
  for (int64_t s = 0; s < p.chunks; ++s)
    for (int64_t v = 0; v < vectors; ++v) {
      Bf16x2 pairs[W::kPairs];
      const uint8_t* const chunk = p.b + s * p.stride + v * chunk_bytes(F);
      __builtin_prefetch(chunk + p.prefetch);
      W::load(chunk, p.stride, pairs);
      for (int i = 0; i < W::kPairs; ++i) store_pairs(out + ((s * W::kPairs + i) * vectors + v) * kPair, pairs[i]);
    }
  return {out, Format::bf16, vectors * kPair, p.chunks * W::kPairs, 0};
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

// Columns of one panel.
void multiply_panel(const Weights& w, const Operand& a, int64_t rows, int64_t first_vector, int64_t vectors, float* c,
                    int64_t ldc, uint8_t* scratch, const Blocking& blocking) {
  const Segments k = w.segments();
  const int64_t per_chunk = elements_per_chunk(w.format), bytes = chunk_bytes(w.format);
  const int64_t in_panel = first_vector % (kPanel / kLane), panel = first_vector - in_panel;
  const int64_t width = min(kPanel / kLane, w.vectors() - panel);
  const uint8_t* const stream = w.data + (panel * w.chunks() + in_panel) * bytes;
  float* const b_scale = reinterpret_cast<float*>(scratch);
  uint8_t* const packed = scratch + 4 * kLane * sizeof(float);
  uint8_t* const pairs = packed + (32 << 10);
  const bool scaled = w.scale != nullptr || a.scale != nullptr;
  // Few rows decode in the tile, as often as there are tiles; many share one decoded copy.
  const int64_t decode_above = blocking.decode_rows > 0 ? blocking.decode_rows
                               : kDotsBf16 && !a.is_f32 ? 16 * kTileRows
                                                        : kTileRows;

  for (int64_t segment = 0; segment < k.count(); ++segment) {
    const int64_t first = segment * k.length, last = min(k.k, first + k.length);
    if (w.scale != nullptr)
      scales_of(w, first_vector, vectors, segment, b_scale);
    else
      for (int64_t i = 0; i < vectors * kLane; ++i) b_scale[i] = 1.0f;
    for (int64_t from = first, to; from < last; from = to) {
      to = min(last, from + kPiece);
      if (a.scale != nullptr) to = min(to, (from / a.group + 1) * a.group);
      const int64_t at = segment * k.padded + from - first;  // in padded k
      const int64_t chunks = round_up(to - from, k.unit) / per_chunk;
      Piece p = {stream + at / per_chunk * width * bytes, w.format, width * bytes, chunks, blocking.prefetch};
      if (!w.packed) {
        pack_piece(w, first_vector, vectors, from, to, packed);
        p = {packed, w.format, vectors * bytes, chunks, 0};
      }
      if (rows > decode_above) p = decoded(p, vectors, pairs);
      Fold fold = {b_scale, a.scale != nullptr ? a.scale + from / a.group : nullptr, 0};
      Fold* const f = scaled ? &fold : nullptr;
      if (a.is_f32)
        sweep_format<float>(a, rows, at, p, vectors, c, ldc, f);
      else if constexpr (kDotsBf16)
        sweep_format<bf16>(a, rows, at, p, vectors, c, ldc, f);
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
