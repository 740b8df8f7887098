#include "core/parallel.h"
#include "kernels/pack_weights/op.h"
#include "simd/isa.h"

namespace sk::pack_weights::SK_ISA {

// [n / block, segments] -> [n / 16][segments][16]; rows past n have scale 0.
template <class T>
static void spread_scales(const gemm::Weights& w, T* to) {
  const int64_t segments = w.segments().count();
  const T* from = static_cast<const T*>(w.scale);
  for (int64_t v = 0; v < w.vectors(); ++v)
    for (int64_t s = 0; s < segments; ++s)
      for (int64_t l = 0; l < gemm::kLane; ++l, ++to) {
        const int64_t row = v * gemm::kLane + l;
        *to = row < w.n ? from[row / w.block_n * segments + s] : T{};
      }
}

static void copy_scales(const gemm::Weights& w, void* to) {
  if (w.scale_per_lane()) {
    if (w.scale_dtype == Dtype::f32)
      spread_scales(w, static_cast<float*>(to));
    else
      spread_scales(w, static_cast<uint8_t*>(to));
  } else {
    __builtin_memcpy(to, w.scale, static_cast<size_t>(w.packed_scales() * size_of(w.scale_dtype)));
  }
}

void run(const Args& a) {
  const int64_t panels = ceil_div(a.weights.n, gemm::kPanel), width = gemm::kPanel / gemm::kLane;
  const int64_t size = a.weights.packed_bytes();
  parallel_for(a.experts * panels, [&](int64_t item, int) {
    const int64_t e = item / panels, first = item % panels * width;
    const gemm::Weights w = a.weights.expert(e);
    gemm::SK_ISA::pack(w, first, min(width, w.vectors() - first), a.panels + e * size);
    if (first == 0 && a.scale != nullptr)
      copy_scales(w, static_cast<uint8_t*>(a.scale) + e * w.packed_scales() * size_of(w.scale_dtype));
  });
}

}  // namespace sk::pack_weights::SK_ISA
