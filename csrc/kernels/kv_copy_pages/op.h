// dst[to[i]] = src[from[i]] for the pairs of one wave after the other
#pragma once
#include "core/variant.h"

namespace sk::kv_copy_pages {

// Pages as rows of contiguous bytes.
template <class Byte>
struct Pages {
  Byte* data;
  int64_t page_stride, row_stride;  // bytes
};
struct Copy { int64_t from, to; };  // pages; kSpare: the spare page
constexpr int64_t kSpare = -1;

// On a device nobody puts the copies in order.
struct DevicePairs {
  const int32_t* pairs;  // [count, 2]: from, to
  int64_t count, src_pages, dst_pages;
};

struct Args {
  Pages<const uint8_t> src;
  Pages<uint8_t> dst;
  uint8_t* spare;          // room for one page, contiguous
  const Copy* copies;      // no two of a wave touch a page that one of them writes
  const int64_t* waves;    // [wave_count + 1]: where each begins among the copies
  int64_t wave_count;
  int64_t rows, row_bytes;  // of a page
  DevicePairs on_device = {};  // instead of copies and waves; `spare` has room for all pages, null: of two pools
};

SK_CPU_VARIANTS

}  // namespace sk::kv_copy_pages
