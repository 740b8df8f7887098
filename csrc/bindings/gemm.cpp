// GEMMs, and the packing of their weights.
#include <iterator>

#include "bindings/families.h"
#include "bindings/gemm_args.h"
#include "bindings/plan.h"
#include "kernels/pack_weights/op.h"
#include "kernels/unpack_weights/op.h"

namespace sk {
namespace {

using gemm_groups::Group;

void launch(Call& c, Planned op, gemm_groups::Args args) {
  args.out = c.out(0).data;
  args.out_dtype = c.out(0).dtype;
  int64_t rows = 0;
  for (int64_t g = 0; g < args.group_count; ++g) rows += args.groups[g].rows;
  args.blocking = blocking_of(op, args.weights, args.a_dtype, args.group_count, rows);
  c.run(gemm_groups::kVariants, args);
}

void gemm_op(Call& c) {
  enum { kA, kB, kAScale, kBScale, kBias, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  if (c.option(kPacked).present && c.option(kPacked).integers[0] > 1)
    fail("b holds ", c.option(kPacked).integers[0], " experts, expected one matrix");
  const Group all = {0, 0, args.rows};
  args.groups = &all;
  args.group_count = 1;
  args.bias = c.arg(kBias).data;
  args.bias_dtype = c.arg(kBias).dtype;
  c.make_outputs();
  launch(c, Planned::gemm, args);
}

// Rows [offsets[e], offsets[e + 1]) meet expert e.
void grouped_gemm(Call& c) {
  enum { kA, kB, kOffsets, kAScale, kBScale, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  const int32_t* offsets = c.indices(kOffsets);
  const int64_t experts = c.size("E");
  if (offsets[0] != 0) fail("expert_offsets starts at ", offsets[0], ", expected 0");
  Group* groups = c.scratch().take<Group>(experts);
  for (int64_t e = 0; e < experts; ++e) {
    if (offsets[e + 1] < offsets[e] || offsets[e + 1] > args.rows)
      fail("expert_offsets[", e + 1, "] is ", offsets[e + 1], ", expected ", offsets[e], " to ", args.rows);
    groups[e] = {e, offsets[e], offsets[e + 1] - offsets[e]};
  }
  args.groups = groups;
  args.group_count = experts;
  c.make_outputs();
  const int64_t row = c.out(0).last() * size_of(c.out(0).dtype), used = offsets[experts];
  if (used < args.rows)
    __builtin_memset(c.out(0).as<char>() + used * row, 0, static_cast<size_t>((args.rows - used) * row));
  launch(c, Planned::grouped_gemm, args);
}

// The first rows[e] rows of each expert's slice.
void grouped_gemm_masked(Call& c) {
  enum { kA, kB, kRows, kAScale, kBScale, kMasks };
  enum { kABlock, kBBlock, kOutDtype, kPacked };
  check_out_dtype(c, kOutDtype);
  gemm_groups::Args args =
      read_gemm(c, kA, kAScale, kABlock, {"b", kB, kBScale, kMasks, kPacked, "b_block_0", "b_block_1"});
  const int32_t* rows = c.indices(kRows);
  const int64_t experts = c.size("E"), most = c.size("Mmax");
  Group* groups = c.scratch().take<Group>(experts);
  for (int64_t e = 0; e < experts; ++e) {
    if (rows[e] < 0 || rows[e] > most) fail("rows[", e, "] is ", rows[e], ", expected 0 to ", most);
    groups[e] = {e, e * most, rows[e]};
  }
  args.groups = groups;
  args.group_count = experts;
  c.make_outputs();
  const int64_t row = c.out(0).last() * size_of(c.out(0).dtype);
  for (int64_t e = 0; e < experts && !c.out_given(); ++e)
    __builtin_memset(c.out(0).as<char>() + (e * most + rows[e]) * row, 0,
                     static_cast<size_t>((most - rows[e]) * row));
  launch(c, Planned::grouped_gemm_masked, args);
}

void fused_moe(Call& c) {
  fused_moe::Args args = read_fused_moe(c);
  c.make_outputs();
  args.out = c.out(0).data;
  args.out_dtype = c.out(0).dtype;
  args.blocking = blocking_of(Planned::fused_moe, args.w13, args.dtype, args.experts, args.tokens * args.top_k);
  c.run(fused_moe::kVariants, args);
}

void pack_weights(Call& c) {
  enum { kB, kBScale, kMasks };
  enum { kBlock, kDescription };
  const OptionValue& described = c.option(kDescription);
  const gemm::Weights w =
      read_weights(c, {"b", kB, kBScale, kMasks, kDescription, "block_0", "block_1"}, c.size("N"), c.size("K"));
  if (w.packed) fail("b is packed already");
  const int64_t experts = described.present    ? max(described.integers[0], 1)
                          : c.arg(kB).rank > 2 ? c.arg(kB).shape[0]
                                               : 1;
  c.set_size("bytes", experts * w.packed_bytes());
  c.set_size("scales", w.scale != nullptr ? experts * w.packed_scales() : 0);
  c.make_outputs();
  c.run(pack_weights::kVariants, {.weights = w,
                                  .experts = experts,
                                  .panels = c.out(0).as<uint8_t>(),
                                  .scale = w.scale != nullptr ? c.out(1).data : nullptr});
}

void unpack_weights(Call& c) {
  enum { kB, kBScale };
  enum { kPacked };
  const gemm::Weights w =
      read_weights(c, {"b", kB, kBScale, -1, kPacked, "b_block_0", "b_block_1"}, c.size("N"), c.size("K"));
  const int64_t experts = max(c.size("E"), 1), row_bytes = gemm::bytes_of(w.format, w.k);
  const bool has_masks = gemm::is_2to4(w.format);
  c.set_size("bytes", experts * w.n * row_bytes);
  c.set_size("scales", w.scale != nullptr ? experts * ceil_div(w.n, w.block_n) * w.segments().count() : 0);
  c.set_size("masks", has_masks ? experts * w.n * w.mask_bytes() : 0);
  c.make_outputs();
  c.run(unpack_weights::kVariants, {.weights = w,
                                    .experts = experts,
                                    .rows = c.out(0).as<uint8_t>(),
                                    .row_bytes = row_bytes,
                                    .masks = has_masks ? c.out(2).as<uint8_t>() : nullptr,
                                    .scale = w.scale != nullptr ? c.out(1).data : nullptr});
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
    {"pack_weights", "b b_scale b_masks block packed", &pack_weights},
    {"unpack_weights", "b b_scale packed", &unpack_weights},
};

}  // namespace

Family gemm_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
