// GEMMs on a device: which rows meet which expert is known only there.
#include <iterator>

#include "bindings/families.h"
#include "bindings/gemm_args.h"

namespace sk {
namespace {

gemm_groups::Args read_device_gemm(Call& c, int a, int a_scale, int a_block, const WeightSlots& b) {
  if (c.option(b.description).present)
    fail("b is ", c.arg(b.masks).present() ? "2:4 sparse" : "packed for CPUs",
         "; CUDA kernels take weights as they are, in rows");
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

constexpr Binding kBindings[] = {
    {"gemm", "a b a_scale b_scale bias b_masks a_block b_block out_dtype packed", &gemm_op},
    {"grouped_gemm", "a b expert_offsets a_scale b_scale b_masks a_block b_block out_dtype packed", &grouped_gemm},
    {"grouped_gemm_masked", "a b rows a_scale b_scale b_masks a_block b_block out_dtype packed",
     &grouped_gemm_masked},
};

}  // namespace

Family cuda_gemm_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
