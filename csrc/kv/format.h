// Records of the paged KV cache, byte by byte (docs/ops.md, kv_write). A slot is page * page_size + place.
//
// A record is the codes of its first values, with a scale a tile, and the other values as bf16. Scales lie inside the
// record, or behind all records of a page, in its footer:
//
//   mla656    512 e4m3, 4 fp32 scales, 64 bf16                                             inside
//   mla584    448 e4m3, 64 bf16 | footer: 7 e8m0 scales and a zero                         page a multiple of 576
//   mla528    512 e4m3          | footer: 16 e8m0 scales                                   page a multiple of 512
//   index132  128 e4m3          | footer: 1 fp32 scale
//   index68   128 e2m1, 64 B    | footer: 4 e8m0 scales
#pragma once
#include "core/types.h"

namespace sk::kv {

// The order is that of KvFormat in sparsekern/ops/_kv.py.
enum class Format : int { mla656, mla584, mla528, index132, index68, bf16 };

struct Layout {
  int64_t dim;  // values of a record
  int64_t coded;  // of them quantised, the first ones
  int64_t tile;  // coded values with one scale
  int64_t code_bytes;  // of the codes: the scales of "inside" follow them
  int64_t scale_bytes;  // of the scales of a record, padding included
  bool footer, fp4;
  Dtype scale_dtype;  // f32 or e8m0
  int64_t page_multiple;

  constexpr int64_t rest() const { return dim - coded; }  // values kept as bf16, the last ones
  constexpr int64_t tiles() const { return coded / tile; }
  constexpr int64_t rest_at() const { return code_bytes + (footer ? 0 : scale_bytes); }  // in the data
  constexpr int64_t data_bytes() const { return rest_at() + 2 * rest(); }  // from one record to the next
  constexpr int64_t page_bytes(int64_t page_size) const {
    return round_up(page_size * (data_bytes() + (footer ? scale_bytes : 0)), page_multiple);
  }
};

constexpr Layout kLayouts[] = {
    {576, 512, 128, 512, 16, false, false, Dtype::f32, 1},  {512, 448, 64, 448, 8, true, false, Dtype::e8m0, 576},
    {512, 512, 32, 512, 16, true, false, Dtype::e8m0, 512}, {128, 128, 128, 128, 4, true, false, Dtype::f32, 1},
    {128, 128, 32, 64, 4, true, true, Dtype::e8m0, 1},
};
constexpr const Layout& layout_of(Format f) { return kLayouts[static_cast<int>(f)]; }  // of all but bf16

// Slots as kernels get them: on a device the narrower of what callers may give.
#if defined(SK_CUDA)
using Slot = int32_t;
#else
using Slot = int64_t;
#endif

// Pages of quantised records. Byte is uint8_t or const uint8_t.
template <class Byte>
struct Pool {
  Byte* data;
  int64_t page_stride;  // bytes from one page to the next
  int64_t page_size;  // records of a page
};

// Where one record is. No address is aligned to anything.
template <class Byte>
struct Record {
  Byte *data, *scales;
};

template <class Byte>
SK_INLINE constexpr Record<Byte> record_at(const Layout& f, const Pool<Byte>& pool, int64_t page, int64_t place) {
  Byte* start = pool.data + page * pool.page_stride;
  Byte* data = start + place * f.data_bytes();
  return {data, f.footer ? start + pool.page_size * f.data_bytes() + place * f.scale_bytes : data + f.code_bytes};
}
template <class Byte>
SK_INLINE constexpr Record<Byte> record_at(const Layout& f, const Pool<Byte>& pool, int64_t slot) {
  return record_at(f, pool, slot / pool.page_size, slot % pool.page_size);
}

// The scale of a tile, as a factor: e8m0 bytes are exponents, 0 is 0.0 and 255 infinity.
SK_INLINE float scale_of(const Layout& f, const uint8_t* scales, int64_t tile) {
  if (f.scale_dtype == Dtype::e8m0) return __builtin_bit_cast(float, static_cast<uint32_t>(scales[tile]) << 23);
  float scale;
  __builtin_memcpy(&scale, scales + 4 * tile, sizeof scale);
  return scale;
}

}  // namespace sk::kv
