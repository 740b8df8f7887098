#include "core/parallel.h"
#include "kernels/layer_norm/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::layer_norm::SK_ISA {
using namespace sk::simd::SK_ISA;

template <class T, class W, class B>
static void normalise(const T* x, int64_t dim, float eps, const W* weight, const B* bias, T* y) {
  const float size = static_cast<float>(dim);
  const float total = sum_over(dim, [&](F32 acc, int64_t i, auto n) { return add(acc, load(x + i, n)); });
  const F32 mean = splat(total / size);
  const float squares = sum_over(dim, [&](F32 acc, int64_t i, auto n) {
    const F32 d = keep(sub(load(x + i, n), mean), n);
    return fma(d, d, acc);
  });
  const F32 scale = splat(1.0f / __builtin_sqrtf(squares / size + eps));
  map_row(x, y, dim, [&](int64_t i, auto n) {
    F32 v = mul(sub(load(x + i, n), mean), scale);
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

}  // namespace sk::layer_norm::SK_ISA
