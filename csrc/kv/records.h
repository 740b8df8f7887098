// Records to values and back, in the vocabulary.
#pragma once
#include "kv/format.h"
#include "kv/insert.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::kv::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int64_t kMaxDim = 576;

SK_INLINE void prefetch_bytes(const uint8_t* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(p + i);
  __builtin_prefetch(p + n - 1);
}
template <class Byte>
SK_INLINE void prefetch_record(const Layout& f, const Record<Byte>& r) {
  prefetch_bytes(r.data, f.data_bytes());
  if (f.footer) prefetch_bytes(r.scales, f.scale_bytes);
}

// n values from memory that may lie at an odd address.
SK_INLINE void copy_row(const void* from, bf16* to, int64_t n) {
  __builtin_memcpy(to, from, static_cast<__SIZE_TYPE__>(n) * sizeof(bf16));
}
SK_INLINE void copy_row(const void* from, float* to, int64_t n) {
  bf16 row[kMaxDim];
  copy_row(from, row, n);
  map_row(row, to, n, [&](int64_t i, auto lanes) { return load(row + i, lanes); });
}

// Rows of plain records: copied to the bit where the dtype is the same.
template <class From, class To>
SK_INLINE void convert_row(const From* from, To* to, int64_t n) {
  if constexpr (sizeof(From) == sizeof(To))
    __builtin_memcpy(to, from, static_cast<__SIZE_TYPE__>(n) * sizeof(To));
  else
    map_row(from, to, n, [&](int64_t i, auto lanes) { return load(from + i, lanes); });
}

// All values of a record: code * scale, rounded once, then those that were kept.
template <class T>
SK_INLINE void decode_record(const Layout& f, const Record<const uint8_t>& r, T* x) {
  for (int64_t t = 0; t < f.tiles(); ++t) {
    const float scale = scale_of(f, r.scales, t);
    if (f.fp4)
      decode_row(E2m1{}, r.data + t * f.tile / 2, f.tile, scale, x + t * f.tile);
    else
      decode_row(E4m3{}, r.data + t * f.tile, f.tile, scale, x + t * f.tile);
  }
  if (f.rest() > 0) copy_row(r.data + f.rest_at(), x + f.coded, f.rest());
}

// How scales come from the largest magnitude of a tile.
struct Scaling {
  float floor;  // of the magnitude
  bool pow2;    // rounded up to a power of two; e8m0 scales always are
};

template <class Code>
SK_INLINE void encode_tiles(Code, const Layout& f, const bf16* x, Scaling how, const Record<uint8_t>& r) {
  float most[kLanes] = {}, inverse[kLanes];
  for (int64_t t = 0; t < f.tiles(); ++t) most[t] = largest(larger_magnitudes(splat(0.0f), x + t * f.tile, f.tile));
  const bool pow2 = how.pow2 || f.scale_dtype == Dtype::e8m0;
  const Scales s = scales_for<Code>(load(most), how.floor, pow2 ? Dtype::e8m0 : Dtype::f32);
  float scales[kLanes] = {};  // of any dtype
  store_scales(scales, f.scale_dtype, 0, s.scale, f.tiles());
  __builtin_memcpy(r.scales, scales, static_cast<__SIZE_TYPE__>(f.scale_bytes));
  store(inverse, s.inverse);
  for (int64_t t = 0; t < f.tiles(); ++t)
    encode_row(Code{}, x + t * f.tile, f.tile, inverse[t], r.data + t * f.tile * Code::kBits / 8);
}

SK_INLINE void encode_record(const Layout& f, const bf16* x, Scaling how, const Record<uint8_t>& r) {
  if (f.fp4)
    encode_tiles(E2m1{}, f, x, how, r);
  else
    encode_tiles(E4m3{}, f, x, how, r);
  if (f.rest() > 0)
    __builtin_memcpy(r.data + f.rest_at(), x + f.coded, static_cast<__SIZE_TYPE__>(f.rest()) * sizeof(bf16));
}

SK_INLINE const bf16* as_bf16(const bf16* x, bf16*, int64_t) { return x; }
SK_INLINE const bf16* as_bf16(const float* x, bf16* row, int64_t n) {
  convert_row(x, row, n);
  return row;
}

// A row of values becomes a record.
template <class T>
SK_INLINE void insert(const Target& to, int64_t slot, const T* x, int64_t dim) {
  if (to.format == Format::bf16) {
    uint8_t* at = to.pool.data + slot * to.pool.page_stride;
    with_float_type(to.plain_dtype, [&](auto plain) { convert_row(x, reinterpret_cast<decltype(plain)*>(at), dim); });
    return;
  }
  const Layout& f = layout_of(to.format);
  bf16 row[kMaxDim];
  encode_record(f, as_bf16(x, row, f.dim), {to.floor, to.pow2}, record_at(f, to.pool, slot));
}

}  // namespace sk::kv::SK_ISA
