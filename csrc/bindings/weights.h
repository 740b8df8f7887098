// The weight arguments that all GEMMs share: rows of any format with block scales, or the result of pack_weights.
#pragma once
#include "bindings/call.h"
#include "gemm/gemm.h"

namespace sk {

// Reads weights [E, n, k] or [n, k] from two arguments; block_n and block_k name the sizes of the scales' blocks. The
// option `packed` holds (experts, n, k, format, block_n, block_k) and is absent for rows; -1: there is no such
// option.
inline gemm::Weights read_weights(const Call& c, int b_arg, int scale_arg, int packed_option, const char* name,
                                  int64_t n, int64_t k, const char* block_n, const char* block_k) {
  const TensorView &b = c.arg(b_arg), &scale = c.arg(scale_arg);
  const OptionValue packed = packed_option < 0 ? OptionValue{} : c.option(packed_option);
  gemm::Weights w{};
  w.packed = packed.present;
  w.n = n;
  w.k = k;
  w.data = b.as<const uint8_t>();
  if (w.packed) {
    const int64_t* p = packed.integers;
    if (p[0] < 0 || p[1] < 0 || p[2] < 0 || p[3] < 0 || p[3] > 3 || p[4] < 1 || p[5] < 1 || p[1] != n || p[2] != k)
      fail(name, " is packed for other sizes: (experts, N, K) = (", p[0], ", ", p[1], ", ", p[2],
           "), expected N = ", n, ", K = ", k);
    w.format = static_cast<gemm::Format>(packed.integers[3]);
  } else {
    if (b.rank < 2)
      fail(name, " has ", b.rank, " dimension, expected rows [..., N, K] or the result of pack_weights");
    w.format = b.dtype == Dtype::f32    ? gemm::Format::f32
               : b.dtype == Dtype::bf16 ? gemm::Format::bf16
               : b.dtype == Dtype::e4m3 ? gemm::Format::e4m3
                                        : gemm::Format::e2m1;
    w.row_bytes = gemm::bytes_of(w.format, w.k);
  }
  const int64_t experts = w.packed ? max(packed.integers[0], 1) : b.rank > 2 ? b.shape[0] : 1;
  if (scale.present()) {
    w.scale = scale.data;
    w.scale_dtype = scale.dtype == Dtype::f32 ? Dtype::f32 : Dtype::e8m0;
    w.block_n = c.size(block_n);
    w.block_k = c.size(block_k);
    if (w.format == gemm::Format::e2m1 && w.block_k % 2 != 0 && w.block_k < w.k)
      fail(name, " is FP4 with blocks of ", w.block_k, " along K, expected an even number");
    w.expert_scales = w.packed ? w.packed_scales() : ceil_div(w.n, w.block_n) * w.segments().count();
  }
  w.expert_bytes = w.packed ? w.packed_bytes() : w.n * w.row_bytes;
  if (w.packed && (b.dtype != Dtype::u8 || b.size() != experts * w.expert_bytes ||
                   (scale.present() && scale.size() != experts * w.expert_scales)))
    fail(name, " has ", b.size(), " bytes, which is not what its description says");
  return w;
}

// Scales [rows, groups] as float, whichever they came in.
inline Rows<const float> read_row_scales(Call& c, int arg) {
  const TensorView& s = c.arg(arg);
  if (!s.present()) return {nullptr, 0};
  if (s.dtype == Dtype::f32) return s.as_rows<const float>();
  const int64_t cols = s.last();
  float* copy = c.scratch().take<float>(s.rows() * cols);
  for (int64_t r = 0; r < s.rows(); ++r)
    for (int64_t i = 0; i < cols; ++i)
      copy[r * cols + i] =
          __builtin_bit_cast(float, static_cast<uint32_t>(s.as<const uint8_t>()[r * s.row_stride() + i]) << 23);
  return {copy, cols};
}

}  // namespace sk
