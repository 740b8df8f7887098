#include "kernels/norm_rope_kv_write/op.h"
#include "kv/records.h"
#include "norm/rms.h"
#include "rope/rotate.h"

namespace sk::norm_rope_kv_write::SK_ISA {
using namespace kv::SK_ISA;

// A row lies in the first cache from one step to the next.
template <class T, class W>
static void make_row(const Args& a, int64_t token, float* table, T* row) {
  const T* x = static_cast<const T*>(a.values.data) + token * a.values.stride;
  if (a.width > 0) norm::SK_ISA::normalise(x, a.width, a.eps, static_cast<const W*>(a.weight), row);
  convert_row(x + a.width, row + a.width, a.dim - a.width);
  rope::SK_ISA::rotations(a.rotation, a.positions[token], table);
  rope::SK_ISA::rotate(a.rotation, table, row + a.rotation.offset, row + a.rotation.offset);
}

void run(const Args& a) {
  const int64_t tables = rope::table_floats(a.rotation.pairs), floats = scratch_floats(a.rotation.pairs, a.dim);
  with_float_type(a.dtype, [&](auto type) {
    with_float_type(a.weight_dtype, [&](auto weight_type) {
      using T = decltype(type);
      kv::each_token(a.slots, a.tokens, 2 * a.dim * size_of(a.dtype), [&](int64_t t, int worker) {
        float* table = a.scratch + worker * floats;
        T* row = reinterpret_cast<T*>(table + tables);
        make_row<T, decltype(weight_type)>(a, t, table, row);
        insert(a.target, a.slots[t], row, a.dim);
      });
    });
  });
}

}  // namespace sk::norm_rope_kv_write::SK_ISA
