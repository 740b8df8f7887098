// out[n, :] = decode(record slots[n]), zeros where slots[n] < 0
#pragma once
#include "core/variant.h"
#include "kv/format.h"

namespace sk::kv_read {

struct Args {
  kv::Format format;
  kv::Pool<const uint8_t> pool;  // bf16: of one row a page
  Dtype plain_dtype;             // of the records of format bf16
  const kv::Slot* slots;         // [rows], below records; negative: none
  int64_t records;               // of the pool
  void* out;                     // [rows, dim] of dtype
  Dtype dtype;                   // bf16 or f32
  int64_t rows, dim;
};

SK_CPU_VARIANTS

}  // namespace sk::kv_read
