// record slots[t] = encode(values[t, :]), or nothing where slots[t] < 0; of equal slots the last one stays
#pragma once
#include "core/variant.h"
#include "kv/insert.h"

namespace sk::kv_write {

struct Args {
  kv::Target target;
  const kv::Slot* slots;    // [tokens], below records; negative: none
  int64_t records;          // of the pool
  Rows<const void> values;  // [tokens, dim] of dtype
  Dtype dtype;              // bf16 or f32: then rounded first
  int64_t tokens, dim;
};

SK_CPU_VARIANTS

}  // namespace sk::kv_write
