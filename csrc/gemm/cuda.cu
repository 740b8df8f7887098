// Which kernel multiplies.
#include "gemm/any.cuh"
#include "gemm/cuda.h"

namespace sk::gemm {
namespace {

// How many k share their scales: sums are kept apart that long. 0: there are no scales. -1: scales change inside
// steps.
int64_t scale_period(const DeviceArgs& p) {
  const auto period = [&](bool scaled, int64_t block) {  // 0: never
    return !scaled || block >= p.weights.k ? 0 : block;
  };
  const int64_t a = period(p.a_scale.data != nullptr, p.a_group),
                b = period(p.weights.scale != nullptr, p.weights.block_k);
  if (p.a_scale.data == nullptr && p.weights.scale == nullptr) return 0;
  const int64_t shorter = a == 0 ? b : b == 0 ? a : min(a, b), longer = max(a, b);
  if (shorter == 0) return round_up(max(p.weights.k, 1), cuda::kStepK);  // once, at the end
  return shorter % cuda::kStepK == 0 && longer % shorter == 0 ? shorter : -1;
}

// 16 bytes at a time.
bool copies_well(const void* p, int64_t row_bytes) { return cuda::is_aligned(p, 16) && row_bytes % 16 == 0; }

}  // namespace

void multiply_on_device(const DeviceArgs& p, void* stream) {
  const Weights& w = p.weights;
  const int64_t promote = scale_period(p);
  const bool tensor = p.a_dtype != Dtype::f32 && w.format != Format::f32 && promote >= 0 &&
                      copies_well(p.a.data, p.a.stride * size_of(p.a_dtype)) && copies_well(w.data, w.row_bytes);
  if (!tensor) return cuda::start_any_gemm(p, stream);
  p.a_dtype == Dtype::bf16 ? cuda::start_bf16_rows(p, promote, stream) : cuda::start_e4m3_rows(p, promote, stream);
}

}  // namespace sk::gemm
