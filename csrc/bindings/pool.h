// Pools of the paged KV cache, as ops take them.
#pragma once
#include "bindings/call.h"
#include "kv/format.h"

namespace sk {

inline constexpr const char* kFormatNames[] = {"mla656", "mla584", "mla528", "index132", "index68", "bf16"};

struct PoolArg {
  kv::Format format;
  uint8_t* data;
  int64_t page_stride, row_stride;  // bytes; a row is a record of format bf16
  int64_t pages, page_size;
  Dtype dtype;

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

}  // namespace sk
