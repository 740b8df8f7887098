// Pools of the paged KV cache, as ops take them.
#pragma once
#include <cmath>

#include "bindings/call.h"
#include "kv/insert.h"

namespace sk {

inline constexpr const char* kFormatNames[] = {"mla656", "mla584", "mla528", "index132", "index68", "bf16"};

struct PoolArg {
  kv::Format format;
  uint8_t* data;
  int64_t page_stride, row_stride;  // bytes; a row is a record of format bf16
  int64_t pages, page_size;
  Dtype dtype;

  int64_t records() const { return pages * page_size; }
  bool plain() const { return format == kv::Format::bf16; }
  // Plain records as pages of one: their slot is their page.
  template <class Byte>
  kv::Pool<Byte> by_slots() const {
    if (plain()) return {data, row_stride, 1};
    return {data, page_stride, page_size};
  }
};

// Refuses a pool whose dtype or pages are not those of the format.
inline PoolArg pool_arg(const Call& c, int arg, const char* what, int format_option, int page_size_option,
                        const char* page_size_name = "page_size") {
  const TensorView& t = c.arg(arg);
  const auto format = static_cast<kv::Format>(c.integer(format_option));
  const char* name = kFormatNames[static_cast<int>(format)];
  const int64_t page_size = c.integer(page_size_option);
  if (page_size < 1 || page_size > INT32_MAX) fail(page_size_name, " is ", page_size, ", expected 1 to ", INT32_MAX);
  const int64_t item = size_of(t.dtype), row = t.row_stride() * item;
  if (format == kv::Format::bf16) {
    if (t.rank != 3 || t.dtype == Dtype::u8)
      fail(what, " has ", t.rank, " dimensions", t.dtype == Dtype::u8 ? " of uint8" : "",
           ", expected (pages, page_size, D) of bfloat16 or float32 for format 'bf16'");
    return {format, t.as<uint8_t>(), row * page_size, row, t.shape[0], page_size, t.dtype};
  }
  if (t.rank != 2 || t.dtype != Dtype::u8)
    fail(what, " has ", t.rank, " dimensions", t.dtype == Dtype::u8 ? "" : ", not of uint8",
         ", expected (pages, page_bytes) of uint8 for format '", name, "'");
  const int64_t bytes = kv::layout_of(format).page_bytes(page_size);
  if (t.shape[1] != bytes)
    fail(what, " has pages of ", t.shape[1], " bytes, expected ", bytes, ": ", page_size, " records of '", name, "'");
  return {format, t.as<uint8_t>(), row, 0, t.shape[0], page_size, t.dtype};
}

// Refuses values that are not rows of the format.
inline int64_t width_of(const PoolArg& pool, const char* what, int64_t width) {
  if (!pool.plain() && width != kv::layout_of(pool.format).dim)
    fail(what, " has rows of ", width, ", expected ", kv::layout_of(pool.format).dim, " for format '",
         kFormatNames[static_cast<int>(pool.format)], "'");
  return width;
}

inline int64_t element(const TensorView& t, int64_t at) {
  return t.dtype == Dtype::i64 ? t.as<const int64_t>()[at] : t.as<const int32_t>()[at];
}

// An index tensor as contiguous int64, whichever it came in.
inline const int64_t* wide_indices(Call& c, int arg) {
  const TensorView& t = c.arg(arg);
  const int64_t cols = t.last(), rows = t.rows();
  if (t.dtype == Dtype::i64 && (t.row_stride() == cols || rows <= 1)) return t.as<const int64_t>();
  int64_t* copy = c.scratch().take<int64_t>(t.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < cols; ++i) copy[r * cols + i] = element(t, r * t.row_stride() + i);
  return copy;
}

#if defined(SK_CUDA)
inline const kv::Slot* slots_of(Call& c, int arg, const PoolArg&) { return c.indices(arg); }
#else
// Slots, each below 0 or in the pool.
inline const kv::Slot* slots_of(Call& c, int arg, const PoolArg& pool) {
  const int64_t* slots = wide_indices(c, arg);
  const int64_t n = c.arg(arg).size(), limit = pool.records();
  for (int64_t i = 0; i < n; ++i)
    if (slots[i] >= limit)
      fail("slots[", i, "] is ", slots[i], ", expected less than ", limit, ": ", pool.pages, " pages of ",
           pool.page_size);
  return slots;
}
#endif

// Where and how records are written: the options scale_rounding and amax_floor.
inline kv::Target target_of(Call& c, const PoolArg& pool, int scale_rounding_option, int amax_floor_option) {
  const bool fp4 = !pool.plain() && kv::layout_of(pool.format).fp4;
  const bool given = c.option(amax_floor_option).present;
  const float floor = given ? c.real(amax_floor_option) : fp4 ? 6 * 0x1p-126f : 1e-4f;
  if (!(floor >= 0 && std::isfinite(floor)))
    fail("amax_floor is ", c.option(amax_floor_option).real, ", expected a finite number, 0 or more");
  return {pool.format, pool.by_slots<uint8_t>(), pool.dtype, floor, c.integer(scale_rounding_option) == 0};
}

}  // namespace sk
