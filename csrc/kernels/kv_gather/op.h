// rows offsets[b] ... of out: tokens starts[b] ... of sequence b, whose page i is block_table[b, i]
#pragma once
#include "core/variant.h"
#include "kv/format.h"

namespace sk::kv_gather {

// On a device rows are numbered there.
struct OnDevice {
  const int32_t* lens;  // [sequences]
  int64_t* offsets;     // scratch [sequences + 1]
  int64_t pages;        // of the pool
};

struct Args {
  kv::Format format;
  kv::Pool<const uint8_t> pool;  // bf16: page_stride is that of a page, and row_stride that of a record
  int64_t row_stride;            // bytes
  const int32_t* block_table;    // [sequences, max_pages]
  const int32_t* starts;         // [sequences]
  const int64_t* offsets;        // [sequences + 1], ascending from 0
  int64_t sequences, max_pages;
  uint8_t* out;        // [rows, row_bytes]: bf16 values, records of format bf16, or codes of an index format
  uint8_t* scale;      // [rows, scale_bytes] of an index format, else null
  int64_t rows;        // at least offsets[sequences]; those past it become zeros
  int64_t row_bytes, scale_bytes;
  OnDevice on_device = {};  // instead of offsets; starts may be null, for 0
};

SK_CPU_VARIANTS

}  // namespace sk::kv_gather
