// GEMMs on a device: which rows meet which expert is known only there.
#include <iterator>

#include "bindings/families.h"
#include "bindings/gemm_args.h"
#include "moe/device.h"

namespace sk {
namespace {

void refuse_packed(const Call& c, const char* name, int masks, int packed) {
  if (c.option(packed).present)
    fail(name, " is ", c.arg(masks).present() ? "2:4 sparse" : "packed for CPUs",
         "; CUDA kernels take weights as they are, in rows");
}

gemm_groups::Args read_device_gemm(Call& c, int a, int a_scale, int a_block, const WeightSlots& b) {
  refuse_packed(c, "b", b.masks, b.description);
  return read_gemm(c, a, a_scale, a_block, b);
}

void launch(Call& c, gemm_groups::Args args) {
  args.out = c.out(0).data;
  args.out_dtype = c.out(0).dtype;
  c.run(gemm_groups::kVariants, args);
}

void gemm_op(Call& c) {
  enum { kA, kB, kAScale, kBScale, kBias, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_device_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  args.bias = c.arg(kBias).data;
  args.bias_dtype = c.arg(kBias).dtype;
  c.make_outputs();
  launch(c, args);
}

void grouped_gemm(Call& c) {
  enum { kA, kB, kOffsets, kAScale, kBScale, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_device_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  args.on_device = {.offsets = c.indices(kOffsets), .counts = nullptr, .experts = c.size("E"), .most = 0};
  c.make_outputs();
  launch(c, args);
}

void grouped_gemm_masked(Call& c) {
  enum { kA, kB, kRows, kAScale, kBScale, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_device_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  args.on_device = {.offsets = nullptr, .counts = c.indices(kRows), .experts = c.size("E"), .most = c.size("Mmax")};
  c.make_outputs();
  if (!c.out_given()) c.zero_output(0);
  launch(c, args);
}

void fused_moe(Call& c) {
  enum { kMasks13 = 7, kMasks2 };
  enum { kQuantize = 4, kOutDtype = 6, kPacked13, kPacked2 };
  refuse_packed(c, "w13", kMasks13, kPacked13);
  refuse_packed(c, "w2", kMasks2, kPacked2);
  fused_moe::Args a = read_fused_moe(c);
  const int64_t slots = a.tokens * a.top_k;
  if (slots > INT32_MAX)
    fail("ids has ", slots, " slots, expected at most ", INT32_MAX, ", for int32 to number them");
  c.make_outputs();
  a.out = c.out(0).data;
  a.out_dtype = c.out(0).dtype;
  const auto indices = [&](int64_t n) { return static_cast<int32_t*>(c.device_scratch(n * size_of(Dtype::i32))); };
  a.scratch = {.counts = indices(moe::chunks_on_device(slots) * a.experts),
               .expert_offsets = indices(a.experts + 1),
               .row_token = indices(slots),
               .row_slot = indices(slots),
               .slot_row = indices(slots),
               .codes = nullptr,
               .scales = nullptr,
               .gate_up = c.floats(0, slots * 2 * a.inter),
               .activated = c.device_scratch(slots * a.inter * size_of(a.quantize ? Dtype::e4m3 : a.dtype)),
               .activated_scales = nullptr,
               .parts = c.floats(0, slots * a.hidden)};
  if (a.quantize) {
    a.scratch.codes = static_cast<uint8_t*>(c.device_scratch(a.tokens * a.hidden));
    a.scratch.scales = c.floats(0, a.tokens * ceil_div(a.hidden, fused_moe::kGroup));
    a.scratch.activated_scales = c.floats(0, slots * ceil_div(a.inter, fused_moe::kGroup));
  }
  c.run(fused_moe::kVariants, a);
}

constexpr Binding kBindings[] = {
    {"gemm", "a b a_scale b_scale bias b_masks a_block b_block out_dtype packed", &gemm_op},
    {"grouped_gemm", "a b expert_offsets a_scale b_scale b_masks a_block b_block out_dtype packed", &grouped_gemm},
    {"grouped_gemm_masked", "a b rows a_scale b_scale b_masks a_block b_block out_dtype packed",
     &grouped_gemm_masked},
    {"fused_moe",
     "x w13 w2 weights ids w13_scale w2_scale w13_masks w2_masks w13_block w2_block activation limit "
     "quantize_activations weight_on "
     "out_dtype "
     "packed13 packed2",
     &fused_moe},
};

}  // namespace

Family cuda_gemm_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
