#include "core/parallel.h"
#include "kernels/swiglu/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::swiglu::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, 3 * a.dim * size_of(a.dtype), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const T* gate = static_cast<const T*>(a.gate_up.data) + r * a.gate_up.stride;
        const T* up = gate + a.dim;
        T* y = static_cast<T*>(a.y) + r * a.dim;
        const F32 weight = splat(a.weight == nullptr ? 1.0f : a.weight[r]);
        map_row(gate, y, a.dim, [&](int64_t i, auto n) {
          return mul(gated_silu(load(gate + i, n), load(up + i, n), splat(a.limit)), weight);
        });
      }
    });
  });
}

}  // namespace sk::swiglu::SK_ISA
