// The weight arguments that all GEMMs share: rows of any format with block scales, or the result of pack_weights.
#pragma once
#include "bindings/call.h"
#include "gemm/gemm.h"

namespace sk {

// Where a call has weights: arguments, and the option that describes packed or 2:4 ones; -1: it has none. block_n and
// block_k name the sizes of the scales' blocks.
struct WeightSlots {
  const char* name;
  int data, scale, masks, description;
  const char *block_n, *block_k;
};

// Whether every half of every byte has two bits set; an odd last half is 0.
inline bool are_masks(const uint8_t* p, int64_t rows, int64_t halves) {
  bool good = true;
  for (int64_t r = 0; r < rows; ++r, p += ceil_div(halves, 2)) {
    for (int64_t i = 0; i < halves / 2; ++i) {
      const int pairs = (p[i] & 0x55) + (p[i] >> 1 & 0x55);
      good &= (pairs & 0x33) + (pairs >> 2 & 0x33) == 0x22;
    }
    if (halves % 2 != 0) good &= p[halves / 2] < 16 && __builtin_popcount(p[halves / 2]) == 2;
  }
  return good;
}

// Reads weights [E, n, k] or [n, k]: rows, panels, or 2:4 rows, whose values come as bytes and whose masks come with
// them. The description holds (experts, n, k, format, block_n, block_k) and is absent for rows.
inline gemm::Weights read_weights(const Call& c, const WeightSlots& at, int64_t n, int64_t k) {
  const TensorView none{}, &b = c.arg(at.data), &scale = c.arg(at.scale);
  const TensorView& masks = at.masks < 0 ? none : c.arg(at.masks);
  const OptionValue described = at.description < 0 ? OptionValue{} : c.option(at.description);
  gemm::Weights w{};
  w.packed = described.present && !masks.present();
  w.n = n;
  w.k = k;
  w.data = b.as<const uint8_t>();
  if (described.present) {
    const int64_t* p = described.integers;
    if (p[0] < 0 || p[1] < 0 || p[2] < 0 || p[3] < 0 || p[3] >= gemm::kFormats || p[4] < 1 || p[5] < 1 || p[1] != n ||
        p[2] != k)
      fail(at.name, " is packed for other sizes: (experts, N, K) = (", p[0], ", ", p[1], ", ", p[2],
           "), expected N = ", n, ", K = ", k);
    w.format = static_cast<gemm::Format>(p[3]);
  } else {
    if (b.rank < 2)
      fail(at.name, " has ", b.rank, " dimension, expected rows [..., N, K] or the result of pack_weights");
    w.format = b.dtype == Dtype::f32    ? gemm::Format::f32
               : b.dtype == Dtype::bf16 ? gemm::Format::bf16
               : b.dtype == Dtype::e4m3 ? gemm::Format::e4m3
                                        : gemm::Format::e2m1;
  }
  w.row_bytes = gemm::bytes_of(w.format, w.k);
  const int64_t experts = described.present ? max(described.integers[0], 1) : b.rank > 2 ? b.shape[0] : 1;
  if (gemm::is_2to4(w.format) && w.k % 4 != 0) fail(at.name, " is 2:4 with K = ", w.k, ", expected a multiple of 4");
  if (scale.present()) {
    w.scale = scale.data;
    w.scale_dtype = scale.dtype == Dtype::f32 ? Dtype::f32 : Dtype::e8m0;
    w.block_n = c.size(at.block_n);
    w.block_k = c.size(at.block_k);
    if (w.format == gemm::Format::e2m1 && w.block_k % 2 != 0 && w.block_k < w.k)
      fail(at.name, " is FP4 with blocks of ", w.block_k, " along K, expected an even number");
    if (gemm::is_2to4(w.format) && w.block_k % 4 != 0 && w.block_k < w.k)
      fail(at.name, " is 2:4 with blocks of ", w.block_k, " along K, expected a multiple of 4");
    w.expert_scales = w.packed ? w.packed_scales() : ceil_div(w.n, w.block_n) * w.segments().count();
  }
  w.expert_bytes = w.packed ? w.packed_bytes() : w.n * w.row_bytes;
  if (described.present && (b.dtype != Dtype::u8 || b.size() != experts * w.expert_bytes ||
                            (scale.present() && scale.size() != experts * w.expert_scales)))
    fail(at.name, " has ", b.size(), " bytes, which is not what its description says");
  if (masks.present()) {
    w.masks = masks.as<const uint8_t>();
    if (!gemm::is_2to4(w.format) || masks.size() != experts * w.n * w.mask_bytes())
      fail(at.name, "'s metadata has ", masks.size(), " bytes, expected 2:4 weights and a byte for 8 of K");
    if (!are_masks(w.masks, experts * w.n, w.k / 4))
      fail(at.name, "'s metadata has a mask of other than two bits; make it with sparsify_2to4");
  }
  return w;
}

// Scales [rows, groups] as float, whichever they came in.
inline Rows<const float> read_row_scales(Call& c, int arg) {
  const TensorView& s = c.arg(arg);
  if (!s.present() || is_empty(s)) return {nullptr, 0};
  if (s.dtype == Dtype::f32) return s.as_rows<const float>();
  const int64_t cols = s.last();
#if defined(SK_CUDA)
  return {c.scales_on_device(arg), cols};
#else
  float* copy = c.scratch().take<float>(s.rows() * cols);
  for (int64_t r = 0; r < s.rows(); ++r)
    for (int64_t i = 0; i < cols; ++i)
      copy[r * cols + i] =
          __builtin_bit_cast(float, static_cast<uint32_t>(s.as<const uint8_t>()[r * s.row_stride() + i]) << 23);
  return {copy, cols};
#endif
}

}  // namespace sk
