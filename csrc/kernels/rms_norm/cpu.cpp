#include "core/parallel.h"
#include "kernels/rms_norm/op.h"
#include "norm/rms.h"

namespace sk::rms_norm::SK_ISA {
using namespace sk::simd::SK_ISA;

template <class T, class W, class B>
static void normalise(const T* x, int64_t dim, float eps, const W* weight, const B* bias, T* y) {
  const F32 scale = splat(norm::SK_ISA::inverse_rms(x, dim, eps));
  map_row(x, y, dim, [&](int64_t i, auto n) {
    F32 v = mul(load(x + i, n), scale);
    if (weight != nullptr) v = mul(v, load(weight + i, n));
    if (bias != nullptr) v = add(v, load(bias + i, n));
    return v;
  });
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto x_type) {
    with_float_type(a.weight_dtype, [&](auto w_type) {
      with_float_type(a.bias_dtype, [&](auto b_type) {
        using T = decltype(x_type);
        const auto* weight = static_cast<const decltype(w_type)*>(a.weight);
        const auto* bias = static_cast<const decltype(b_type)*>(a.bias);
        parallel_rows(a.rows, 2 * a.dim * size_of(a.dtype), [&](int64_t first_row, int64_t last_row) {
          for (int64_t r = first_row; r < last_row; ++r)
            normalise(static_cast<const T*>(a.x.data) + r * a.x.stride, a.dim, a.eps, weight, bias,
                      static_cast<T*>(a.y) + r * a.dim);
        });
      });
    });
  });
}

}  // namespace sk::rms_norm::SK_ISA
