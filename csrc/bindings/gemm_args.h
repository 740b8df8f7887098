// What all GEMMs check and read alike, on CPUs and devices.
#pragma once
#include "bindings/weights.h"
#include "kernels/fused_moe/op.h"
#include "kernels/gemm/op.h"

namespace sk {

// The groups and the output come from the caller.
inline gemm_groups::Args read_gemm(Call& c, int a, int a_scale, int a_block, const WeightSlots& b) {
  const TensorView& x = c.arg(a);
  const gemm::Weights w = read_weights(c, b, c.size("N"), c.size("K"));
  if (w.format == gemm::Format::f32 && x.dtype != Dtype::f32)
    fail("b is float32, expected bfloat16, e4m3 or FP4 unless a is float32");
  if (c.option(a_block).present && c.option(a_block).integers[0] != 1)
    fail("a_block is (", c.option(a_block).integers[0],
         ", ...), expected (1, ...): activations are scaled row by row");
  if (x.dtype != Dtype::e4m3 && c.arg(a_scale).present()) fail("a_scale is given, but a is not e4m3");
  return {.weights = w,
          .a = x.as_rows<const void>(),
          .a_dtype = x.dtype,
          .a_scale = read_row_scales(c, a_scale),
          .a_group = c.arg(a_scale).present() ? c.size("a_block_1") : 0,
          .groups = nullptr,
          .group_count = 0,
          .rows = x.rows(),
          .bias = nullptr,
          .bias_dtype = Dtype::f32,
          .out = nullptr,
          .out_dtype = Dtype::other,
          .on_device = {},
          .blocking = {}};
}

inline void check_out_dtype(const Call& c, int option) {
  const auto t = static_cast<Dtype>(c.integer(option));
  if (t != Dtype::f32 && t != Dtype::bf16) fail("out_dtype is not torch.float32 or torch.bfloat16");
}

// The output comes from the caller.
inline fused_moe::Args read_fused_moe(Call& c) {
  enum { kX, kW13, kW2, kWeights, kIds, kW13Scale, kW2Scale, kMasks13, kMasks2 };
  enum { kW13Block, kW2Block, kActivation, kLimit, kQuantize, kWeightOn, kOutDtype, kPacked13, kPacked2 };
  if (c.option(kOutDtype).present) check_out_dtype(c, kOutDtype);
  const TensorView& x = c.arg(kX);
  const int64_t hidden = c.size("H"), inter = c.size("I"), experts = c.size("E");
  const auto w13 =
      read_weights(c, {"w13", kW13, kW13Scale, kMasks13, kPacked13, "w13_block_0", "w13_block_1"}, 2 * inter, hidden);
  const auto w2 =
      read_weights(c, {"w2", kW2, kW2Scale, kMasks2, kPacked2, "w2_block_0", "w2_block_1"}, hidden, inter);
  for (const int option : {kPacked13, kPacked2})
    if (c.option(option).present && c.option(option).integers[0] != experts)
      fail(option == kPacked2 ? "w2" : "w13", " holds ", c.option(option).integers[0], " experts, expected ",
           experts);
  if (x.dtype != Dtype::f32 && (w13.format == gemm::Format::f32 || w2.format == gemm::Format::f32))
    fail("w13 or w2 is float32, expected bfloat16, e4m3 or FP4 unless x is float32");
  const OptionValue& limit = c.option(kLimit);
  if (limit.present && !(limit.real > 0)) fail("limit is ", limit.real, ", expected a positive number or None");
  return {.x = x.as_rows<const void>(),
          .dtype = x.dtype,
          .w13 = w13,
          .w2 = w2,
          .weights = c.arg(kWeights).as<const float>(),
          .ids = c.indices(kIds),
          .tokens = x.rows(),
          .top_k = c.arg(kIds).last(),
          .experts = experts,
          .hidden = hidden,
          .inter = inter,
          .limit = limit.present ? c.real(kLimit) : __builtin_inff(),
          .quantize = c.option(kQuantize).present,
          .weight_on_hidden = c.integer(kWeightOn) == 1,
          .out = nullptr,
          .out_dtype = Dtype::other,
          .blocking = {}};
}

}  // namespace sk
