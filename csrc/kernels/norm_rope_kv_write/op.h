// record slots[t] = encode(rope(rms_norm of the first `width` of values[t, :])), or nothing where slots[t] < 0; of
// equal slots the last one stays
#pragma once
#include "core/variant.h"
#include "kv/insert.h"
#include "rope/rotation.h"

namespace sk::norm_rope_kv_write {

struct Args {
  kv::Target target;
  const kv::Slot* slots;      // [tokens], below records; negative: none
  int64_t records;            // of the pool
  Rows<const void> values;    // [tokens, dim] of dtype, which every step rounds to
  Dtype dtype;
  const int32_t* positions;   // [tokens]
  const void* weight;         // [width] or null
  Dtype weight_dtype;
  rope::Rotation rotation;
  float* scratch;             // threads() * scratch_floats(pairs, dim); on a device [pairs]
  int64_t tokens, dim, width;
  float eps;
};

constexpr int64_t scratch_floats(int64_t pairs, int64_t dim) { return rope::table_floats(pairs) + round_up(dim, 16); }

SK_CPU_VARIANTS

}  // namespace sk::norm_rope_kv_write
