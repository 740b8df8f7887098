// Rows of activations as operands of the tiles. Included by kernels, inside the namespace of an instruction set.

// A stride that is not a multiple of 4 KB or nearly so: the rows of a tile would evict each other from the
// first-level cache, whose sets repeat every 4 KB.
static int64_t spread_stride(int64_t elements) { return round_up(elements, 64) + 32; }
static bool spreads(int64_t stride_bytes, int64_t rows) { return rows <= 4 || stride_bytes % 512 != 0; }

// Rows [rows, k] of x in a form that multiplies with w: x itself where that is possible, else a copy in scratch.
// An e4m3 row with scales whose groups end inside a chunk is scaled here and then multiplied as f32.
static gemm::Operand make_operand(const gemm::Weights& w, Rows<const void> x, Dtype dtype, Rows<const float> scale,
                                  int64_t group, int64_t rows, Scratch& scratch) {
  const gemm::Segments k = w.segments();
  const bool scale_now = scale.data != nullptr && !k.cuts_at(group);
  const bool as_f32 = scale_now || gemm::SK_ISA::multiplies_f32(dtype) || w.format == gemm::Format::f32;
  gemm::Operand a = {x.data, as_f32, x.stride, scale_now ? nullptr : scale.data, scale.stride, group, nullptr};
  const int64_t size = as_f32 ? 4 : 2;
  if (k.gapless() && !scale_now && dtype == (as_f32 ? Dtype::f32 : Dtype::bf16) && spreads(x.stride * size, rows))
    return a;

  a.stride = spread_stride(k.total());
  uint8_t* const copy = scratch.take<uint8_t>(rows * a.stride * size);
  a.data = copy;
  parallel_rows(rows, 4 * k.k, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const uint8_t* from = static_cast<const uint8_t*>(x.data) + r * x.stride * size_of(dtype);
      gemm::SK_ISA::prepare(from, dtype, k, as_f32, copy + r * a.stride * size);
      if (!scale_now) continue;
      float* row = reinterpret_cast<float*>(copy) + r * a.stride;
      for (int64_t s = 0; s < k.count(); ++s)
        for (int64_t i = 0; i < min(k.length, k.k - s * k.length); ++i)
          row[s * k.padded + i] *= scale.data[r * scale.stride + (s * k.length + i) / group];
    }
  });
  return a;
}

// The operand without its first rows.
static gemm::Operand rows_from(gemm::Operand a, int64_t row) {
  a.data = static_cast<const uint8_t*>(a.data) + row * a.stride * (a.is_f32 ? 4 : 2);
  if (a.scale != nullptr) a.scale += row * a.scale_stride;
  return a;
}
