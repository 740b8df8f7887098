// Slots are sorted by expert, both products are GEMMs of groups, and one kernel between them activates and quantises.
// Rows past the last slot that has an expert take part in nothing.
#include "cuda/codes.cuh"
#include "cuda/math.cuh"
#include "gemm/device.h"
#include "kernels/fused_moe/op.h"
#include "moe/device.h"

namespace sk::fused_moe::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

// A warp does a group of a row.
template <class T>
__global__ void __launch_bounds__(kThreads) quantize(const Args a, int64_t groups) {
  const int64_t i = thread_number() / kWarp;
  if (i >= a.tokens * groups) return;
  const int64_t token = i / groups, start = i % groups * kGroup;
  const T* const x = static_cast<const T*>(a.x.data) + token * a.x.stride + start;
  quantize_group(E4m3{}, min(a.hidden - start, kGroup), kAmaxFloor, Dtype::f32,
                 a.scratch.codes + token * a.hidden + start, a.scratch.scales, i,
                 [&](int64_t k) { return widen(x[k]); });
}

__global__ void __launch_bounds__(kThreads) activate(const Args a, int64_t groups) {
  const int64_t i = thread_number() / kWarp, row = i / groups, start = i % groups * kGroup;
  if (row >= a.scratch.expert_offsets[a.experts]) return;
  const float weight = a.weight_on_hidden ? a.weights[a.scratch.row_slot[row]] : 1.0f;
  const float *const gate = a.scratch.gate_up + row * 2 * a.inter + start, *const up = gate + a.inter;
  const auto at = [&](int64_t k) { return gated_silu(gate[k], up[k], a.limit) * weight; };
  const int64_t size = min(a.inter - start, kGroup), first = row * a.inter + start;
  if (a.quantize)
    return quantize_group(E4m3{}, size, kAmaxFloor, Dtype::f32, static_cast<uint8_t*>(a.scratch.activated) + first,
                          a.scratch.activated_scales, i, at);
  for (int64_t k = threadIdx.x % kWarp; k < size; k += kWarp)
    if (a.dtype == Dtype::f32)
      static_cast<float*>(a.scratch.activated)[first + k] = narrow<float>(at(k));
    else
      static_cast<bf16*>(a.scratch.activated)[first + k] = narrow<bf16>(at(k));
}

// In the order of a token's slots.
template <class Out>
__global__ void __launch_bounds__(kThreads) combine(const Args a) {
  const int64_t i = thread_number();
  if (i >= a.tokens * a.hidden) return;
  const int64_t token = i / a.hidden, column = i % a.hidden;
  float sum = 0.0f;
  for (int64_t j = 0; j < a.top_k; ++j) {
    const int32_t row = a.scratch.slot_row[token * a.top_k + j];
    if (row < 0) continue;
    const float part = a.scratch.parts[row * a.hidden + column];
    sum = a.weight_on_hidden ? sum + part : fmaf(part, a.weights[token * a.top_k + j], sum);
  }
  static_cast<Out*>(a.out)[i] = narrow<Out>(sum);
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t slots = a.tokens * a.top_k, in_groups = ceil_div(a.hidden, kGroup),
                groups = ceil_div(a.inter, kGroup);
  const DeviceScratch& s = a.scratch;
  moe::permute_on_device({a.ids, a.tokens, a.top_k, a.experts}, s.counts, 1,
                         {s.expert_offsets, s.row_token, s.row_slot, s.slot_row, slots}, stream);
  gemm::DeviceArgs gemm = {
      .weights = a.w13,
      .a = a.x,
      .a_dtype = a.dtype,
      .a_scale = {},
      .a_group = 0,
      .a_row = s.row_token,
      .a_rows = a.tokens,
      .groups = {.offsets = s.expert_offsets, .counts = nullptr, .experts = a.experts, .most = 0},
      .rows = slots,
      .bias = nullptr,
      .bias_dtype = Dtype::f32,
      .out = s.gate_up,
      .out_dtype = Dtype::f32};
  if (a.quantize) {
    with_float_type(a.dtype, [&](auto type) {
      launch(quantize<decltype(type)>, ceil_div(a.tokens * in_groups, kThreads / kWarp), kThreads, 0, stream, a,
             in_groups);
    });
    gemm.a = {s.codes, a.hidden};
    gemm.a_dtype = Dtype::e4m3;
    gemm.a_scale = {s.scales, in_groups};
    gemm.a_group = kGroup;
  }
  multiply_on_device(gemm, stream);
  launch(activate, ceil_div(slots * groups, kThreads / kWarp), kThreads, 0, stream, a, groups);
  gemm.weights = a.w2;
  gemm.a = {s.activated, a.inter};
  gemm.a_scale = {a.quantize ? s.activated_scales : nullptr, groups};
  gemm.a_row = nullptr;
  gemm.a_rows = slots;
  gemm.out = s.parts;
  multiply_on_device(gemm, stream);
  with_float_type(a.out_dtype, [&](auto type) {
    launch(combine<decltype(type)>, ceil_div(a.tokens * a.hidden, kThreads), kThreads, 0, stream, a);
  });
}

}  // namespace sk::fused_moe::cuda
