#include "core/parallel.h"
#include "kernels/rope/op.h"
#include "rope/rotate.h"

namespace sk::rope::SK_ISA {

template <class T>
static void copy(const T* x, int64_t n, T* y) {
  __builtin_memcpy(y, x, static_cast<__SIZE_TYPE__>(n) * sizeof(T));
}

template <class T>
static void rotate_rows(const Args& a, int64_t first, int64_t last, float* table) {
  const int64_t before = a.rotation.offset, behind = before + 2 * a.rotation.pairs;
  for (int64_t r = first; r < last; ++r) {
    if (r == first || r % a.heads == 0) rotations(a.rotation, a.positions[r / a.heads], table);
    const T* x = static_cast<const T*>(a.x.data) + r * a.x.stride;
    T* y = static_cast<T*>(a.y) + r * a.dim;
    copy(x, before, y);
    rotate(a.rotation, table, x + before, y + before);
    copy(x + behind, a.dim - behind, y + behind);
  }
}

void run(const Args& a) {
  const int64_t floats = table_floats(a.rotation.pairs);
  // A row's bytes, and what its share of a table takes.
  const int64_t cost = 2 * a.dim * size_of(a.dtype) + 16 * a.rotation.pairs / max(a.heads, 1);
  with_float_type(a.dtype, [&](auto type) {
    parallel_rows(a.tokens * a.heads, cost, [&](int64_t first, int64_t last, int worker) {
      rotate_rows<decltype(type)>(a, first, last, a.tables + worker * floats);
    });
  });
}

}  // namespace sk::rope::SK_ISA
