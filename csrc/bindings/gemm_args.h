// What all GEMMs check and read alike, on CPUs and devices.
#pragma once
#include "bindings/weights.h"
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

}  // namespace sk
