#include "core/parallel.h"
#include "kernels/unpack_weights/op.h"
#include "simd/isa.h"

namespace sk::unpack_weights::SK_ISA {

template <class T>
static void gather_scales(const gemm::Weights& w, T* to) {
  const int64_t segments = w.segments().count();
  const T* from = static_cast<const T*>(w.scale);
  for (int64_t b = 0; b < ceil_div(w.n, w.block_n); ++b)
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t row = b * w.block_n;
      *to++ = w.scale_per_lane() ? from[(row / gemm::kLane * segments + s) * gemm::kLane + row % gemm::kLane]
                                 : from[b * segments + s];
    }
}

void run(const Args& a) {
  const int64_t panels = ceil_div(a.weights.n, gemm::kPanel), width = gemm::kPanel / gemm::kLane;
  parallel_for(a.experts * panels, [&](int64_t item, int) {
    const int64_t e = item / panels, first = item % panels * width;
    const gemm::Weights w = a.weights.expert(e);
    gemm::SK_ISA::unpack(w, first, min(width, w.vectors() - first), a.rows + e * w.n * a.row_bytes, a.row_bytes,
                         a.masks != nullptr ? a.masks + e * w.n * w.mask_bytes() : nullptr);
    if (first != 0 || a.scale == nullptr) return;
    const int64_t at = e * ceil_div(w.n, w.block_n) * w.segments().count();
    if (w.scale_dtype == Dtype::f32)
      gather_scales(w, static_cast<float*>(a.scale) + at);
    else
      gather_scales(w, static_cast<uint8_t*>(a.scale) + at);
  });
}

}  // namespace sk::unpack_weights::SK_ISA
